"""Each rule against diffusers' own guider, on random tensors."""

import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline, guiders
from diffusers.guiders import BaseGuidance
from diffusers.guiders.adaptive_projected_guidance import AdaptiveProjectedGuidance
from diffusers.guiders.adaptive_projected_guidance_mix import AdaptiveProjectedMixGuidance
from diffusers.guiders.auto_guidance import AutoGuidance as DiffusersAutoGuidance
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.frequency_decoupled_guidance import FrequencyDecoupledGuidance, build_image_from_pyramid
from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance
from diffusers.guiders.perturbed_attention_guidance import PerturbedAttentionGuidance
from diffusers.guiders.skip_layer_guidance import SkipLayerGuidance
from diffusers.guiders.smoothed_energy_guidance import SmoothedEnergyGuidance
from diffusers.guiders.tangential_classifier_free_guidance import TangentialClassifierFreeGuidance
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from hypothesis import given
from hypothesis import strategies as st
from kleinkit.guidance import stack
from kleinkit.guidance.apg import APG
from kleinkit.guidance.auto import PROMPTS, AutoGuidance
from kleinkit.guidance.cfg import CFG, Interval, combine
from kleinkit.guidance.fdg import FDG, joined, laplacian_pyramid, packed, unpacked
from kleinkit.guidance.mambo_g import MamboG
from kleinkit.guidance.plan import plan, plan_step
from kleinkit.guidance.rule import ScaledVelocities
from kleinkit.guidance.seg import SEG, blur
from kleinkit.guidance.skip_layer import SkipLayer
from kleinkit.guidance.tcfg import TCFG
from kleinkit.guidance.zero_star import CFGZeroStar
from kornia.geometry.transform import build_laplacian_pyramid
from sampling import exact_svd

SCALES = (0.0, 0.25, 0.5, 1.0, 4.0, 100.0)
BATCHES = (1, 4)
PASSES = ("x", "cond", "uncond", "skip", "seg", "weak", "weak_uncond")
LAYERS = dict(skip_layer_guidance_layers=[0])


def predictions(batch, seed=0, size=(6, 4)):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 128, *size, generator=generator) for name in PASSES}


def ours(rules, v, cfg, index=0, steps=8, memories=None):
    step = plan_step(rules, index, steps, 1.0 - index / steps, cfg)
    if step.zero:
        return torch.zeros_like(v["cond"])
    extra = {name: v[name] for name in step.passes if name not in ("cond", "uncond")}
    used = ScaledVelocities(v["x"], v["cond"], v["uncond"] if "uncond" in step.passes else None, extra)
    guided = stack.apply(rules, used, step, defaultdict(dict) if memories is None else memories)
    return stack.combined(used, step) if guided is None else guided


def theirs(guider, v, index=0, steps=8):
    guider.set_state(step=index, num_inference_steps=steps, timestep=torch.tensor(0))
    guider.prepare_inputs({})
    passes = {"pred_cond": v["cond"]}
    if guider.num_conditions > 1 and getattr(guider, "_is_cfg_enabled", lambda: True)():
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


# Scales at which both predictions are there and count.
GUIDED = (0.25, 4.0, 100.0)
PROJECTED = [
    dict(eta=eta, norm_threshold=threshold, momentum=momentum)
    for eta, threshold, momentum in ((0.0, 15.0, -0.5), (0.5, 0.0, 0.25), (0.5, 9.0, 0.1), (1.0, 40.0, 0.0), (0.0, 0.0, 0.0))
]


def scaled(v, factor):
    return {name: t * factor for name, t in v.items()}


def projecting(kind, scale, eta, norm_threshold, momentum, **settings):
    return kind(
        scale,
        adaptive_projected_guidance_momentum=momentum or None,
        adaptive_projected_guidance_rescale=norm_threshold,
        eta=eta,
        **settings,
    )


