"""How a picture becomes a reference: its size, and its pixels.

As in diffusers' Klein pipelines (`Flux2KleinPipeline.__call__` and `Flux2ImageProcessor`): a picture above the cap is scaled
down to it by Lanczos on 8 bits a colour, then it is cropped to whole tokens around its middle. None is enlarged.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from ..checks import expected, number, one_of, sentence
from .pixels import as_picture, as_pixels

# As many as FLUX.2 and FLUX 3 are made for.
MOST = 10
# The side of a token in pixels.
GRID = 16
# diffusers' cap, and what ComfyUI's nodes mean by a megapixel.
MEGAPIXEL = 1024 * 1024
# The inputs that each choice brings: their default, lowest and highest value.
Choices = Mapping[str, Mapping[str, tuple[float, float, float]]]
MEGAPIXELS, KEEP = "megapixels", "keep"
SIZES: Choices = {MEGAPIXELS: {"megapixels": (1.0, 0.01, 16.0)}, KEEP: {}}
FIRST, GIVEN = "first picture", "width and height"
LATENTS: Choices = {FIRST: {}, GIVEN: {"width": (1024, 16, 16384), "height": (1024, 16, 16384)}}


def chosen(name: str, choices: Choices, choice: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The values of the inputs that a choice brings, in their order; those that are left out have their defaults.

    Args:
        name: of the choice.
        choices: `SIZES` or `LATENTS`.
        choice: what was chosen.
        inputs: `{input: value}`, the names without that of the choice.
    Raises:
        ValueError: no such choice or input, or a value that does not fit.
    """
    one_of(name, choices, choice)
    brought = choices[choice]
    for key in inputs:
        one_of(f"input of {name}", brought, key)
    values = {key: inputs.get(key, default) for key, (default, _, _) in brought.items()}
    for key, (_, low, high) in brought.items():
        number(f"{name}.{key}", values[key], low, high)
    return list(values.values())


def most_pixels(choice: Any, inputs: Mapping[str, Any]) -> int | None:
    """The cap on a picture's pixels that the input `size` means, or None without one.

    Raises:
        ValueError: as of `chosen`.
    """
    megapixels = chosen("size", SIZES, choice, inputs)
    return int(megapixels[0] * MEGAPIXEL) if megapixels else None


def given_size(choice: Any, inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height in whole tokens that the input `latent_from` gives, or None: those of the first picture count.

    Raises:
        ValueError: as of `chosen`.
    """
    size = chosen("latent_from", LATENTS, choice, inputs)
    return (size[0] // GRID * GRID, size[1] // GRID * GRID) if size else None


def check_count(count: int) -> None:
    """Check that so many pictures can be references.

    Raises:
        ValueError: they cannot.
    """
    if not 0 < count <= MOST:
        raise ValueError(sentence("images", f"1 to {MOST} pictures, of which each of a batch is one", f"got {count}"))


def scaled_size(width: int, height: int, most: int | None) -> tuple[int, int]:
    """The size in pixels that a picture is scaled to, before the crop.

    Args:
        width, height: of the picture.
        most: cap of width · height; None keeps every size.
    """
    if most is None or width * height <= most:
        return width, height
    scale = math.sqrt(most / (width * height))
    return int(width * scale), int(height * scale)


def prepared_size(width: int, height: int, most: int | None) -> tuple[int, int]:
    """The size in pixels of the reference that a picture becomes: whole tokens.

    Args:
        width, height, most: as of `scaled_size`.
    Raises:
        ValueError: nothing is left of a side.
    """
    scaled = scaled_size(width, height, most)
    if min(scaled) >= GRID:
        return scaled[0] // GRID * GRID, scaled[1] // GRID * GRID
    became = (
        f", which a cap of {most / MEGAPIXEL:g} MP makes {scaled[0]} × {scaled[1]}"
        if most and scaled != (width, height)
        else ""
    )
    raise ValueError(
        f"Expected a picture of at least {GRID} × {GRID} pixels, but got {width} × {height}{became}: scale it up, or crop it."
    )


def prepare(pixels: torch.Tensor, scaled: tuple[int, int]) -> torch.Tensor:
    """A picture, or the mask of one, scaled and cropped.

    Args:
        pixels: [H, W, 3] of a picture or [H, W] of a mask, from 0 to 1.
        scaled: width and height before the crop, as of `scaled_size`.
    Returns:
        [h, w, 3] or [h, w], both sides multiples of 16. What needs no scaling keeps its values.
    """
    width, height = scaled
    if pixels.shape[:2] != (height, width):
        pixels = as_pixels(as_picture(pixels).resize(scaled, Image.Resampling.LANCZOS))
    left, top = (width % GRID) // 2, (height % GRID) // 2
    # A convolution rounds otherwise where the pixels lie otherwise in memory.
    return pixels[top : top + height // GRID * GRID, left : left + width // GRID * GRID].contiguous()


def check_finite(name: str, pixels: torch.Tensor) -> None:
    """Check that pictures or masks of an input hold numbers alone.

    Raises:
        ValueError: they do not.
    """
    if not pixels.isfinite().all():
        raise ValueError(sentence(name, "of finite numbers", "some are NaN or infinite: look at the node that it comes from"))


def in_colour(name: str, pixels: Any) -> torch.Tensor:
    """Three channels of pictures: grey becomes colour, an alpha channel is left out as ComfyUI's Load Image does.

    Args:
        name: of the input that they come from.
        pixels: IMAGE [B, H, W, C].
    Returns:
        [B, H, W, 3].
    Raises:
        ValueError: they are something else, or none, or not all are numbers.
    """
    if not (isinstance(pixels, torch.Tensor) and pixels.ndim == 4 and pixels.numel()):
        given = list(pixels.shape) if isinstance(pixels, torch.Tensor) else pixels
        raise expected(name, "an IMAGE [batch, height, width, channels]", given)
    colours = pixels[..., :1] if pixels.shape[-1] < 3 else pixels[..., :3]
    check_finite(name, colours)
    return colours.expand(*colours.shape[:-1], 3)
