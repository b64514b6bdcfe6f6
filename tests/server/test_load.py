"""60 prompts from four clients at once: each gives the pixels that it gives on its own, or is refused with a sentence."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api

CLIENTS = 4
VALID, INVALID = 54, 6
# Resident memory before and after. A server that keeps 400 kB a prompt is found.
MOST_GROWTH = 1.02


def cfg(schedule, **inputs):
    inputs = {f"schedule.{name}": value for name, value in inputs.items()}
    return ("KleinKitCFG", {"schedule": schedule, "unguided": "conditional", **inputs})


ZERO = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1))
RENORM = ("KleinKitRenorm", dict(mode="token", strength=0.5, shrink_only=True))
SLERP, IMAGE = ("KleinKitSlerpCFG", {}), ("KleinKitImageCFG", dict(image_scale=2.0))
ADAPTIVE = ("KleinKitAdaptiveGuidance", dict(threshold=0.5))
SETTINGS = (
    prompts.prompt(steps=1),
    prompts.prompt(seed=2, cfg=1.0, steps=1),
    prompts.prompt(cfg=1.0, size=96),
    prompts.prompt(prompts.SKIP, cfg=1.0, steps=1),
    prompts.prompt(prompts.SKIP, RENORM, steps=1),
    prompts.prompt(ZERO),
    prompts.prompt(SLERP, RENORM, seed=3, steps=1),
    prompts.prompt(ADAPTIVE),
    prompts.prompt(cfg("interval", start=0.0, end=0.5)),
    prompts.prompt(cfg("curve", scales="5, 1"), ZERO, SLERP, sampler="dpmpp_2m"),
    prompts.prompt(cfg("diminishing", cutoff=0.5), size=80, steps=1),
    prompts.prompt(cfg("skip", mode="late", guided_ratio=0.5), sampler="lcm"),
)


def changed(key, **inputs):
    wanted = prompts.prompt(prompts.SKIP, cfg("interval", start=0.0, end=0.5))
    wanted[key]["inputs"] |= inputs
    return wanted


# What no server must run, the node that says so, and what it says.
REFUSED = (
    (changed("rule0", single_layers="99"), "KleinKitSkipLayerGuidance", "Expected `single_layers` to be"),
    (changed("rule1", **{"schedule.end": 0.0}), "KleinKitCFG", "Expected `end` to be above `start`"),
    (changed("rule1", schedule="absent"), "KleinKitCFG", "Expected `schedule` to be one of"),
    (changed("shift", shift="absent"), "KleinKitDynamicShift", "Expected `shift` to be one of"),
    (changed("loader", vae="../vae.safetensors"), "KleinKitLoader", "'../vae.safetensors' not in"),
    (prompts.prompt(SLERP, IMAGE), "KleinKitImageCFG", "Klein Image CFG and Klein Slerp CFG both decide"),
)


@pytest.fixture(scope="module")
def alone(lab):
    """The pictures of the valid prompts, each run on its own."""
    return [prompts.run(lab, wanted) for wanted in SETTINGS]


def test_60_prompts_from_four_clients(lab, alone, record_property):
    before = prompts.state(lab)[1]
    jobs = [(True, number % len(SETTINGS)) for number in range(VALID)]
    jobs += [(False, number % len(REFUSED)) for number in range(INVALID)]
    random.Random(0).shuffle(jobs)

    def run(job):
        valid, number = job
        return job, api.queue(lab, SETTINGS[number] if valid else REFUSED[number][0])

    with ThreadPoolExecutor(CLIENTS) as clients:
        done = list(clients.map(run, jobs))
    refused = 0
    for (valid, number), outcome in done:
        if valid:
            assert np.array_equal(prompts.picture(lab, outcome), alone[number])
        else:
            refused += 1
            assert outcome.outputs == {}
            _, node, words = REFUSED[number]
            assert any(sentence.startswith(f"{node}: ") and words in sentence for sentence in api.sentences(outcome.error))
    after = prompts.state(lab)[1]
    for name in ("hooks", "threads", "files", "models"):
        assert after[name] == before[name]
    assert after["memory"] < MOST_GROWTH * before["memory"]
    record_property("count_prompts", len(done))
    record_property("count_prompts_refused", refused)
    record_property("memory_growth_percent", round(100 * (after["memory"] / before["memory"] - 1), 2))
