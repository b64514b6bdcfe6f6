"""Guidance that ends by itself once it no longer changes the direction (Adaptive Guidance, arXiv 2312.12487)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import first_step, number
from .reuse import KEPT, keep, rebuilt
from .rule import ADAPTIVE, UNCOND, Rule, ScaledVelocities, Step, each


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

    Attributes:
        threshold: of the cosine.
        start: no picture decides before this share of the run's steps.
        every: from there on, after every so many steps one is guided and measured anew; 0 never.
    """

    node: ClassVar[str] = "KleinKitAdaptiveGuidance"
    title: ClassVar[str] = "Klein Adaptive Guidance"
    order: ClassVar[int] = ADAPTIVE
    threshold: float = 0.99
    start: float = 0.0
    every: int = 0

    def __post_init__(self) -> None:
        number("threshold", self.threshold, -1.0, 1.0)
        number("start", self.start, 0.0, 1.0)
        number("every", self.every, 0, 10000)

    @property
    def decides(self) -> bool:
        return self.threshold > -1.0

    def measures(self, step: Step) -> bool:
        """Whether what the step measures counts."""
        return step.index >= first_step(self.start, step.steps)

    def begins_anew(self, step: Step) -> bool:
        """Whether what was decided before the step counts no longer."""
        since = step.index - first_step(self.start, step.steps)
        return since < 0 or (self.every > 0 and since % (self.every + 1) == 0)

    def decide(self, step: Step) -> Step:
        if self.begins_anew(step):
            return step
        # Every cosine reaches −1: that is known before the run.
        certain = not self.decides and UNCOND in step.known and step.index > first_step(self.start, step.steps)
        return step.without_guidance() if certain or step.observed.get(self.node, -2.0) >= self.threshold else step

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if v.uncond is None or not step.guided:
            return v
        if step.reuse:
            return rebuilt(v, step, memory) if KEPT in memory else v
        decisions = memory.setdefault("decisions", {})
        # Some samplers go back to a step after the next one (heunpp2): what was decided for it stays.
        decided = decisions.setdefault(step.index, None if self.begins_anew(step) else memory.get("reached"))
        memory |= {"decided": decided, "measures": self.measures(step)}
        if memory["measures"]:
            reached = cosine(v.cond, v.uncond) >= self.threshold
            memory["reached"] = reached if decided is None else reached | decided
        # A picture that is alone needs no memory of its own: Klein CFG's is the same.
        reuses = step.unguided_cfg is None and UNCOND in step.negatives and len(v.cond) > 1
        if decided is None or len(decided) == 1 or (reuses and KEPT not in memory):
            if reuses:
                keep(v, step, memory)
            return v
        if reuses:
            rows = each(decided, v.cond)
            mixed = rebuilt(v, step, memory, rows)
            keep(v, step, memory, rows)
            return mixed
        return replace(v, unguided=decided)

    def observe(self, velocities: ScaledVelocities, memory: dict[str, Any]) -> torch.Tensor | None:
        if velocities.uncond is None or not memory.get("measures"):
            return None
        cosines = cosine(velocities.cond, velocities.uncond)
        decided = memory.get("decided")
        return (cosines if decided is None else torch.where(decided, torch.ones_like(cosines), cosines)).min()
