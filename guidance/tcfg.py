"""Tangential damping: the negative without what it does not share with the positive (TCFG, arXiv 2503.18137)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .rule import TANGENT, Rule, ScaledVelocities, Step, precise


def damped(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """v_u along the first right singular vector of the two predictions, a sample.

    The vectors lie in the plane of v_c and v_u, and so follow from three inner products: no decomposition of the whole
    pictures. Source: TCFG, arXiv 2503.18137, algorithm 1; diffusers' `TangentialClassifierFreeGuidance` by an SVD.

    Args:
        cond, uncond: [B, …] velocities.
    Returns:
        [B, …] in `uncond`'s dtype; v_u where no direction is the first, as where both are as long and at a right angle.
    """
    c, u = (v.flatten(1).to(precise(v.device)) for v in (cond, uncond))
    # Lengths near 1 have squares that neither overflow nor vanish.
    size = torch.maximum(c.abs().amax(dim=1, keepdim=True), u.abs().amax(dim=1, keepdim=True))
    c, u = (v / torch.where(size > 0, size, torch.ones_like(size)) for v in (c, u))
    cc, cu, uu = ((a * b).sum(dim=1, keepdim=True) for a, b in ((c, c), (c, u), (u, u)))
    # The matrix of the inner products has its first axis at half the angle of (cc − uu, 2 cu).
    cos, sin = cc - uu, 2.0 * cu
    radius = torch.hypot(cos, sin)
    flat = radius <= torch.finfo(radius.dtype).eps * (cc + uu)
    safe = torch.where(flat, torch.ones_like(radius), radius)
    along = 0.5 * (sin / safe * c + (1.0 - cos / safe) * u)
    return torch.where(flat, u, along).mul(size).to(uncond.dtype).reshape(uncond.shape)


@dataclass(frozen=True)
class TCFG(Rule):
    """Plain CFG, or another combination, with v_u along the first singular vector of v_c and v_u."""

    node: ClassVar[str] = "KleinKitTCFG"
    title: ClassVar[str] = "Klein TCFG"
    order: ClassVar[int] = TANGENT

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if v.uncond is None or not step.combines:
            return v
        return replace(v, uncond=damped(v.cond, v.uncond))
