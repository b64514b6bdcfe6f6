"""Guidance that ends by itself once it no longer changes the direction (Adaptive Guidance, arXiv 2312.12487)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..checks import number
from .rule import ADAPTIVE, Rule


def cosine(cond, uncond):
    """The smallest cos(v_c, v_u) of a batch, in float32.

    Args:
        cond, uncond: [B, …] velocities.
    Returns:
        A scalar tensor.
    """
    return torch.nn.functional.cosine_similarity(cond.flatten(1).float(), uncond.flatten(1).float(), dim=1).min()


@dataclass(frozen=True)
class Adaptive(Rule):
    """Once cos(v_c, v_u) ≥ threshold in the whole batch, the remaining steps are unguided."""

    node: ClassVar[str] = "KleinKitAdaptiveGuidance"
    order: ClassVar[int] = ADAPTIVE
    threshold: float = 0.99

    def __post_init__(self):
        number("threshold", self.threshold, -1.0, 1.0)

    def decide(self, step):
        return step.without_guidance() if step.observed.get(self.node, -2.0) >= self.threshold else step

    def observe(self, velocities):
        return None if velocities.uncond is None else cosine(velocities.cond, velocities.uncond)
