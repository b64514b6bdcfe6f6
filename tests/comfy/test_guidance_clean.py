"""Runs leave nothing behind."""

import functools
import gc

import pytest
import torch
from sampling import comfy_run, latent_noise, with_nodes
from state import state_of

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0])
SKIP = dict(scale=2.0, double_layers="0", single_layers="0", start=0.0, end=1.0, mode="attention", rescale=0.3)
NODES = (
    ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.75}, unguided="unconditional")),
    ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1)),
    ("KleinKitSkipLayerGuidance", SKIP),
    ("KleinKitImageCFG", dict(image_scale=2.0)),
    ("KleinKitRenorm", dict(mode="token", strength=0.5, shrink_only=True)),
    ("KleinKitAdaptiveGuidance", dict(threshold=0.99)),
)


@pytest.fixture(scope="module")
def guided(klein, base, run_node):
    return with_nodes(run_node, klein, *NODES, ("KleinKitBaseUncond", {"base_model": base}))


def run(model, prompts, cfg=4.0):
    return comfy_run(model, SIGMAS, latent_noise(32, 32), *prompts, cfg)


def test_fifty_runs_leave_no_tensor_and_no_hook(guided, prompts):
    def counts():
        gc.collect()
        tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
        return tensors, state_of(guided)

    first = run(guided, prompts)
    run(guided, prompts)
    before = counts()
    for _ in range(50):
        last = run(guided, prompts)
    assert torch.equal(first, last)
    del last
    assert counts() == before


def test_two_samplers_do_not_share_state(klein, run_node, prompts):
    # What adaptive guidance observed in one run would end the guidance of the next from its first step on.
    adaptive = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": -1.0}))
    other = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": 0.5}))
    alone = [run(model, prompts) for model in (adaptive, other)]
    together = [run(model, prompts) for model in (adaptive, other, adaptive, other)]
    assert all(torch.equal(result, alone[i % 2]) for i, result in enumerate(together))


def test_the_model_before_the_nodes_is_untouched(klein, run_node, prompts):
    before, state = run(klein, prompts), state_of(klein)
    run(with_nodes(run_node, klein, *NODES), prompts)
    assert state_of(klein) == state
    assert torch.equal(run(klein, prompts), before)


class TestDistilledGuard:
    @pytest.fixture(scope="class")
    def load(self, run_node, models):
        @functools.cache
        def load(distilled_cfg):
            return run_node(
                "KleinKitLoader",
                diffusion_model=models["distilled"].name,
                text_encoder="auto",
                vae="auto",
                variant="auto",
                weight_dtype="default",
                distilled_cfg=distilled_cfg,
                trim_text_encoder=True,
            )[0]

        return load

    def test_cfg_8_gives_the_pixels_of_cfg_1_and_one_warning_a_run(self, load, prompts, caplog):
        caplog.set_level("INFO")
        model = load("ignore")
        results = [run(model, prompts, cfg) for cfg in (8.0, 8.0, 1.0)]
        assert torch.equal(results[0], results[2]) and torch.equal(results[0], results[1])
        assert caplog.text.count("cfg 8 counts as 1 on this distilled model") == 2
        assert caplog.text.count("For a negative prompt at cfg 1 there is Klein NAG.") == 2
        assert caplog.text.count("KleinKit: 4 steps, 4 passes (cond 4)") == 3

    def test_a_curve_above_1_is_warned_of_too(self, load, prompts, run_node, caplog):
        curve = dict(schedule={"schedule": "curve", "scales": "5, 3, 1"}, unguided="conditional")
        run(with_nodes(run_node, load("ignore"), ("KleinKitCFG", curve)), prompts, 1.0)
        assert caplog.text.count("cfg 5 counts as 1 on this distilled model") == 1

    def test_allow_is_plain_cfg(self, load, prompts, run_node, models):
        plain = run_node("UNETLoader", unet_name=models["distilled"].name, weight_dtype="default")[0]
        assert torch.equal(run(load("allow"), prompts, 8.0), run(plain, prompts, 8.0))

    def test_cfg_below_1_stays(self, load, prompts, run_node, models):
        plain = run_node("UNETLoader", unet_name=models["distilled"].name, weight_dtype="default")[0]
        assert torch.equal(run(load("ignore"), prompts, 0.5), run(plain, prompts, 0.5))
