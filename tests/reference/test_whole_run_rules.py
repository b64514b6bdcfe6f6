"""Whole runs of the rules: diffusers' transformer, and its guider, or each rule's formula in float64 where it has none."""

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import AdaptiveProjectedGuidance
from diffusers.guiders.frequency_decoupled_guidance import FrequencyDecoupledGuidance
from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance
from diffusers.guiders.tangential_classifier_free_guidance import TangentialClassifierFreeGuidance
from kleinkit.guidance.fdg import packed, unpacked
from kleinkit.nano.build import transformer as weights
from kleinkit.nano.in_comfyui import random_klein
from sampling import (
    comfy_run,
    conditioning,
    diffusers_run,
    diffusers_transformer,
    diffusers_velocity,
    embeddings,
    exact_svd,
    latent_noise,
    with_nodes,
)

SIGMAS = torch.tensor([1.0, 0.96, 0.9, 0.76, 0.0])
STEPS = len(SIGMAS) - 1
CFG = 4.0
LIMIT = 1e-5
COND, UNCOND = embeddings(192, 1), embeddings(192, 2)
NOISE = latent_noise(96, 128, batch=2)
REFERENCE = latent_noise(64, 64, seed=3)


def flat(v):
    return v.double().flatten(1)


def slerp(cond, uncond, cfg, cap=math.inf):
    theta = torch.acos((flat(cond) * flat(uncond)).sum(1) / flat(cond).norm(dim=1) / flat(uncond).norm(dim=1))
    turn = ((cfg - 1) * theta).clamp(max=math.radians(cap))
    of_cond, of_uncond = torch.sin(theta + turn) / torch.sin(theta), -torch.sin(turn) / torch.sin(theta)
    return of_cond[:, None, None, None] * cond.double() + of_uncond[:, None, None, None] * uncond.double()


def cfg_of(scale):
    return lambda v: v("uncond").double() + scale * (v("cond").double() - v("uncond").double())


