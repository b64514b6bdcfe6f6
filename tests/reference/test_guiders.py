"""Each rule against diffusers' own guider, on random tensors."""

import math
from collections import defaultdict

import pytest
import torch
from diffusers.guiders.auto_guidance import AutoGuidance as DiffusersAutoGuidance
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.perturbed_attention_guidance import PerturbedAttentionGuidance
from diffusers.guiders.skip_layer_guidance import SkipLayerGuidance
from diffusers.guiders.smoothed_energy_guidance import SmoothedEnergyGuidance
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from hypothesis import given
from hypothesis import strategies as st
from kleinkit.guidance import stack
from kleinkit.guidance.auto import PROMPTS, AutoGuidance
from kleinkit.guidance.cfg import CFG, Interval
from kleinkit.guidance.plan import plan, plan_step
from kleinkit.guidance.rule import ScaledVelocities
from kleinkit.guidance.skip_layer import SkipLayer, blur
from kleinkit.guidance.zero_star import CFGZeroStar

SCALES = (0.0, 0.25, 0.5, 1.0, 4.0, 100.0)
BATCHES = (1, 4)
PASSES = ("x", "cond", "uncond", "skip", "weak", "weak_uncond")
LAYERS = dict(skip_layer_guidance_layers=[0])


def predictions(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 128, 6, 4, generator=generator) for name in PASSES}


def ours(rules, v, cfg, index=0, steps=8):
    step = plan_step(rules, index, steps, 1.0 - index / steps, cfg)
    if step.zero:
        return torch.zeros_like(v["cond"])
    extra = {name: v[name] for name in step.passes if name not in ("cond", "uncond")}
    used = ScaledVelocities(v["x"], v["cond"], v["uncond"] if "uncond" in step.passes else None, extra)
    guided = stack.apply(rules, used, step, defaultdict(dict))
    return stack.combined(used, step) if guided is None else guided


def theirs(guider, v, index=0, steps=8):
    guider.set_state(step=index, num_inference_steps=steps, timestep=torch.tensor(0))
    passes = {"pred_cond": v["cond"]}
    if guider._is_cfg_enabled():
        passes["pred_uncond"] = v["uncond"]
    if isinstance(guider, SkipLayerGuidance) and guider._is_slg_enabled():
        passes["pred_cond_skip"] = v["skip"]
    return guider.forward(**passes).pred


def agree(a, b, cfg):
    assert torch.isfinite(b).all()
    assert (a - b).abs().max() <= 1e-5 * max(1.0, cfg)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cfg", SCALES)
class TestFormulas:
    def test_cfg(self, batch, cfg):
        v = predictions(batch)
        agree(ours((CFG(),), v, cfg), theirs(ClassifierFreeGuidance(cfg), v), cfg)

    def test_cfg_zero_star(self, batch, cfg):
        v = predictions(batch)
        rules = (CFGZeroStar(zero_init_steps=1),)
        for index in (0, 1, 7):
            agree(
                ours(rules, v, cfg, index),
                theirs(ClassifierFreeZeroStarGuidance(cfg, zero_init_steps=1), v, index),
                cfg,
            )

    def test_skip_layer(self, batch, cfg):
        # diffusers leaves out the first step of its range. Without CFG its two formulations begin at different
        # predictions; the design's begins at the positive, as the original one does, which counts cfg from 0.
        v = predictions(batch)
        original = cfg == 1.0
        guider = SkipLayerGuidance(
            0.0 if original else cfg,
            2.5,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=0.5,
            use_original_formulation=original,
            **LAYERS,
        )
        for index in (1, 3, 4):
            agree(ours((SkipLayer(2.5, start=0.0, end=0.5),), v, cfg, index), theirs(guider, v, index), cfg)


# Of the same guidance by their names: which layers they take, and the name of the pass.
OF_ATTENTION = {
    "attention": lambda cfg: PerturbedAttentionGuidance(cfg, 2.5, 0.0, 1.0, perturbed_guidance_layers=[0]),
    "blur": lambda cfg: SmoothedEnergyGuidance(cfg, 2.5, seg_guidance_layers=[0]),
}


@pytest.mark.parametrize("cfg", (0.0, 0.5, 4.0))
@pytest.mark.parametrize("mode", OF_ATTENTION)
def test_perturbed_attention_and_smoothed_energy(mode, cfg):
    # Both leave out the first step of their range. With cfg 1 they begin at the perturbed prediction, as skip-layer's does.
    v, guider = predictions(2), OF_ATTENTION[mode](cfg)
    last = {"attention": "pred_cond_skip", "blur": "pred_cond_seg"}[mode]
    for index in (1, 5):
        guider.set_state(step=index, num_inference_steps=8, timestep=torch.tensor(0))
        expected = guider.forward(pred_cond=v["cond"], pred_uncond=v["uncond"], **{last: v["skip"]}).pred
        agree(ours((SkipLayer(2.5, end=1.0, mode=mode),), v, cfg, index), expected, cfg)


