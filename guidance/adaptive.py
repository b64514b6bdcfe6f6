"""Guidance that ends by itself once it no longer changes the direction (Adaptive Guidance, arXiv 2312.12487)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number
from .rule import ADAPTIVE, Rule, ScaledVelocities, Step


def cosine(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """cos(v_c, v_u) of each picture, in float32.

    Args:
        cond, uncond: [B, …] velocities.
    Returns:
        [B].
    """
    return torch.nn.functional.cosine_similarity(cond.flatten(1).float(), uncond.flatten(1).float(), dim=1)


@dataclass(frozen=True)
class Adaptive(Rule):
    """From the step after cos(v_c, v_u) ≥ threshold, a picture's steps are unguided.

    Each picture of a batch decides for itself, as it would alone. The negative's pass is saved once all have decided.
    """

    node: ClassVar[str] = "KleinKitAdaptiveGuidance"
    title: ClassVar[str] = "Klein Adaptive Guidance"
    order: ClassVar[int] = ADAPTIVE
    threshold: float = 0.99

    def __post_init__(self) -> None:
        number("threshold", self.threshold, -1.0, 1.0)

    def decide(self, step: Step) -> Step:
        return step.without_guidance() if step.observed.get(self.node, -2.0) >= self.threshold else step

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if v.uncond is None or not step.guided:
            return v
        if memory.get("index") != step.index:
            memory |= {"index": step.index, "decided": memory.get("reached")}
        decided, reached = memory["decided"], cosine(v.cond, v.uncond) >= self.threshold
        memory["reached"] = reached if decided is None else reached | decided
        if decided is None or len(decided) == 1:
            return v
        return replace(v, unguided=decided)

    def observe(self, velocities: ScaledVelocities, memory: dict[str, Any]) -> torch.Tensor | None:
        if velocities.uncond is None:
            return None
        cosines = cosine(velocities.cond, velocities.uncond)
        decided = memory.get("decided")
        return (cosines if decided is None else torch.where(decided, torch.ones_like(cosines), cosines)).min()
