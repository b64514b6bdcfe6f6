"""Frequency-Decoupled Guidance: a scale for each band of frequencies of the picture (arXiv 2506.19713)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.nn.functional import avg_pool2d, interpolate, pad

from ..checks import expected, numbers_of
from .rule import COMBINE, Rule, ScaledVelocities, Step

MOST_BANDS = 8
# FLUX.2's latent has 32 channels; ComfyUI packs each 2×2 places of it into one of 128.
PACKED, PATCH = 128, 2


def unpacked(v: torch.Tensor) -> torch.Tensor:
    """A latent of FLUX.2 as the VAE sees it: [B, 128, h, w] → [B, 32, 2h, 2w], as diffusers' `_unpatchify_latents` does.

    Args:
        v: [B, C, …, h, w]; other channels than 128 stay as they are.
    """
    if v.ndim != 4 or v.shape[1] != PACKED:
        return v
    return torch.nn.functional.pixel_shuffle(v, PATCH)


def packed(v: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The way back of `unpacked`, to the shape of `like`."""
    return v if v.shape == like.shape else torch.nn.functional.pixel_unshuffle(v, PATCH)


def padded(image: torch.Tensor, right: int, bottom: int, left: int = 0, top: int = 0) -> torch.Tensor:
    """An image [N, C, H, W] with a border that mirrors it, or repeats its edge where a side is too short for a mirror."""
    for border, length in (((left, right, 0, 0), image.shape[-1]), ((0, 0, top, bottom), image.shape[-2])):
        if any(border):
            image = pad(image, border, "reflect" if max(border) < length else "replicate")
    return image


def blurred(image: torch.Tensor) -> torch.Tensor:
    """An image [N, C, H, W] under the 5×5 binomial filter of Burt and Adelson, as kornia's `filter2d` applies it.

    That filter is four times the mean of 2×2 places. A kernel would have to be brought to the device, which waits for it.
    """
    image = padded(image, 2, 2, 2, 2)
    for _ in range(4):
        image = avg_pool2d(image, 2, stride=1)
    return image


def smaller(image: torch.Tensor) -> torch.Tensor:
    """Half of each side (kornia's `pyrdown`)."""
    size = image.shape[-2] // 2, image.shape[-1] // 2
    return interpolate(blurred(image), size=size, mode="bilinear", align_corners=False)


def larger(image: torch.Tensor) -> torch.Tensor:
    """Twice each side (kornia's `pyrup`)."""
    size = image.shape[-2] * 2, image.shape[-1] * 2
    return blurred(interpolate(image, size=size, mode="bilinear", align_corners=False))


def laplacian_pyramid(image: torch.Tensor, bands: int) -> list[torch.Tensor]:
    """The bands of an image from its finest detail to what is left (kornia's `build_laplacian_pyramid`).

    As there, the image is mirrored at its right and bottom up to a power of two where its sides ask for it.

    Args:
        image: [N, C, H, W].
        bands: how many.
    Returns:
        list of [N, C, H', W'], each half as large as the one before.
    """
    height, width = image.shape[-2:]
    least = 1 << (bands - 1)
    if not (is_power_of_two(height) or is_power_of_two(width)) or height % least or width % least:
        image = padded(image, *(max(next_power_of_two(side), least) - side for side in (width, height)))
    pyramid = []
    for _ in range(bands - 1):
        below = smaller(image)
        pyramid.append(image - larger(below))
        image = below
    return [*pyramid, image]


def is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def joined(pyramid: list[torch.Tensor]) -> torch.Tensor:
    """The image of a pyramid (arXiv 2506.19713, algorithm 2)."""
    *bands, image = pyramid
    for band in reversed(bands):
        image = larger(image) + band
    return image


def weighted(v: torch.Tensor, shares: tuple[float, ...]) -> torch.Tensor:
    """Each band of frequencies of a latent times its share.

    Args:
        v: [B, C, …, h, w].
        shares: of the finest band first.
    Returns:
        [B, C, …, h, w].
    """
    spatial = unpacked(v)
    image = spatial.reshape(len(spatial), -1, *spatial.shape[-2:])
    pyramid = laplacian_pyramid(image, len(shares))
    changed = joined([share * band for share, band in zip(shares, pyramid)])
    return packed(changed[..., : image.shape[-2], : image.shape[-1]].reshape(spatial.shape), v)


def parse_shares(shares: str = "1, 0.44") -> tuple[float, ...]:
    """The shares of a text: numbers between commas, of the finest band first.

    Raises:
        ValueError: the text is not of that form.
    """
    try:
        return numbers_of(shares)
    except (AttributeError, ValueError):
        raise wrong_shares(shares) from None


def wrong_shares(shares: object) -> ValueError:
    return expected("shares", f"1 to {MOST_BANDS} numbers between 0 and 10, such as `1, 0.44`", shares)


@dataclass(frozen=True)
class FDG(Rule):
    """v = v_c + (w − 1) Σ s_k L_k(v_c − v_u), L_k a band of the Laplacian pyramid.

    The pyramid is linear, so this is diffusers' `FrequencyDecoupledGuidance`, which guides both predictions' bands, with the
    scales 1 + s_k (w − 1); and it is the same in x0 as in v. The bands are those of the unpacked latent, as the VAE sees it.

    Attributes:
        shares: s_k, of the finest band first; 1 is the step's cfg, 0 the positive alone. The paper advises the most for the
            finest: 10 and 5 for SDXL, which is cfg 10 and the shares 1 and 0.44.
    """

    node: ClassVar[str] = "KleinKitFDG"
    title: ClassVar[str] = "Klein FDG"
    order: ClassVar[int] = COMBINE
    shares: tuple[float, ...] = (1.0, 0.44)

    def __post_init__(self) -> None:
        fit = all(math.isfinite(share) and 0.0 <= share <= 10.0 for share in self.shares)
        if not (fit and 1 <= len(self.shares) <= MOST_BANDS):
            raise wrong_shares(self.shares)

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if v.uncond is None or not step.combines or set(self.shares) == {1.0}:
            return v
        return replace(v, guided=v.cond + (step.cfg - 1.0) * weighted(v.cond - v.uncond, self.shares))
