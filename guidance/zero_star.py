"""CFG-Zero*: an optimised scale of the negative, and steps of zero velocity (arXiv 2503.18886)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number
from .rule import COND, NEGATIVE, UNCOND, Rule, ScaledVelocities, Step, each


def optimized_scale(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """α = ⟨v_c, v_u⟩ / ‖v_u‖² a sample, in float32 (arXiv 2503.18886; diffusers' `cfg_zero_star_scale`).

    Args:
        cond, uncond: [B, …] velocities.
    Returns:
        [B, 1, …] in `cond`'s dtype; 0 where v_u is 0.
    """
    c, u = cond.flatten(1).float(), uncond.flatten(1).float()
    # Dividing by ‖v_u‖ twice keeps small velocities exact where a square would underflow.
    norm = u.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    alpha = (c * (u / norm)).sum(dim=1, keepdim=True) / norm
    return each(alpha.to(cond.dtype), cond)


@dataclass(frozen=True)
class CFGZeroStar(Rule):
    """v = αv_u + w (v_c − αv_u); v = 0, and no model call, in the first `zero_init_steps` steps."""

    node: ClassVar[str] = "KleinKitCFGZeroStar"
    title: ClassVar[str] = "Klein CFG-Zero*"
    order: ClassVar[int] = NEGATIVE
    optimized_scale: bool = True
    zero_init_steps: int = 0

    def __post_init__(self) -> None:
        number("zero_init_steps", self.zero_init_steps, 0, 10000)

    def decide(self, step: Step) -> Step:
        return replace(step, zero=True) if step.index < self.zero_init_steps else step

    def needs(self, step: Step) -> tuple[str, ...]:
        return (COND, UNCOND) if self.optimized_scale and step.guided and step.cfg != 1.0 else ()

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        if velocities.uncond is None or not self.needs(step):
            return velocities
        alpha = optimized_scale(velocities.cond, velocities.uncond)
        return replace(velocities, uncond=velocities.uncond * alpha)
