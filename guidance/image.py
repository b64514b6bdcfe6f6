"""Guidance by the reference image and by the text, each with its own scale."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number
from .cfg import combine
from .rule import COMBINE, COND, UNCOND, ExtraPass, Rule, ScaledVelocities, Step

IMAGE = "image"


def image_cfg(cond: torch.Tensor, uncond: torch.Tensor, image: torch.Tensor, cfg: float, image_scale: float) -> torch.Tensor:
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


def has_references(conds: Iterable[dict]) -> bool:
    """Whether any of ComfyUI's conditionings has reference latents."""
    return any("ref_latents" in cond["model_conds"] for cond in conds)


def without_references(conds: list[dict]) -> list[dict]:
    """ComfyUI's conditionings without their reference latents.

    Raises:
        ValueError: none of them has any.
    """
    if not has_references(conds):
        raise ValueError(
            "The negative prompt has no reference latent, so there is nothing to compare with: take it from Klein References, "
            "or put ReferenceLatent behind it too."
        )
    return [
        {**cond, "model_conds": {k: v for k, v in cond["model_conds"].items() if not k.startswith("ref_latents")}}
        for cond in conds
    ]


@dataclass(frozen=True)
class ImageCFG(Rule):
    """Guide by the reference latents with a scale of their own."""

    node: ClassVar[str] = "KleinKitImageCFG"
    title: ClassVar[str] = "Klein Image CFG"
    order: ClassVar[int] = COMBINE
    image_scale: float = 1.0

    def __post_init__(self) -> None:
        number("image_scale", self.image_scale, 0.0, 100.0)

    @property
    def passes(self) -> tuple[ExtraPass, ...]:
        return (ExtraPass(IMAGE, of=UNCOND, conds=without_references),)

    def needs(self, step: Step) -> tuple[str, ...]:
        return (COND, UNCOND, IMAGE) if step.guided and self.image_scale != 1.0 else ()

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if v.uncond is None or IMAGE not in v.extra:
            return v
        return replace(v, guided=image_cfg(v.cond, v.uncond, v.extra[IMAGE], step.cfg, self.image_scale))
