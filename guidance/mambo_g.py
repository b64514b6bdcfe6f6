"""MAMBO-G: a cfg that falls where positive and negative are far apart (arXiv 2508.03442)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number
from .rule import COMBINE, Rule, ScaledVelocities, Step, precise


def damping(cond: torch.Tensor, uncond: torch.Tensor, alpha: float) -> torch.Tensor:
    """exp(−α ‖v_c − v_u‖ / ‖v_u‖) a sample (arXiv 2508.03442; diffusers' `mambo_guidance`).

    Args:
        cond, uncond: [B, …] velocities.
        alpha: α; 0 damps nothing.
    Returns:
        [B, 1, …] in `cond`'s dtype, 0 to 1; 0 where v_u alone is 0, 1 where both are.
    """
    dims = tuple(range(1, cond.ndim))
    far, norm = (torch.linalg.vector_norm(v, dim=dims, keepdim=True, dtype=precise(v.device)) for v in (cond - uncond, uncond))
    ratio = torch.where(far > 0, far / norm, torch.zeros_like(far))
    return torch.exp(-alpha * ratio).to(cond.dtype)


@dataclass(frozen=True)
class MamboG(Rule):
    """v = v_u + w' (v_c − v_u), w' = 1 + (w − 1) exp(−α ‖v_c − v_u‖ / ‖v_u‖)."""

    node: ClassVar[str] = "KleinKitMAMBOG"
    title: ClassVar[str] = "Klein MAMBO-G"
    order: ClassVar[int] = COMBINE
    alpha: float = 8.0

    def __post_init__(self) -> None:
        number("alpha", self.alpha, 0.0, 100.0)

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if v.uncond is None or not step.combines or self.alpha == 0.0:
            return v
        excess = (step.cfg - 1.0) * damping(v.cond, v.uncond, self.alpha)
        return replace(v, guided=v.cond + excess * (v.cond - v.uncond))
