"""Guidance without its pass: what the negative differed by in earlier steps takes the place of a pass of its own.

A guided step keeps σ·(v_c − v) for the negative and for the other passes of its prompt, and a later step rebuilds v from it.
In v the difference stays as it was, or goes on in a straight line over σ. Neighbours are FasterCache (arXiv 2410.19355) and
the linear variant of Adaptive Guidance (arXiv 2312.12487).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .rule import UNCOND, ScaledVelocities, Step

EXTRAPOLATE = "extrapolate"
KEPT = "kept"
SMALLEST_SIGMA = 1e-6


@dataclass(frozen=True)
class Kept:
    """What one guided step leaves.

    Attributes:
        sigma: of that step for each picture, [B, 1, …] float32.
        differences: σ·(v_c − v), [B, …], by the name of the pass.
    """

    sigma: torch.Tensor
    differences: Mapping[str, torch.Tensor]

    def where(self, rows: torch.Tensor, other: "Kept") -> "Kept":
        """The other, and for some pictures this one. `rows`: [B, 1, …] booleans."""
        differences = {name: torch.where(rows, self.differences.get(name, new), new) for name, new in other.differences.items()}
        return Kept(torch.where(rows, self.sigma, other.sigma), differences)


def keep(velocities: ScaledVelocities, step: Step, memory: dict[str, Any], rows: torch.Tensor | None = None) -> None:
    """Keep what the passes of the negative's prompt differ by in a guided step, and what they did in the guided step before.

    Args:
        velocities: of the step, with the negative.
        step: of the plan. Of several model calls in a step the last counts.
        memory: of the rule.
        rows: [B, 1, …], the pictures that are not guided in this step and so keep what they have; None where all are.
    """
    v = velocities
    predictions = {UNCOND: v.uncond, **v.extra}
    differences = {name: v.cond - one for name in step.negatives if (one := predictions.get(name)) is not None}
    # At σ 0 all differences are 0, and none is to be divided by it.
    sigma = max(step.sigma, SMALLEST_SIGMA)
    sigma = torch.full((len(v.cond), *[1] * (v.cond.ndim - 1)), sigma, dtype=torch.float32, device=v.cond.device)
    new = Kept(sigma, differences)
    if KEPT not in memory:
        memory[KEPT] = step.index, new, new
        return
    index, older, newer = memory[KEPT]
    if rows is not None:
        new = newer.where(rows, new)
    if index != step.index:
        older = newer if rows is None else older.where(rows, newer)
    memory[KEPT] = step.index, older, new


def rebuilt(
    velocities: ScaledVelocities, step: Step, memory: dict[str, Any], rows: torch.Tensor | None = None
) -> ScaledVelocities:
    """The predictions with those of the negative's prompt made of what was kept.

    Args:
        velocities: of the step.
        step: of the plan: its `negatives` are rebuilt, as its `unguided` says.
        memory: of the rule, in which `keep` kept something.
        rows: [B, 1, …], the pictures for which this counts; None where it does for all.
    """
    v, (_, older, newer) = velocities, memory[KEPT]
    sigma = step.sigma / newer.sigma

    def difference(name: str) -> torch.Tensor:
        last = newer.differences[name]
        if step.unguided != EXTRAPOLATE or name not in older.differences:
            return last * sigma.to(last.dtype)
        apart = newer.sigma - older.sigma
        safe = torch.where(apart == 0.0, torch.ones_like(apart), apart)
        ahead = torch.where(apart == 0.0, torch.zeros_like(apart), (step.sigma - newer.sigma) / safe)
        before = older.differences[name]
        of_last, of_before = sigma * (1.0 + ahead), step.sigma / older.sigma * ahead
        return last * of_last.to(last.dtype) - before * of_before.to(last.dtype)

    made = {name: v.cond - difference(name) for name in step.negatives}
    if rows is not None:
        ran = {UNCOND: v.uncond, **v.extra}
        made = {name: torch.where(rows, one, of) for name, one in made.items() if (of := ran.get(name)) is not None}
    uncond = made.pop(UNCOND, v.uncond)
    return replace(v, uncond=uncond, extra={**v.extra, **made})