def runs(rule, guider, cfg, velocity=True, steps=4):
    """`(ours, theirs)` of each step of a run: theirs in the velocity, or in x0 = x − σv."""
    memories = defaultdict(dict)
    for index in range(steps):
        v, sigma = predictions(2, index), 1.0 - index / steps
        mine = ours((rule,), scaled(v, sigma) if velocity else v, cfg, index, steps, memories)
        if velocity:
            yield mine / sigma, theirs(guider, v, index, steps)
        else:
            denoised = {name: v["x"] - v[name] for name in ("cond", "uncond")}
            yield mine, v["x"] - theirs(guider, denoised, index, steps)


@pytest.mark.parametrize("settings", PROJECTED, ids=str)
@pytest.mark.parametrize("cfg", GUIDED)
def test_apg(cfg, settings):
    guider = projecting(AdaptiveProjectedGuidance, cfg, **settings)
    for mine, reference in runs(APG(**settings, space="velocity"), guider, cfg):
        agree(mine, reference, cfg)
    # The paper counts from the positive, as `use_original_formulation` does, and is in x0.
    guider = projecting(AdaptiveProjectedGuidance, cfg - 1.0, **settings, use_original_formulation=True)
    for mine, reference in runs(APG(**settings), guider, cfg, velocity=False):
        agree(mine, reference, cfg)


def test_apg_mix():
    settings = dict(eta=0.0, norm_threshold=10.0, momentum=-0.5)
    guider = AdaptiveProjectedMixGuidance(
        3.5,
        adaptive_projected_guidance_scale=12.0,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=10.0,
        adaptive_projected_guidance_start_step=1,
    )
    # diffusers begins after the step that it is given.
    for mine, reference in runs(APG(**settings, space="velocity", start=0.5, scale=12.0), guider, 3.5):
        agree(mine, reference, 12.0)


@pytest.mark.parametrize("alpha", (8.0, 0.5))
@pytest.mark.parametrize("cfg", GUIDED)
def test_mambo_g(cfg, alpha):
    v = predictions(4)
    # As near to each other as a model's.
    v["uncond"] = v["cond"] + 0.2 * v["uncond"]
    # diffusers' class takes tokens only, [B, N, C].
    reference = theirs(MagnitudeAwareGuidance(cfg, alpha), {name: t.flatten(2) for name, t in v.items()})
    agree(ours((MamboG(alpha),), v, cfg), reference.reshape(v["cond"].shape), cfg)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (24, 40), (33, 17), (5, 7), (68, 120)], ids=str)
@pytest.mark.parametrize("bands", (1, 2, 3))
def test_the_pyramid_is_kornia_s(size, bands):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    theirs = build_laplacian_pyramid(image, bands)
    mine = laplacian_pyramid(image, bands)
    assert [band.shape for band in mine] == [band.shape for band in theirs]
    for band, reference in zip((*mine, joined(mine)), (*theirs, build_image_from_pyramid(theirs))):
        agree(band, reference, 1.0)


def test_a_latent_is_unpacked_as_diffusers_does():
    latent = predictions(2)["x"]
    spatial = unpacked(latent)
    assert torch.equal(spatial, Flux2KleinPipeline._unpatchify_latents(latent))
    assert torch.equal(packed(spatial, latent), latent)


@pytest.mark.parametrize("scales", [(10.0, 5.0), (12.0, 6.0, 3.0), (6.0,)], ids=str)
@pytest.mark.parametrize("size", [(6, 4), (6, 6)], ids=str)
def test_fdg(scales, size):
    v = predictions(2, size=size)
    theirs_of = {name: unpacked(t) for name, t in v.items()}
    # Where it pads, diffusers' class returns the larger picture.
    reference = theirs(FrequencyDecoupledGuidance(list(scales)), theirs_of)[..., : 2 * size[0], : 2 * size[1]]
    shares = tuple((scale - 1.0) / (scales[0] - 1.0) for scale in scales)
    agree(ours((FDG(shares),), v, scales[0]), packed(reference, v["cond"]), scales[0])


