"""Measure what guidance does to pictures whose truth is known: `python tasks.py nano --study`."""

import argparse
import importlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..harness.inside import enter
from . import edit_study, metrics, paired, world
from .build import build, digest
from .in_comfyui import sampled
from .prompts import encode
from .publish import publish, publish_edits, publish_losses, publish_paired
from .train import CHANNELS, STATE, TOKENS, pictures, sigmas_of, train

SEED = 0
AT_ONCE = 8
# Of the comparison that the family has to stand.
HEADLINE_PROMPTS = 256
CFGS = (0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 50, 100)
STEPS = (1, 2, 3, 4, 6, 10, 20, 50)
RUN_STEPS, RUN_CFG, STRONG_CFG = 20, 4, 8
SKIPPED = "2"


class Bench(NamedTuple):
    """Scenes [N, 5] that were held out, true pictures of them, their embeddings, the empty prompt's, and noise."""

    scenes: np.ndarray
    true: np.ndarray
    texts: torch.Tensor
    empty: torch.Tensor
    noise: torch.Tensor


def prepare(count, text_encoder):
    rng = np.random.RandomState(SEED)
    unknown = world.scenes()[1]
    scenes = unknown[rng.permutation(len(unknown))[np.arange(count) % len(unknown)]]
    *texts, empty = torch.cat(list(encode(text_encoder, [*map(world.prompt, scenes), ""])))
    noise = torch.from_numpy(rng.standard_normal((count, CHANNELS, TOKENS, TOKENS)).astype(np.float32))
    return Bench(scenes, metrics.from_signed(world.draw(scenes, rng)), torch.stack(texts), empty, noise)


def measure(bench, model, sigmas, cfg):
    """One setting over all prompts.

    Returns:
        `metrics.adherence`'s shares, `distance` to true pictures, model `passes` a picture, `seconds`.
    """
    start = time.monotonic()
    latents, passes = sampled(model, bench.noise, bench.texts, bench.empty, sigmas, cfg, AT_ONCE)
    cells = metrics.from_signed(pictures(latents.flatten(2).transpose(1, 2)))
    return {
        **metrics.adherence(cells, bench.scenes),
        "distance": metrics.distance(cells, bench.true),
        "passes": passes / len(bench.noise),
        "seconds": time.monotonic() - start,
    }


def settings(load):
    """What is measured.

    Args:
        load: `(role, distilled_cfg) → model`.
    Yields:
        `(table, row, model, sigmas, cfg)`.
    """
    nodes = importlib.import_module("..nodes.guidance", __package__)
    samplers = importlib.import_module("comfy.samplers")
    base, twenty = load("base", "ignore"), sigmas_of(RUN_STEPS)

    def cfg_node(schedule, **inputs):
        return nodes.KleinKitCFG.execute(base, {"schedule": schedule, **inputs}, "conditional")[0]

    def nag(model):
        return nodes.KleinKitNAG.execute(model, 5.0, 2.5, 0.25, 0.0, 1.0)[0]

    rules = {
        "CFG": base,
        "CFG-Zero*, zero-init 1": nodes.KleinKitCFGZeroStar.execute(base, True, 1)[0],
        "CFG-Zero*, zero-init 0": nodes.KleinKitCFGZeroStar.execute(base, True, 0)[0],
        "skip-layer (single 2, scale 3)": nodes.KleinKitSkipLayerGuidance.execute(
            base, 3.0, "", SKIPPED, 0.0, 0.5, "block", 0.0
        )[0],
        "slerp": nodes.KleinKitSlerpCFG.execute(base)[0],
        "renorm (global)": nodes.KleinKitRenorm.execute(base, "global", 1.0, True)[0],
    }
    cheaper = {
        "every step": base,
        "interval 0.2 to 0.8": cfg_node("interval", start=0.2, end=0.8),
        "interval 0 to 0.5": cfg_node("interval", start=0.0, end=0.5),
        "skip late 0.5": cfg_node("skip", mode="late", guided_ratio=0.5),
        "skip alternate 0.5": cfg_node("skip", mode="alternate", guided_ratio=0.5),
        "skip early 0.5": cfg_node("skip", mode="early", guided_ratio=0.5),
        "adaptive 0.99": nodes.KleinKitAdaptiveGuidance.execute(base, 0.99)[0],
        "adaptive 0.9999": nodes.KleinKitAdaptiveGuidance.execute(base, 0.9999)[0],
    }
    guarded, unguarded = load("distilled", "ignore"), load("distilled", "allow")
    for cfg in (RUN_CFG, 2, 1):
        yield "headline", f"nano-base, 20 steps, cfg {cfg}", base, twenty, cfg
    yield "headline", "nano-distilled, 4 steps, cfg 1", guarded, sigmas_of(4), 1
    for cfg in CFGS:
        yield "cfg", f"{cfg:g}", base, twenty, cfg
    yield "distilled", "cfg 1", guarded, sigmas_of(4), 1
    yield "distilled", "NAG, cfg 1", nag(guarded), sigmas_of(4), 1
    yield "distilled", "cfg 5, guarded", guarded, sigmas_of(4), 5
    yield "distilled", "cfg 5, not guarded", unguarded, sigmas_of(4), 5
    for steps in STEPS:
        yield "steps", f"{steps}, dynamic", base, sigmas_of(steps), RUN_CFG
        static = samplers.calculate_sigmas(base.get_model_object("model_sampling"), "simple", steps)
        yield "steps", f"{steps}, static", base, static, RUN_CFG
    for name, model in cheaper.items():
        yield "passes", name, model, twenty, RUN_CFG
    for cfg in (RUN_CFG, STRONG_CFG):
        for name, model in rules.items():
            yield "rules", f"{name}, cfg {cfg}", model, twenty, cfg
    yield "rules", "NAG, cfg 1", nag(base), twenty, 1


