"""What a latent is, and what ComfyUI's samplers make of it."""

from collections.abc import Sequence
from typing import Any

import comfy.latent_formats
import comfy.sample
import torch

from ..checks import expected

CHANNELS = 128
OTHERS = {
    (4, 4): "Stable Diffusion 1.5 or SDXL",
    (4, 16): "FLUX.1, Stable Diffusion 3 or Z-Image",
    (5, 16): "a video model such as Wan 2.1 or HunyuanVideo, or of Qwen-Image",
    (5, 48): "Wan 2.2",
    (5, 128): "LTX-Video",
}
# The pixels of a cell of a latent, as ComfyUI's nodes for empty latents say them.
RATIO = "downscale_ratio_spacial"


class _Flux2:
    """All that ComfyUI asks of a model to adapt an empty latent to it."""

    @staticmethod
    def get_model_object(name: str) -> comfy.latent_formats.LatentFormat:
        return comfy.latent_formats.Flux2()


def sampled(latent: dict[str, Any]) -> torch.Tensor:
    """What ComfyUI's samplers make of a latent before a run of FLUX.2: they adapt an empty one of another model.

    One that does not say its scale, as nodes of other packs make it, gets the channels and keeps its cells.

    Args:
        latent: a LATENT of ComfyUI.
    Returns:
        [B, 128, H/16, W/16] of a FLUX.2 latent, and of an empty image latent; any other as given.
    """
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] == CHANNELS:
        return samples
    ratio = [] if latent.get(RATIO) is None else [latent[RATIO]]
    return comfy.sample.fix_empty_latent_channels(_Flux2, samples, *ratio)


def latent_tokens(shape: Sequence[int]) -> int:
    """The number of 16×16 cells of a FLUX.2 latent of `shape` [B, 128, H/16, W/16].

    Raises:
        ValueError: it is no FLUX.2 latent; the message says whose it looks like.
    """
    if len(shape) == 4 and shape[1] == CHANNELS:
        return shape[2] * shape[3]
    other = OTHERS.get((len(shape), shape[1]) if len(shape) > 1 else None, "another model")
    fits = f"a FLUX.2 latent [batch, {CHANNELS}, height/16, width/16], as of EmptyFlux2LatentImage or VAEEncode"
    raise ValueError(f"{expected('latent', fits, list(shape))} It looks like a latent of {other}.")
