"""Guidance along the arc between the two predictions, instead of the line."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number
from .rule import COMBINE, Rule, ScaledVelocities, Step, each, precise

# Below this sine the arc is the line, to every digit that float32 has.
SMALLEST_SINE = 1e-7


def slerp_weights(theta: torch.Tensor, cfg: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights sin(wθ)/sin θ of v_c and sin((1−w)θ)/sin θ of v_u; w and 1 − w as θ → 0, and at π, where no arc is.

    Source: spherical interpolation (Shoemake 1985), extrapolated beyond w = 1.

    Args:
        theta: the angle in radians, a tensor of any shape.
        cfg: w, one or like `theta`.
    Returns:
        Two tensors like `theta`.
    """
    sin = theta.sin()
    flat = sin < SMALLEST_SINE
    safe = torch.where(flat, torch.ones_like(sin), sin)
    line = torch.zeros_like(sin) + cfg
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


def capped(theta: torch.Tensor, cfg: float, cap: float) -> torch.Tensor:
    """w, or what of it turns v_c by `cap` beyond itself where (w − 1)θ is more.

    Source: Angle-Domain Guidance, arXiv 2506.11039, by its authors' code (github.com/jinc7461/ADG), whose cap is 60°.

    Args:
        theta: the angle in radians, [B].
        cfg: w.
        cap: in degrees.
    Returns:
        [B].
    """
    most = math.radians(cap)
    turn = (cfg - 1.0) * theta
    return torch.where(turn.abs() > most, 1.0 + math.copysign(most, cfg - 1.0) / theta, cfg)


def slerp(cond: torch.Tensor, uncond: torch.Tensor, cfg: float, cap: float = 0.0) -> torch.Tensor:
    """sin(wθ)/sin θ · v_c + sin((1−w)θ)/sin θ · v_u, θ the angle between them a sample.

    Args:
        cond, uncond: [B, …] velocities.
        cfg: w.
        cap: the largest angle in degrees by which v_c is turned, (w − 1)θ; 0 is none.
    Returns:
        [B, …] in `cond`'s dtype; plain CFG where there is no angle.
    """
    theta = angle(cond, uncond)
    weights = slerp_weights(theta, capped(theta, cfg, cap) if cap else cfg)
    of_cond, of_uncond = (each(w.to(cond.dtype), cond) for w in weights)
    return of_cond * cond + of_uncond * uncond


@dataclass(frozen=True)
class Slerp(Rule):
    """Combine positive and negative along the arc between them, no further than `cap` degrees beyond the positive.

    Angle-Domain Guidance (arXiv 2506.11039) caps the same angle, but turns in x0, and towards what v_c has beside v_u: alike
    for small angles.
    """

    node: ClassVar[str] = "KleinKitSlerpCFG"
    title: ClassVar[str] = "Klein Slerp CFG"
    order: ClassVar[int] = COMBINE
    cap: float = 0.0

    def __post_init__(self) -> None:
        number("cap", self.cap, 0.0, 180.0)

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        if velocities.uncond is None or not step.combines:
            return velocities
        return replace(velocities, guided=slerp(velocities.cond, velocities.uncond, step.cfg, self.cap))
