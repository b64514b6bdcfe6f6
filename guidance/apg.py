"""Adaptive Projected Guidance: less of the part that only makes the prediction longer, a limit, and a running average."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number, one_of, steps_in_range
from .rule import COMBINE, Rule, ScaledVelocities, Step, each, precise

SPACES = ("denoised", "velocity")


def projected(difference: torch.Tensor, onto: torch.Tensor, eta: float) -> torch.Tensor:
    """Δ⊥ + η Δ∥ of the parts of Δ across and along a prediction, a sample (arXiv 2410.02416, algorithm 1).

    Args:
        difference: Δ, [B, …].
        onto: the prediction, [B, …].
        eta: η; 1 leaves Δ as it is, 0 takes its part along the prediction away.
    Returns:
        [B, …] in `difference`'s dtype; Δ where the prediction is 0.
    """
    delta, unit = (t.flatten(1).to(precise(t.device)) for t in (difference, onto))
    unit = torch.nn.functional.normalize(unit, dim=1)
    along = (delta * unit).sum(dim=1, keepdim=True) * unit
    return (delta + (eta - 1.0) * along).to(difference.dtype).reshape(difference.shape)


def shortened(difference: torch.Tensor, norm_threshold: float) -> torch.Tensor:
    """Δ no longer than r: min(1, r/‖Δ‖) Δ, a sample (arXiv 2410.02416).

    Args:
        difference: Δ, [B, …].
        norm_threshold: r; 0 is no limit.
    Returns:
        [B, …].
    """
    if norm_threshold == 0.0:
        return difference
    dims = tuple(range(1, difference.ndim))
    norm = torch.linalg.vector_norm(difference, dim=dims, keepdim=True, dtype=precise(difference.device))
    return difference * torch.where(norm > norm_threshold, norm_threshold / norm, torch.ones_like(norm)).to(difference.dtype)


@dataclass(frozen=True)
class APG(Rule):
    """Adaptive Projected Guidance (arXiv 2410.02416), in x0 as in the paper or in v as diffusers' guider is used.

    Δ̄ = Δ + β Δ̄ over the steps, shortened to r; u = Δ̄⊥ + η Δ̄∥. In x0 the result is x0_c + (w − 1) u, in v it is v_u + w u, as
    diffusers' `AdaptiveProjectedGuidance` computes it by default. `start` and `scale` make it `AdaptiveProjectedMixGuidance`.

    Attributes:
        eta: η, of the part along the positive prediction; the paper advises 0.
        norm_threshold: r; 0 is no limit. It grows with the root of the latent's size. The paper's value for SDXL is 15.
        momentum: β, of the running average; 0 is none. The paper advises values below 0.
        space: "denoised" or "velocity".
        start: before this share of the run's steps it is plain CFG, and the average is kept.
        scale: w from `start` on; 0 is the sampler's.
    """

    node: ClassVar[str] = "KleinKitAPG"
    title: ClassVar[str] = "Klein APG"
    order: ClassVar[int] = COMBINE
    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5
    space: str = "denoised"
    start: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        number("eta", self.eta, 0.0, 10.0)
        number("norm_threshold", self.norm_threshold, 0.0, 10000.0)
        number("momentum", self.momentum, -1.0, 1.0)
        one_of("space", SPACES, self.space)
        number("start", self.start, 0.0, 0.99)
        number("scale", self.scale, 0.0, 100.0)

    def decide(self, step: Step) -> Step:
        if self.scale and step.combines and step.index in steps_in_range(self.start, 1.0, step.steps):
            return replace(step, cfg=self.scale)
        return step

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        neutral = (self.eta, self.norm_threshold, self.momentum) == (1.0, 0.0, 0.0)
        # At σ 0 the picture has no noise left, and guidance nothing to change.
        if v.uncond is None or not step.combines or neutral or step.sigma == 0.0:
            return v
        # The average and the limit are of the space's own size; the sign of Δ is of no consequence.
        unit = 1.0 if self.space == "denoised" else step.sigma
        difference = self._averaged((v.cond - v.uncond) / unit, step, memory)
        if step.index not in steps_in_range(self.start, 1.0, step.steps):
            return v
        onto = v.x - v.cond if self.space == "denoised" else v.cond
        update = projected(shortened(difference, self.norm_threshold), onto, self.eta) * unit
        guided = v.cond + (step.cfg - 1.0) * update if self.space == "denoised" else v.uncond + step.cfg * update
        return replace(v, guided=guided)

    def _averaged(self, difference: torch.Tensor, step: Step, memory: dict[str, Any]) -> torch.Tensor:
        """Δ̄ = Δ + β Δ̄ of the step before; of several calls in a step the last one counts.

        A picture whose predictions are one and the same is not guided in this step, and its average stays.
        """
        if self.momentum == 0.0:
            return difference
        if memory.get("index") != step.index:
            memory |= {"index": step.index, "before": memory.get("average")}
        before = memory["before"]
        if before is None:
            before = torch.zeros_like(difference)
        guided = each(difference.flatten(1).any(dim=1), difference)
        average = difference + self.momentum * before
        memory["average"] = torch.where(guided, average, before)
        return torch.where(guided, average, torch.zeros_like(average))
