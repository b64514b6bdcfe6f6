"""References: pictures as latents, behind the prompts. ComfyUI's own nodes do it, so that the results are theirs."""

import logging
from typing import Any

import torch
from comfy.sd import VAE
from comfy.utils import ProgressBar, reshape_mask

from ..checks import in_node, sentence
from ..pictures.reference import GRID, check_count, in_colour, prepare, prepared_size, scaled_size
from .latent import CHANNELS
from .native import call

Latent = dict[str, Any]
# A picture and its size before the crop, in pixels.
Scaled = tuple[torch.Tensor, tuple[int, int]]


def pictures_of(images: dict[str, torch.Tensor], most: int | None) -> list[Scaled]:
    """The pictures of some inputs in their order, each of a batch by itself, with the sizes that they are scaled to.

    Args:
        images: `{input: IMAGE [B, H, W, C]}`.
        most: the cap on a picture's pixels; None keeps its size.
    Returns:
        `([H, W, 3], size)` of each.
    Raises:
        ValueError: no picture, too many, one that is too small or no numbers, or something else.
    """
    found = []
    for name, batch in images.items():
        coloured = in_colour(name, batch)
        height, width = coloured.shape[1:3]
        with in_node(f"`{name}`"):
            prepared_size(width, height, most)
        found += [(picture, scaled_size(width, height, most)) for picture in coloured]
    check_count(len(found))
    return found


def encoded(vae: VAE, pictures: list[Scaled]) -> list[Latent]:
    """The LATENT of each picture.

    Raises:
        ValueError: it is another model's VAE.
    """
    bar = ProgressBar(len(pictures))
    latents = []
    for picture, scaled in pictures:
        pixels = prepare(picture, scaled)
        latent = call("VAEEncode", vae=vae, pixels=pixels[None])
        height, width, _ = pixels.shape
        if tuple(latent["samples"].shape) != (1, CHANNELS, height // GRID, width // GRID):
            raise ValueError(sentence("vae", "FLUX.2's, such as flux2-vae", f"its latents are {list(latent['samples'].shape)}"))
        latents.append(latent)
        bar.update(1)
    return latents


def referring(conditioning: list, latents: list[Latent]) -> list:
    """A CONDITIONING with references, by a chain of ComfyUI's ReferenceLatent."""
    for latent in latents:
        conditioning = call("ReferenceLatent", conditioning=conditioning, latent=latent)
    return conditioning


def inpainting(latent: Latent, mask: torch.Tensor, scaled: tuple[int, int]) -> Latent:
    """A picture's LATENT of which a part is made anew, by ComfyUI's SetLatentNoiseMask.

    Args:
        latent: of the picture.
        mask: [B, H, W], 1 where it is made anew. One of another size than the picture's is stretched to it.
        scaled: the picture's size in pixels before the crop, which the mask follows.
    Raises:
        ValueError: there is no mask.
    """
    if not mask.numel():
        raise ValueError(sentence("mask", "one mask or more", "got none"))
    masks = torch.stack([prepare(one, scaled) for one in mask.float().reshape(-1, *mask.shape[-2:])])
    _, _, *grid = latent["samples"].shape
    if not reshape_mask(masks, (len(masks), 1, *grid)).any():
        logging.warning(
            "Klein References: The mask is black in the middle of every cell of 16 × 16 pixels, so nothing is made anew. "
            "Paint more of it, or disconnect it."
        )
    return call("SetLatentNoiseMask", samples=latent, mask=masks)


def empty(width: int, height: int) -> Latent:
    """The LATENT that a picture is made in, of a size in pixels, by ComfyUI's EmptyFlux2LatentImage."""
    return call("EmptyFlux2LatentImage", width=width, height=height, batch_size=1)
