"""The part of a picture around a mask, enlarged to be made anew, and back.

As diffusers' `padding_mask_crop`: `VaeImageProcessor.get_crop_region`, its resize modes `fill` and `crop`, and `apply_overlay`.
"""

from typing import NamedTuple

import torch
from PIL import Image

from ..checks import sentence
from .pixels import as_picture, as_pixels

Box = tuple[int, int, int, int]
# A picture of a shape of which less would be seen is none of the part, and to scale it would take gigabytes.
LEAST_SEEN = 1 / 16


class Crop(NamedTuple):
    """What a part was cut out of: pictures [B, H, W, 3], masks [1 or B, H, W], and the box in pixels."""

    pictures: torch.Tensor
    masks: torch.Tensor
    box: Box


def spread(low: int, high: int, by: int, limit: int) -> tuple[int, int]:
    """A range made longer on both sides, and moved to lie within 0 and `limit`."""
    low, high = low - by // 2, high + by - by // 2
    over = max(high - limit, 0)
    low, high = low - over, high - over
    return max(low, 0), min(high + max(-low, 0), limit)


def region(mask: torch.Tensor, width: int, height: int, padding: int) -> Box:
    """The box around all that is masked, with padding, of the shape that will be made.

    Args:
        mask: [H, W]; what is above 0 counts.
        width, height: the shape in which the part will be made.
        padding: pixels on each side, as far as there are any.
    Returns:
        `(left, top, right, bottom)` in pixels of the mask.
    Raises:
        ValueError: nothing is masked.
    """
    if not mask.any():
        raise ValueError(sentence("mask", "white where the picture is to change", "nothing of it is masked: paint a mask"))
    rows, columns = (mask.any(dim=dim).nonzero().flatten() for dim in (1, 0))
    (top, bottom), (left, right) = (
        (max(int(found[0]) - padding, 0), min(int(found[-1]) + 1 + padding, size))
        for found, size in zip((rows, columns), mask.shape)
    )
    across, down = right - left, bottom - top
    if across / down > width / height:
        top, bottom = spread(top, bottom, int(across / (width / height) - down), mask.shape[0])
    else:
        left, right = spread(left, right, int(down * (width / height) - across), mask.shape[1])
    return left, top, right, bottom


def _fitted(size: tuple[int, int], width: int, height: int, cover: bool) -> tuple[int, int]:
    """A size scaled until it fits into width and height, or covers them."""
    across, down = size
    same_width = (width / height < across / down) != cover
    return (width, down * width // across) if same_width else (across * height // down, height)


def _pasted(pixels: torch.Tensor, width: int, height: int, cover: bool) -> tuple[Image.Image, Image.Image, int, int]:
    """Pixels scaled by Lanczos and put into the middle of a size: `(the size, the scaled, left, top)`."""
    picture = as_picture(pixels)
    scaled = picture.resize(_fitted(picture.size, width, height, cover), Image.Resampling.LANCZOS)
    left, top = width // 2 - scaled.width // 2, height // 2 - scaled.height // 2
    whole = Image.new(scaled.mode, (width, height))
    whole.paste(scaled, (left, top))
    return whole, scaled, left, top


def filling(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Pixels scaled to fit into a size; where they are too narrow for it, their border is repeated.

    Args:
        pixels: [H, W, 3] or [H, W], from 0 to 1.
    Returns:
        [height, width, 3] or [height, width].
    """
    whole, scaled, left, top = _pasted(pixels, width, height, cover=False)
    if left > 0:
        for place, edge in ((0, 0), (left + scaled.width, scaled.width)):
            whole.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (place, 0))
    if top > 0:
        for place, edge in ((0, 0), (top + scaled.height, scaled.height)):
            whole.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, place))
    return as_pixels(whole)


def covering(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Pixels [H, W, 3] scaled to cover a size, of which the middle is kept: what `filling` repeated is cut off.

    Raises:
        ValueError: they have another shape than the size by far.
    """
    down, across, _ = pixels.shape
    if min(across * height, down * width) < LEAST_SEEN * max(across * height, down * width):
        raise ValueError(sentence("image", f"of about the shape of the part, {width} × {height}", f"got {across} × {down}"))
    return as_pixels(_pasted(pixels, width, height, cover=True)[0])
