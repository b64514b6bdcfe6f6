"""Inpainting by ComfyUI's nodes and Klein Scheduler beside diffusers' pipeline: whole runs in float32 on tiny weights."""

import importlib

import torch

from ..harness.inside import enter
from ..tests.helpers import inpainting
from ..tests.helpers.inpainting import CFGS, MASK, PICTURE, SECOND, STRENGTHS, by_comfyui, by_diffusers, cells, mask_of

PROMISED = 1e-5
BLUR = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])


def blurred(mask):
    """A mask with soft edges of four pixels, on 8 bits."""
    kernel = (BLUR[:, None] * BLUR)[None, None] / BLUR.sum() ** 2
    return (torch.nn.functional.conv2d(mask[None], kernel, padding=2)[0] * 255).round() / 255


# Of a mask of 1×2 cells: what a user may draw instead.
MASKS = (
    ("of whole cells", MASK),
    ("of pixels, its edges through cells but not through their middles", mask_of(9, 20, 37, 41)),
    ("the same with soft edges, behind ThresholdMask", (blurred(mask_of(9, 20, 37, 41)) > 0.5).float()),
    ("the same with soft edges", blurred(mask_of(9, 20, 37, 41))),
    ("an edge through the middle of cells", mask_of(16, 16, 32, 40)),
    ("grey, 0.7", mask_of(16, 16, 32, 48, 0.7)),
)


def nodes_here():
    """`run_node` of the tests, for the nodes that an inpainting takes."""
    scheduler = importlib.import_module("..nodes.scheduler", __package__)
    known = {
        "ReferenceLatent": importlib.import_module("comfy_extras.nodes_edit_model").ReferenceLatent.execute,
        "KleinKitScheduler": scheduler.KleinKitScheduler.execute,
        "SetLatentNoiseMask": importlib.import_module("nodes").SetLatentNoiseMask().set_mask,
    }

    def run_node(name, **inputs):
        made = known[name](**inputs)
        return getattr(made, "result", made)

    return run_node


def main(arguments):
    enter()
    run_node, weights = nodes_here(), inpainting.tiny_weights()
    load = importlib.import_module("comfy.sd").load_diffusion_model_state_dict
    klein, pipeline = load(dict(weights), model_options={"dtype": torch.float32}), inpainting.pipeline_of(weights)

    def both(*case):
        return by_comfyui(run_node, klein, *case), by_diffusers(pipeline, *case)

    worst = 0.0
    print("largest difference in the latent, before the VAE:\n")
    print(f"| strength | references | {' | '.join(f'cfg {cfg:g}' for cfg in CFGS)} |\n|---|---|{'---|' * len(CFGS)}")
    for strength in STRENGTHS:
        for count, second in enumerate((None, SECOND), 1):
            row = [float(torch.sub(*both(PICTURE, MASK, strength, cfg, second)).abs().max()) for cfg in CFGS]
            worst = max(worst, *row)
            print(f"| {strength:g} | {count} | {' | '.join(f'{far:.1e}' for far in row)} |")
    print(f"\npromised: at most {PROMISED:g}; the largest: {worst:.1e}\n")
    print("strength 0.8, one reference, cfg 4, by the mask:\n")
    print("| mask | in cells of 0 and 1 | in cells between |\n|---|---|---|")
    for name, mask in MASKS:
        ours, theirs = both(PICTURE, mask, 0.8, 4.0)
        between = (cells(mask, PICTURE.shape) % 1 > 0).expand_as(ours)
        far = (ours - theirs).abs()
        print(f"| {name} | {far[~between].max():.1e} | {f'{far[between].max():.2g}' if between.any() else 'none'} |")
    return worst > PROMISED
