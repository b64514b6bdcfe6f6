"""Inpainting by ComfyUI's nodes and Klein Scheduler is diffusers' `Flux2KleinInpaintPipeline`, in whole runs."""

import itertools

import numpy as np
import pytest
import torch
from inpainting import (
    CFGS,
    MASK,
    PICTURE,
    SECOND,
    SIZE,
    STRENGTHS,
    by_comfyui,
    by_diffusers,
    cells,
    mask_of,
    pipeline_of,
    tiny_weights,
)
from PIL import Image

LIMIT = 1e-5
# By so much a run differs that lacks a reference, or has another cfg or strength: a hundred times the limit.
EFFECT = 0.001
CASES = tuple(itertools.product(STRENGTHS, (None, SECOND), CFGS))


def apart(one, other):
    return float((one - other).abs().max())


@pytest.fixture(scope="module")
def weights():
    return tiny_weights()


@pytest.fixture(scope="module")
def klein(comfy, weights):
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(dict(weights), model_options={"dtype": torch.float32})


@pytest.fixture(scope="module")
def pipeline(weights):
    return pipeline_of(weights)


@pytest.fixture(scope="module")
def runs(run_node, klein, pipeline):
    """`[(ComfyUI's latent, diffusers')]`, one of each case."""
    return [
        (
            by_comfyui(run_node, klein, PICTURE, MASK, strength, cfg, second),
            by_diffusers(pipeline, PICTURE, MASK, strength, cfg, second),
        )
        for strength, second, cfg in CASES
    ]


@pytest.mark.parametrize(
    "index", range(len(CASES)), ids=[f"{s:g}, {'two' if r is not None else 'one'}, cfg {c:g}" for s, r, c in CASES]
)
def test_every_strength_number_of_references_and_cfg(runs, index):
    ours, theirs = runs[index]
    assert apart(ours, theirs) <= LIMIT
    kept = cells(MASK, PICTURE.shape) == 0
    assert apart(ours * kept, PICTURE * kept) <= 1e-6 < EFFECT < apart(ours, PICTURE)


def test_each_of_them_has_an_effect(runs):
    assert min(apart(a, b) for (_, a), (_, b) in itertools.combinations(runs, 2)) >= EFFECT


def test_from_pixels(comfy, run_node, klein, weights):
    """Pictures and a drawn mask, whose edges lie within cells, through the whole VAE of FLUX.2 with random weights."""
    import comfy.sd
    from diffusers import AutoencoderKLFlux2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2()
    pipeline = pipeline_of(weights, vae)
    ours = comfy.sd.VAE(sd=dict(vae.state_dict()))
    pixels = np.random.default_rng(2).integers(0, 256, (2, *SIZE, 3), np.uint8)
    mask = mask_of(9, 20, 37, 41)
    picture, second = (run_node("VAEEncode", pixels=torch.from_numpy(p)[None] / 255, vae=ours)[0]["samples"] for p in pixels)
    images = [Image.fromarray(p) for p in pixels]
    drawn = Image.fromarray((mask[0] * 255).to(torch.uint8).numpy())
    theirs = by_diffusers(pipeline, images[0], drawn, 0.8, 4.0, images[1])
    assert apart(by_comfyui(run_node, klein, picture, mask, 0.8, 4.0, second), theirs) <= LIMIT


def test_a_soft_mask_behind_threshold_mask(run_node, klein, pipeline):
    soft = mask_of(16, 16, 32, 48) * torch.linspace(0, 1, SIZE[1])
    (hard,) = run_node("ThresholdMask", mask=soft, value=0.5)
    theirs = by_diffusers(pipeline, PICTURE, soft, 0.8, 4.0)
    assert apart(by_comfyui(run_node, klein, PICTURE, hard, 0.8, 4.0), theirs) <= LIMIT
    # A grey cell is mixed by ComfyUI as it is, and diffusers makes it black or white.
    assert apart(by_comfyui(run_node, klein, PICTURE, soft, 0.8, 4.0), theirs) >= EFFECT
