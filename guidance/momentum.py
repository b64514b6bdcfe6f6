"""Momentum Guidance: away from a running mean of the velocities of the steps before. It costs no pass."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number, steps_in_range
from .rule import MOMENTUM, Rule, ScaledVelocities, Step


def running_mean(mean: torch.Tensor, velocity: torch.Tensor, beta: float) -> torch.Tensor:
    """m ← (1 − β) v + β m, the mean that the next step is led away from.

    Source: Momentum Guidance, arXiv 2602.20360, algorithm 1, where m begins as the first velocity.

    Args:
        mean, velocity: m and v of this step, [B, …]; v is not the one that guidance has led away.
        beta: β, how much of the mean stays; at 0 it is the velocity of the step before.
    Returns:
        [B, …].
    """
    return torch.lerp(velocity, mean, beta)


@dataclass(frozen=True)
class Momentum(Rule):
    """v += alpha (v − m) while start·n ≤ i < end·n, m the running mean of v over the steps before.

    A sampler may ask several times in a step: m stays, and the first answer is the step's.
    """

    node: ClassVar[str] = "KleinKitMomentum"
    title: ClassVar[str] = "Klein Momentum Guidance"
    order: ClassVar[int] = MOMENTUM
    alpha: float = 0.5
    beta: float = 0.6
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)
        number("alpha", self.alpha, 0.0, 10.0)
        number("beta", self.beta, 0.0, 1.0)

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        # At σ 0 the picture has no noise left, and no velocity is known.
        if self.alpha == 0.0 or v.guided is None or step.sigma == 0.0:
            return v
        if memory.get("step") != step.index:
            # Steps differ in σ, so the mean is one of velocities, not of σ·v.
            first = v.guided.float() / step.sigma
            earlier = memory.get("first")
            memory["mean"] = running_mean(memory.get("mean", earlier), earlier, self.beta) if earlier is not None else first
            memory |= {"first": first, "step": step.index}
        # In the first step of all there is nothing to be led away from.
        if memory["mean"] is memory["first"] or step.index not in steps_in_range(self.start, self.end, step.steps):
            return v
        away = v.guided - (memory["mean"] * step.sigma).to(v.guided.dtype)
        return replace(v, guided=v.guided + self.alpha * away)
