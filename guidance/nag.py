"""Normalized Attention Guidance: away from the negative prompt inside the attention, in the positive's own pass."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from ..checks import number, steps_in_range
from .rule import ATTENTION, Mix, Rule, Step

# A place whose attention is all zeros has no length to be compared with.
SMALLEST_NORM = 1e-6


def nag(positive: torch.Tensor, negative: torch.Tensor, scale: float, tau: float, alpha: float) -> torch.Tensor:
    """α·z̃ + (1 − α)·z⁺, with z = z⁺ + (scale − 1)(z⁺ − z⁻) shortened to z̃: at most τ times as long as z⁺.

    Source: Normalized Attention Guidance, arXiv 2505.21179, with the paper's L1 norm over the channels of each token. Its
    authors' code for FLUX.1 (github.com/ChenDarYen/Normalized-Attention-Guidance) takes the L2 norm instead.

    Args:
        positive, negative: z⁺ and z⁻, [B, tokens, channels]: the attention's output before its projection.
        scale: 1 changes nothing.
        tau: τ, the largest ratio of lengths.
        alpha: α, the share of the guided output.
    Returns:
        [B, tokens, channels] in `positive`'s dtype.
    """
    # In this order nothing is rounded where both say the same, in any dtype.
    guided = torch.add(positive, positive - negative, alpha=scale - 1.0)
    norm, of_guided = (
        torch.linalg.vector_norm(z, ord=1, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(SMALLEST_NORM)
        for z in (positive, guided)
    )
    shorter = (tau * norm / of_guided).clamp_max(1.0).to(positive.dtype)
    return torch.lerp(positive, guided * shorter, alpha)


@dataclass(frozen=True)
class NAG(Rule):
    """Mix the image's attention to both prompts while start·n ≤ i < end·n."""

    node: ClassVar[str] = "KleinKitNAG"
    title: ClassVar[str] = "Klein NAG"
    order: ClassVar[int] = ATTENTION
    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)
        number("scale", self.scale, 1.0, 100.0)
        number("tau", self.tau, 1.0, 100.0)
        number("alpha", self.alpha, 0.0, 1.0)

    def mix(self, step: Step) -> Mix | None:
        if self.scale == 1.0 or self.alpha == 0.0 or step.index not in steps_in_range(self.start, self.end, step.steps):
            return None
        return partial(nag, scale=self.scale, tau=self.tau, alpha=self.alpha)