def installed():
    """`(a function (role, distilled_cfg) → model, path of the text encoder)` of the nano family, loaded by Klein Loader."""
    files = build(STATE / "models", Path(os.environ["COMFYUI_PATH"]))
    loader = importlib.import_module("..nodes.loader", __package__).KleinKitLoader

    def load(role, guard):
        return loader.execute(files[role].name, "auto", "auto", "auto", "default", guard, True)[0]

    return load, files["text_encoder"]


def same(done, bench, model, sigmas, cfg):
    """What was found with the same setting in another table; None if nothing was."""
    for a_bench, a_model, a_cfg, values, found in done:
        if a_bench is bench and a_model is model and a_cfg == cfg and torch.equal(values, sigmas):
            return found
    return None


def study(count):
    """Measure every setting, and keep each result at once: a second call goes on where the first was stopped.

    Returns:
        `{table: {row: result}}`.
    """
    load, text_encoder = installed()
    benches = {number: prepare(number, text_encoder) for number in {count, HEADLINE_PROMPTS}}
    path = STATE / f"study-{count}-{digest('base')[:8]}-{digest('distilled')[:8]}.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    done = []
    for table, row, model, sigmas, cfg in settings(load):
        bench = benches[HEADLINE_PROMPTS if table == "headline" else count]
        known = results.setdefault(table, {}).get(row)
        found = known or same(done, bench, model, sigmas, cfg) or measure(bench, model, sigmas, cfg)
        done.append((bench, model, cfg, sigmas, found))
        if known:
            continue
        results[table][row] = found
        path.write_text(json.dumps(results, indent=1), "utf-8")
        print(
            f"{table}: {row}: {100 * found['all']:.1f}% right, distance {found['distance']:.4f}, "
            f"{found['passes']:.4g} passes, {found['seconds']:.0f} s",
            flush=True,
        )
    return results


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--table", choices=[*paired.TABLES, "edits"])
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--rows", nargs="*")
    options = parser.parse_args(arguments)
    enter(STATE)
    if options.train:
        train()
        publish_losses()
    if options.study and options.table == "edits":
        load, text_encoder = installed()
        count = min(options.prompts or edit_study.COUNT, edit_study.COUNT)
        edit_study.run(options.rows or edit_study.TABLES, lambda role: load(role, "ignore"), text_encoder, count)
        publish_edits()
    elif options.study and options.table:
        load, text_encoder = installed()
        paired.run(
            options.table,
            lambda role: load(role, "ignore"),
            text_encoder,
            options.prompts,
            options.seeds,
            options.rows or (),
        )
        publish_paired()
    elif options.study:
        publish(study(options.prompts), options.prompts)
