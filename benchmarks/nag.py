"""Klein NAG against a plain step at cfg 1 and ComfyUI's Normalized Attention Guidance: 4096 + 512 tokens, torch's attention.

One double and one single block of Klein 4B's width: the ratio is that of a block, and hardly another for all 25. By the count
of multiplications it is 1.13. A step takes half a minute on two cores.
"""

import importlib

from ..harness.inside import enter
from ..nano.in_comfyui import random_klein
from .guidance import attention_as_on_a_gpu, runner
from .timing import side_by_side

HEADS, SIDE, ROUNDS = 24, 64, 2
SETTINGS = 5.0, 2.5, 0.25
PROMISED = 1.35


def main(arguments):
    enter()
    ours = importlib.import_module("..nodes.guidance", __package__).KleinKitNAG
    theirs = importlib.import_module("comfy_extras.nodes_nag").NAGuidance
    klein = random_klein(double_blocks=1, single_blocks=1, heads=HEADS)
    scale, tau, alpha = SETTINGS
    plain = runner(klein, 1.0, 1, SIDE)
    nag = runner(ours.execute(klein, scale, tau, alpha, 0.0, 1.0)[0], 1.0, 1, SIDE)
    core = runner(theirs.execute(klein, scale, alpha, tau)[0], 1.0, 1, SIDE)
    attention_as_on_a_gpu()
    mine, once = side_by_side("Klein NAG", nag, plain, ROUNDS, "plain cfg 1")
    print(f"  promised: at most {PROMISED}", flush=True)
    side_by_side("Klein NAG", nag, core, ROUNDS, "NAGuidance")
    return mine / once > PROMISED
