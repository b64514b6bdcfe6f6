"""How a picture becomes a reference: its size, and its pixels.

As in diffusers' Klein pipelines (`Flux2KleinPipeline.__call__` and `Flux2ImageProcessor`): a picture above the cap is scaled
down to it by Lanczos on 8 bits a colour, then it is cropped to whole tokens around its middle. A smaller one is never enlarged.
"""

import math

import numpy as np
import torch
from PIL import Image

# The side of a token in pixels.
GRID = 16
# diffusers' cap, and what ComfyUI's nodes mean by a megapixel.
MEGAPIXEL = 1024 * 1024


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

    Raises:
        ValueError: nothing is left of a side.
    """
    scaled = scaled_size(width, height, most)
    if min(scaled) >= GRID:
        return scaled[0] // GRID * GRID, scaled[1] // GRID * GRID
    became = "" if scaled == (width, height) else f", which the cap on its pixels makes {scaled[0]} × {scaled[1]}"
    raise ValueError(
        f"Expected a picture of at least {GRID} × {GRID} pixels, but got {width} × {height}{became}; crop it, or scale it up."
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
        eight_bits = (pixels.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
        resized = Image.fromarray(eight_bits.numpy()).resize(scaled, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(resized)).float() / 255
    left, top = (width % GRID) // 2, (height % GRID) // 2
    return pixels[top : top + height // GRID * GRID, left : left + width // GRID * GRID]


def in_colour(pixels: torch.Tensor) -> torch.Tensor:
    """Three channels of a picture [..., C]: grey becomes colour, an alpha channel is left out."""
    return pixels[..., :1].expand(*pixels.shape[:-1], 3) if pixels.shape[-1] < 3 else pixels[..., :3]