@pytest.mark.parametrize("near", (0.3, 1.0))
@pytest.mark.parametrize("cfg", GUIDED)
def test_tcfg(monkeypatch, cfg, near):
    v = predictions(4)
    v["uncond"] = v["cond"] + near * v["uncond"]
    mine, guider = ours((TCFG(),), v, cfg), TangentialClassifierFreeGuidance(cfg)
    assert (mine - theirs(guider, v)).abs().max() <= 2e-4 * max(1.0, cfg)
    monkeypatch.setattr(torch.linalg, "svd", exact_svd)
    agree(mine, theirs(guider, v), cfg)


# diffusers' guider at a cfg, and our rule.
OF_ATTENTION = {
    "skip": (
        lambda cfg: PerturbedAttentionGuidance(cfg, 2.5, 0.0, 1.0, perturbed_guidance_layers=[0]),
        SkipLayer(2.5, end=1.0, mode="attention"),
    ),
    "seg": (lambda cfg: SmoothedEnergyGuidance(cfg, 2.5, seg_guidance_layers=[0]), SEG(2.5, end=1.0)),
}


@pytest.mark.parametrize("cfg", (0.0, 0.5, 4.0))
@pytest.mark.parametrize("name", OF_ATTENTION)
def test_perturbed_attention_and_smoothed_energy(name, cfg):
    # Both leave out the first step of their range. With cfg 1 they begin at the perturbed prediction, as skip-layer's does.
    make, rule = OF_ATTENTION[name]
    v, guider = predictions(2), make(cfg)
    for index in (1, 5):
        guider.set_state(step=index, num_inference_steps=8, timestep=torch.tensor(0))
        expected = guider.forward(pred_cond=v["cond"], pred_uncond=v["uncond"], **{f"pred_cond_{name}": v[name]}).pred
        agree(ours((rule,), v, cfg, index), expected, cfg)


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


# Each guider of diffusers: our node, or why there is none.
NODES = {
    "ClassifierFreeGuidance": "KleinKitCFG",
    "ClassifierFreeZeroStarGuidance": "KleinKitCFGZeroStar",
    "SkipLayerGuidance": "KleinKitSkipLayerGuidance",
    "AdaptiveProjectedGuidance": "KleinKitAPG",
    "AdaptiveProjectedMixGuidance": "KleinKitAPG",
    "MagnitudeAwareGuidance": "KleinKitMAMBOG",
    "FrequencyDecoupledGuidance": "KleinKitFDG",
    "TangentialClassifierFreeGuidance": "KleinKitTCFG",
    "AutoGuidance": "KleinKitAutoGuidance",
    "PerturbedAttentionGuidance": "KleinKitSkipLayerGuidance",
    "SmoothedEnergyGuidance": "KleinKitSEG",
}
PAGE = (Path(__file__).parents[2] / "docs" / "guiders.md").read_text("utf-8")
REASONS = {"LTX2Guidance": "It guides the sound and the video of LTX-2 together. Klein makes one picture."}


def test_every_guider_of_diffusers_has_a_node_or_a_reason():
    there = {name for name, value in vars(guiders).items() if isinstance(value, type) and issubclass(value, BaseGuidance)}
    assert there - {"BaseGuidance"} == NODES.keys() | REASONS.keys()
    assert [name for name in (*NODES, *REASONS) if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("node", sorted({*NODES.values()}))
def test_a_guider_s_node_is_there(comfy, node):
    assert node in comfy.NODE_CLASS_MAPPINGS


@pytest.mark.parametrize("settings", PROJECTED, ids=str)
def test_comfyui_s_apg_is_the_paper_s_at_one_cfg_more(comfy, run_node, settings):
    class Model:
        def clone(self):
            return self

        def set_model_sampler_pre_cfg_function(self, function):
            self.function = function

    model, cfg, memories = Model(), 4.0, defaultdict(dict)
    run_node("APG", model=model, **settings)
    for index in range(3):
        v = predictions(2, index)
        out = [v["x"] - v["cond"], v["x"] - v["uncond"]]
        args = dict(conds_out=out, sigma=torch.full((2,), 1.0 - index / 4), cond_scale=cfg)
        cond, uncond = model.function(args)
        agree(v["x"] - combine(cond, uncond, cfg), ours((APG(**settings),), v, cfg + 1.0, index, 4, memories), cfg)