def renormed(v, step):
    guided = cfg_of(CFG)(v)
    factor = (v("cond").double().norm(dim=1, keepdim=True) / guided.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return guided * (0.25 + 0.75 * factor)


def image_cfg(v, step):
    none, image, both = v("image").double(), v("uncond").double(), v("cond").double()
    return none + 2.5 * (image - none) + CFG * (both - image)


def scheduled(scales):
    return lambda v, step: v("uncond") if scales[step] == 0 else cfg_of(scales[step])(v)


RULES = {
    "slerp": ((("KleinKitSlerpCFG", {}),), lambda v, step: slerp(v("cond"), v("uncond"), CFG)),
    "slerp with a cap": ((("KleinKitSlerpCFG", {"cap": 10.0}),), lambda v, step: slerp(v("cond"), v("uncond"), CFG, 10.0)),
    "renorm": ((("KleinKitRenorm", dict(mode="token", strength=0.75, shrink_only=True)),), renormed),
    "image CFG": ((("KleinKitImageCFG", {"image_scale": 2.5}),), image_cfg),
    "diminishing": (
        (("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 0.2}, unguided="conditional")),),
        scheduled([CFG + (1 - CFG) * min((1 - float(sigma)) / 0.2, 1.0) for sigma in SIGMAS[:-1]]),
    ),
    "curve": (
        (("KleinKitCFG", dict(schedule={"schedule": "curve", "scales": "7, 0"}, unguided="conditional")),),
        scheduled([7.0 * (1 - i / (STEPS - 1)) for i in range(STEPS)]),
    ),
    "unconditional": (
        (("KleinKitCFG", dict(schedule={"schedule": "skip", "mode": "early", "guided_ratio": 0.5},
                              unguided="unconditional")),),
        scheduled([0.0] * 2 + [CFG] * 2),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def transformer():
    return diffusers_transformer({key: torch.from_numpy(array) for key, array in weights(0).items()})


@pytest.fixture(scope="module")
def klein(comfy):
    return lambda dtype=torch.float32: random_klein(dtype=dtype)


def prompts(references):
    values = {"reference_latents": [REFERENCE]} if references else {}
    return conditioning(COND, **values), conditioning(UNCOND, **values)


@pytest.mark.parametrize("name", RULES)
def test_rule(transformer, klein, run_node, name):
    nodes, formula = RULES[name]
    references = [REFERENCE] if name == "image CFG" else []

    def velocity(x, sigma, step):
        def pass_of(kind):
            text = (COND if kind == "cond" else UNCOND).expand(2, -1, -1)
            return diffusers_velocity(transformer, x, sigma, text, references if kind != "image" else [])

        return formula(pass_of, step).float()

    theirs = diffusers_run(SIGMAS, NOISE, velocity)
    ours = comfy_run(with_nodes(run_node, klein(), *nodes), SIGMAS, NOISE, *prompts(references), CFG)
    assert (ours - theirs).abs().max() <= LIMIT * theirs.abs().max()


APG = dict(eta=0.0, norm_threshold=15.0, momentum=-0.5, start=0.0, scale=0.0)
PROJECTED = dict(adaptive_projected_guidance_momentum=-0.5, eta=0.0)


def of_velocity(guider, x, sigma, passes):
    return guider.forward(*passes).pred


def of_denoised(guider, x, sigma, passes):
    return (x - guider.forward(*(x - sigma * v for v in passes)).pred) / sigma


def of_tokens(guider, x, sigma, passes):
    return guider.forward(*(v.flatten(2) for v in passes)).pred.reshape(x.shape)


def of_picture(guider, x, sigma, passes):
    return packed(guider.forward(*map(unpacked, passes)).pred, x)


# `(node, diffusers' guider, how it gets the predictions)`.
GUIDERS = {
    "APG": (("KleinKitAPG", APG | {"space": "denoised"}),
            lambda: AdaptiveProjectedGuidance(CFG - 1.0, use_original_formulation=True, **PROJECTED), of_denoised),
    "APG, velocity": (("KleinKitAPG", APG | {"space": "velocity"}),
                      lambda: AdaptiveProjectedGuidance(CFG, **PROJECTED), of_velocity),
    "APG, momentum 0.1": (("KleinKitAPG", APG | {"space": "velocity", "momentum": 0.1}),
                          lambda: AdaptiveProjectedGuidance(CFG, adaptive_projected_guidance_momentum=0.1, eta=0.0),
                          of_velocity),
    "MAMBO-G": (("KleinKitMAMBOG", {"alpha": 1.5}), lambda: MagnitudeAwareGuidance(CFG, 1.5), of_tokens),
    "FDG": (("KleinKitFDG", {"shares": "1, 0.5"}), lambda: FrequencyDecoupledGuidance([CFG, 2.5]), of_picture),
    "TCFG": (("KleinKitTCFG", {}), lambda: TangentialClassifierFreeGuidance(CFG), of_velocity),
}  # fmt: skip


@pytest.mark.parametrize("name", GUIDERS)
def test_guider(transformer, klein, run_node, monkeypatch, name):
    monkeypatch.setattr(torch.linalg, "svd", exact_svd)
    node, make, guided = GUIDERS[name]
    guider = make()

    def velocity(x, sigma, step):
        passes = [diffusers_velocity(transformer, x, sigma, text.expand(2, -1, -1)) for text in (COND, UNCOND)]
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(0))
        guider.prepare_inputs({})
        return guided(guider, x, sigma, passes)

    theirs = diffusers_run(SIGMAS, NOISE, velocity)
    ours = comfy_run(with_nodes(run_node, klein(), node), SIGMAS, NOISE, *prompts([]), CFG)
    assert (ours - theirs).abs().max() <= LIMIT * theirs.abs().max()


def test_base_uncond(transformer, klein, run_node):
    other = random_klein(seed=5)
    base = diffusers_transformer(dict(other.model.diffusion_model.state_dict()))

    def velocity(x, sigma, step):
        cond = diffusers_velocity(transformer, x, sigma, COND.expand(2, -1, -1))
        uncond = diffusers_velocity(base, x, sigma, UNCOND.expand(2, -1, -1))
        return uncond + CFG * (cond - uncond)

    theirs = diffusers_run(SIGMAS, NOISE, velocity)
    node = ("KleinKitBaseUncond", {"base_model": other})
    ours = comfy_run(with_nodes(run_node, klein(), node), SIGMAS, NOISE, *prompts([]), CFG)
    assert (ours - theirs).abs().max() <= LIMIT * theirs.abs().max()


def test_adaptive(transformer, klein, run_node):
    cosines = []

    def velocity(x, sigma, step):
        cond = diffusers_velocity(transformer, x, sigma, COND.expand(2, -1, -1))
        if cosines and max(cosines) >= threshold:
            return cond
        uncond = diffusers_velocity(transformer, x, sigma, UNCOND.expand(2, -1, -1))
        cosines.append(float(torch.cosine_similarity(flat(cond), flat(uncond)).min()))
        return uncond + CFG * (cond - uncond)

    threshold = 2.0
    diffusers_run(SIGMAS, NOISE, velocity)
    # Guidance that ends in the middle of the run.
    threshold = max(cosines[:2]) - 1e-4
    ends = next(i for i, cosine in enumerate(cosines) if cosine >= threshold)
    cosines.clear()
    theirs = diffusers_run(SIGMAS, NOISE, velocity)
    assert len(cosines) == ends + 1
    node = ("KleinKitAdaptiveGuidance", {"threshold": threshold})
    ours = comfy_run(with_nodes(run_node, klein(), node), SIGMAS, NOISE, *prompts([]), CFG)
    assert (ours - theirs).abs().max() <= LIMIT * theirs.abs().max()


HALF_PRECISION = {
    "CFG-Zero*": ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0)),
    "slerp": ("KleinKitSlerpCFG", {}),
    "APG": ("KleinKitAPG", APG | {"space": "denoised"}),
    "renorm": ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=True)),
    "interval": ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional")),
    "diminishing": ("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 0.2}, unguided="conditional")),
    "skip-layer": ("KleinKitSkipLayerGuidance", dict(scale=3.0, double_layers="", single_layers="2", start=0.0, end=0.5,
                                                     mode="block", rescale=0.0)),
    "image CFG": ("KleinKitImageCFG", {"image_scale": 2.5}),
}  # fmt: skip


def test_bfloat16_is_as_near_to_float32_as_plain_cfg_is(klein, run_node):
    models = {dtype: klein(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def error(*nodes):
        runs = {
            dtype: comfy_run(with_nodes(run_node, model, *nodes), SIGMAS, NOISE[:1], *prompts([1]), CFG)
            for dtype, model in models.items()
        }
        f32, bf16 = runs.values()
        return float((bf16 - f32).norm() / f32.norm())

    # A run's error is one draw of rounding errors: two that are equally good differ by less than a twentieth.
    limit = 1.05 * error()
    assert limit > 1e-4
    for name, node in HALF_PRECISION.items():
        assert error(node) <= limit, name
