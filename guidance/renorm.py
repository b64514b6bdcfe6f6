"""The guided velocity brought back to the norm of the positive one."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number, one_of
from .rule import COND, RENORM, Rule, ScaledVelocities, Step, precise

# The dimensions of [B, C, …] that one norm spans: a sample, all channels of a place, all places of a channel.
MODES = {
    "global": lambda ndim: tuple(range(1, ndim)),
    "token": lambda ndim: (1,),
    "channel": lambda ndim: tuple(range(2, ndim)),
}


def renorm(guided: torch.Tensor, cond: torch.Tensor, mode: str, strength: float, shrink_only: bool) -> torch.Tensor:
    """v scaled to ‖v_c‖ a sample, a token or a channel, blended by `strength` (Lumina-Image 2.0, arXiv 2503.21758).

    Args:
        guided, cond: [B, C, …] velocities.
        mode: "global", "token" or "channel".
        strength: 0 leaves v as it is, 1 gives it v_c's norm.
        shrink_only: never enlarge.
    Returns:
        [B, C, …]; v where its norm is 0.
    """
    dims = MODES[mode](guided.ndim)
    norm, target = (torch.linalg.vector_norm(v, dim=dims, keepdim=True, dtype=precise(v.device)) for v in (guided, cond))
    factor = torch.where(norm > 0, target / norm, torch.ones_like(norm))
    if shrink_only:
        factor = factor.clamp_max(1.0)
    return guided * (1.0 + strength * (factor - 1.0)).to(guided.dtype)


@dataclass(frozen=True)
class Renorm(Rule):
    """Keep the guided velocity as large as the positive one."""

    node: ClassVar[str] = "KleinKitRenorm"
    title: ClassVar[str] = "Klein Renorm"
    order: ClassVar[int] = RENORM
    mode: str = "global"
    strength: float = 1.0
    shrink_only: bool = True

    def __post_init__(self) -> None:
        one_of("mode", MODES, self.mode)
        number("strength", self.strength, 0.0, 1.0)

    def needs(self, step: Step) -> tuple[str, ...]:
        return (COND,) if step.guided and self.strength > 0.0 else ()

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if self.strength == 0.0 or v.guided is None or v.guided is v.cond:
            return v
        return replace(v, guided=renorm(v.guided, v.cond, self.mode, self.strength, self.shrink_only))
