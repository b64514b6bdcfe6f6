"""Guidance side by side with ComfyUI's own nodes: whole runs on random weights of Klein 4B's depth, 5 + 20 blocks."""

import functools
import importlib

import torch

from ..harness.inside import enter
from ..nano.in_comfyui import random_klein, sample
from .timing import side_by_side

HEADS = 4
TEXT_WIDTH = 192
TEXT_TOKENS = 512
LATENT_SIDE = 16
ROUNDS = 11
SINGLE_9 = dict(double_layers="", single_layers="9", scale=3.0)


@functools.cache
def prompts(text_width):
    """What stands for the positive and the negative prompt."""
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(1, TEXT_TOKENS, text_width, generator=generator) * 0.1, {"pooled_output": None}]] for _ in range(2)]


def runner(model, cfg, steps, side=LATENT_SIDE, text_width=TEXT_WIDTH, **conditions):
    """A call that samples Euler steps with the model, of `side` times `side` tokens; both prompts have the conditions."""
    positive, negative = ([[text, values | conditions]] for [[text, values]] in prompts(text_width))
    noise = torch.randn(1, 128, side, side, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, steps + 1)

    return functools.partial(sample, model, sigmas, noise, positive, negative, cfg)


def attention_as_on_a_gpu():
    """Have Klein take torch's attention, ComfyUI's default on a GPU. On a CPU ComfyUI takes another, which goes by memory."""
    attentions, flux = (importlib.import_module(f"comfy.ldm.{name}") for name in ("modules.attention", "flux.math"))
    flux.optimized_attention = attentions.attention_pytorch


def main(arguments):
    enter()
    ours = importlib.import_module("..nodes.guidance", __package__)
    skip_layer = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiT
    zero_star = importlib.import_module("comfy_extras.nodes_cfg").CFGZeroStar
    klein = random_klein(double_blocks=5, single_blocks=20, heads=HEADS)

    tail = ours.KleinKitSkipLayerGuidance.execute(klein, **SINGLE_9, start=0.0, end=1.0, mode="block", rescale=0.0)[0]
    whole = skip_layer.execute(klein, **SINGLE_9, start_percent=0.0, end_percent=1.0)[0]
    constant = ours.KleinKitCFG.execute(klein, {"schedule": "constant"}, "conditional")[0]
    late = ours.KleinKitCFG.execute(klein, {"schedule": "skip", "mode": "late", "guided_ratio": 0.5}, "conditional")[0]
    cases = (
        ("skip-layer of single block 9, cfg 4", tail, whole, "SkipLayerGuidanceDiT", 4.0, 1, (0.0, 0.85)),
        ("skip-layer of single block 9, cfg 1", tail, whole, "SkipLayerGuidanceDiT", 1.0, 1, (0.0, 0.76)),
        ("half of the steps guided, 3 of 4 passes", late, klein, "plain CFG", 4.0, 2, (0.75 * 0.97, 0.75 * 1.03)),
        (
            "CFG and CFG-Zero*",
            ours.KleinKitCFGZeroStar.execute(constant, True, 0)[0],
            zero_star.execute(klein)[0],
            "CFG and CFGZeroStar",
            4.0,
            1,
            (0.0, 1.01),
        ),
    )
    missed = 0
    for name, model, other, against, cfg, steps, (low, high) in cases:
        mine, theirs = side_by_side(name, runner(model, cfg, steps), runner(other, cfg, steps), ROUNDS, against)
        print(f"  promised: {low:.4g} to {high:.4g}", flush=True)
        missed += not low <= mine / theirs <= high
    print(f"{len(cases) - missed} of {len(cases)} ratios are within what was promised.", flush=True)
    return missed
