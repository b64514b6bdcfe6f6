"""References: pictures as latents, behind the prompts. All by ComfyUI's own nodes, so that they are what those make."""

from typing import Any

import torch
from comfy.sd import VAE
from comfy.utils import ProgressBar

from ..checks import expected, in_node, sentence
from ..pictures.reference import GRID, in_colour, prepare, prepared_size, scaled_size
from .latent import CHANNELS
from .native import call

# As many as FLUX.2 and FLUX 3 are made for.
MOST = 10
Latent = dict[str, Any]


def encoded(
    vae: VAE,
    pictures: list[tuple[str, torch.Tensor]],
    most: int | None,
    size: tuple[int, int] | None,
    mask: torch.Tensor | None,
) -> tuple[list[Latent], Latent, int, int]:
    """The references of pictures, and the latent that a run begins with.

    Args:
        vae: FLUX.2's.
        pictures: `(name of the input, IMAGE [B, H, W, C])`; each picture of a batch is one reference.
        most: the cap of a picture's pixels; None keeps its size.
        size: width and height of the latent in pixels; None takes those of the first reference.
        mask: [B, H, W], where the first picture is made anew, or None.
    Returns:
        the references as LATENTs, the LATENT to sample, its width and height in pixels.
    Raises:
        ValueError: no picture or too many, one too small for a token, a mask for a latent of another size, another VAE.
    """
    for name, batch in pictures:
        if not (isinstance(batch, torch.Tensor) and batch.ndim == 4):
            raise expected(f"images.{name}", "an IMAGE", batch)
    each = [(name, in_colour(picture)) for name, batch in pictures for picture in batch]
    if not 0 < len(each) <= MOST:
        raise ValueError(sentence("images", f"1 to {MOST} pictures", f"got {len(each)}"))
    if mask is not None and size is not None:
        raise ValueError("A `mask` belongs to the first picture: set `latent_from` to first picture, or disconnect `mask`.")
    for name, picture in each:
        with in_node(f"`images.{name}`"):
            prepared_size(picture.shape[1], picture.shape[0], most)
    bar = ProgressBar(len(each))
    references = []
    for _, picture in each:
        pixels = prepare(picture, scaled_size(picture.shape[1], picture.shape[0], most))
        latent = call("VAEEncode", vae=vae, pixels=pixels[None])
        check_vae(latent["samples"], pixels)
        references.append(latent)
        bar.update(1)
    first = each[0][1]
    width, height = size or prepared_size(first.shape[1], first.shape[0], most)
    if mask is None:
        made = call("EmptyFlux2LatentImage", width=width, height=height, batch_size=1)
    else:
        scaled = scaled_size(first.shape[1], first.shape[0], most)
        masks = torch.stack([prepare(one, scaled) for one in mask.reshape(-1, *mask.shape[-2:])])
        made = call("SetLatentNoiseMask", samples=references[0], mask=masks)
    return references, made, width // GRID * GRID, height // GRID * GRID


def check_vae(samples: torch.Tensor, pixels: torch.Tensor) -> None:
    """Check that a VAE made a FLUX.2 latent of a picture [h, w, 3].

    Raises:
        ValueError: it is another model's.
    """
    height, width, _ = pixels.shape
    if tuple(samples.shape) != (1, CHANNELS, height // GRID, width // GRID):
        raise ValueError(sentence("vae", "FLUX.2's (FLUX 3 has the same)", f"it makes latents {list(samples.shape)}"))


def referring(conditioning: list, references: list[Latent]) -> list:
    """A CONDITIONING with references, by a chain of ComfyUI's ReferenceLatent."""
    for latent in references:
        conditioning = call("ReferenceLatent", conditioning=conditioning, latent=latent)
    return conditioning