@pytest.mark.parametrize("side", (1, 2, 3, 6, 9))
@pytest.mark.parametrize("sigma", (0.05, 0.4, 1.0, 3.7, 50.0, 9999.0, 10000.0))
def test_blur(side, sigma):
    queries = torch.randn(2, side * side, 40, generator=torch.Generator().manual_seed(side))
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    # diffusers 0.42 has the two branches of the authors' code the wrong way round: its threshold turns the Gaussian on.
    threshold = sigma - 1e-6 if sigma <= 9999.0 else math.inf
    expected = _gaussian_blur_2d(queries.clone(), size, sigma, threshold)
    assert (blur(queries, side, side, sigma) - expected).abs().max() <= 1e-5
    assert torch.equal(blur(queries[:, None], side, side, sigma)[:, 0], blur(queries, side, side, sigma))


def test_a_blur_of_a_grid_that_is_no_square_is_that_of_its_rows_and_columns():
    grid = torch.randn(1, 5, 8, 3, generator=torch.Generator().manual_seed(1))

    def along(values, axis):
        # Each row or column stands for a square of equal ones, which a blur across leaves as they are.
        count = values.shape[axis]
        lines = values.movedim(axis, -2).reshape(-1, 1, count, 3).expand(-1, count, -1, -1).flatten(1, 2)
        blurred = _gaussian_blur_2d(lines.clone(), 9, 1.2, 1.0).unflatten(1, (count, count))[:, 0]
        return blurred.reshape(values.movedim(axis, -2).shape).movedim(-2, axis)

    assert (blur(grid.flatten(1, 2), 5, 8, 1.2) - along(along(grid, 1), 2).flatten(1, 2)).abs().max() <= 1e-5


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", (1.0, 1.25, 4.0, 100.0))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_auto_guidance(prompt, scale, batch):
    # Of diffusers' two predictions the second is the weaker version's.
    v = predictions(batch)
    guider = DiffusersAutoGuidance(scale, auto_guidance_layers=[0], dropout=1.0, start=0.25, stop=0.75)
    weaker = v["weak_uncond" if prompt == "negative" else "weak"]
    for index in (1, 2, 5, 6):
        guider.set_state(step=index, num_inference_steps=8, timestep=torch.tensor(0))
        expected = guider.forward(v["cond"], weaker).pred
        agree(ours((AutoGuidance(scale, prompt=prompt, start=0.25, end=0.75),), v, 1.0, index), expected, scale)


@pytest.mark.parametrize("prediction", ("uncond", "cond"))
def test_a_negative_of_zero_and_a_negative_that_is_the_positive(prediction):
    v = predictions(2)
    v["uncond"] = torch.zeros_like(v["cond"]) if prediction == "uncond" else v["cond"].clone()
    for cfg in SCALES:
        agree(
            ours((CFGZeroStar(zero_init_steps=0),), v, cfg),
            theirs(ClassifierFreeZeroStarGuidance(cfg, zero_init_steps=0), v),
            cfg,
        )


# diffusers rounds a range's ends down; where they fall on steps there is nothing to round.
@given(steps=st.integers(1, 100), data=st.data())
def test_ranges_on_whole_steps(steps, data):
    first = data.draw(st.integers(0, steps - 1))
    last = data.draw(st.integers(first + 1, steps))
    start, end = first / steps, last / steps
    cfg = ClassifierFreeGuidance(4.0, start=start, stop=end)
    skip = SkipLayerGuidance(4.0, skip_layer_guidance_start=start, skip_layer_guidance_stop=end, **LAYERS)
    planned = plan(
        (CFG(Interval(start, end)), SkipLayer(start=start, end=end)), [1.0 - i / steps for i in range(steps + 1)], 4.0
    )
    for step in planned:
        for guider in (cfg, skip):
            guider.set_state(step=step.index, num_inference_steps=steps, timestep=torch.tensor(0))
        # int(start · steps) may round 6.999… down to a step before the one that is meant.
        if int(start * steps) == first and int(end * steps) == last:
            assert ("uncond" in step.passes) == cfg._is_cfg_enabled()
            assert ("skip" in step.passes) == (skip._is_slg_enabled() or step.index == first)
