"""Guidance along the arc between the two predictions, instead of the line."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .rule import COMBINE, Rule, ScaledVelocities, Step, precise

# Below this sine the arc is the line, to every digit that float32 has.
SMALLEST_SINE = 1e-7


def slerp_weights(theta: torch.Tensor, cfg: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights sin(wθ)/sin θ of v_c and sin((1−w)θ)/sin θ of v_u; w and 1 − w as θ → 0, and at π, where no arc is.

    Source: spherical interpolation (Shoemake 1985), extrapolated beyond w = 1.

    Args:
        theta: the angle in radians, a tensor of any shape.
        cfg: w.
    Returns:
        Two tensors like `theta`.
    """
    sin = theta.sin()
    flat = sin < SMALLEST_SINE
    safe = torch.where(flat, torch.ones_like(sin), sin)
    line = torch.full_like(sin, cfg)
    return (
        torch.where(flat, line, (cfg * theta).sin() / safe),
        torch.where(flat, 1.0 - line, ((1.0 - cfg) * theta).sin() / safe),
    )


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The angle between two velocities a sample, by Kahan's formula, which is exact for small angles too.

    Args:
        a, b: [B, …].
    Returns:
        [B], in radians; 0 where one of the two is 0.
    """
    a, b = (torch.nn.functional.normalize(t.flatten(1).to(precise(a.device)), dim=1) for t in (a, b))
    theta = 2.0 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
    return torch.where(a.any(dim=1) & b.any(dim=1), theta, torch.zeros_like(theta))


def slerp(cond: torch.Tensor, uncond: torch.Tensor, cfg: float) -> torch.Tensor:
    """sin(wθ)/sin θ · v_c + sin((1−w)θ)/sin θ · v_u, θ the angle between them a sample.

    Args:
        cond, uncond: [B, …] velocities.
        cfg: w.
    Returns:
        [B, …] in `cond`'s dtype; plain CFG where there is no angle.
    """
    weights = slerp_weights(angle(cond, uncond), cfg)
    of_cond, of_uncond = (w.to(cond.dtype).reshape(-1, *[1] * (cond.ndim - 1)) for w in weights)
    return of_cond * cond + of_uncond * uncond


@dataclass(frozen=True)
class Slerp(Rule):
    """Combine positive and negative along the arc between them."""

    node: ClassVar[str] = "KleinKitSlerpCFG"
    title: ClassVar[str] = "Klein Slerp CFG"
    order: ClassVar[int] = COMBINE

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        if velocities.uncond is None or not step.combines:
            return velocities
        return replace(velocities, guided=slerp(velocities.cond, velocities.uncond, step.cfg))
