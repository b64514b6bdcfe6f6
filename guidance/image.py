"""Guidance by the reference image and by the text, each with its own scale."""

from dataclasses import dataclass, replace
from typing import ClassVar

from ..checks import number
from .cfg import combine
from .rule import COMBINE, Rule


def image_cfg(cond, uncond, image, cfg, image_scale):
    """v(∅,∅) + s_i (v(img,∅) − v(∅,∅)) + w (v(img,txt) − v(img,∅)).

    Source: InstructPix2Pix, arXiv 2211.09800, eq. 3; STIV, arXiv 2412.07730; Open-Sora 2, arXiv 2503.09642.

    Args:
        cond: v(img, txt), [B, …]: the positive.
        uncond: v(img, ∅): the negative with the reference latents.
        image: v(∅, ∅): the negative without them.
        cfg: w, of the text.
        image_scale: s_i, of the image; 1 is plain CFG.
    Returns:
        [B, …].
    """
    return combine(uncond, image, image_scale) + (cond - uncond) * cfg


@dataclass(frozen=True)
class ImageCFG(Rule):
    """Guide by the reference latents with a scale of their own."""

    node: ClassVar[str] = "KleinKitImageCFG"
    order: ClassVar[int] = COMBINE
    image_scale: float = 1.0

    def __post_init__(self):
        number("image_scale", self.image_scale, 0.0, 100.0)

    def needs(self, step):
        return ("cond", "uncond", "image") if step.guided and self.image_scale != 1.0 else ()

    def transform(self, velocities, step):
        if velocities.image is None or velocities.uncond is None:
            return velocities
        v = velocities
        return replace(v, guided=image_cfg(v.cond, v.uncond, v.image, step.cfg, self.image_scale))
