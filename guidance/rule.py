"""What a guidance method is to the stack: a frozen dataclass that plans a step and transforms velocities."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

# The stack's order, whatever the order of the wiring. Rules of one number exclude each other.
SCHEDULE, DISTILLED, ADAPTIVE, BASE, NEGATIVE, COMBINE, SKIP, RENORM = range(8)

PASSES = ("cond", "uncond", "image", "skip")


def precise(device):
    """The dtype for sums whose squares would overflow: float64, which Apple's, Intel's and DirectML's GPUs may not have."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


@dataclass(frozen=True)
class Step:
    """One step of a run, before it runs.

    Attributes:
        index: of the step, from 0.
        steps: of the whole run.
        sigma: at which the model is asked.
        cfg: the effective scale w: 1 is the positive pass alone, 0 the negative alone.
        guided: False where a schedule or a rule turned guidance off.
        unguided_cfg: the scale of a step that is not guided, 1 or 0.
        zero: the velocity is zero and the model is not asked.
        passes: what runs, a subset of `PASSES` in that order.
        observed: what rules observed in earlier steps, by node.
    """

    index: int
    steps: int
    sigma: float
    cfg: float
    guided: bool = True
    unguided_cfg: float = 1.0
    zero: bool = False
    passes: tuple[str, ...] = ()
    observed: dict = field(default_factory=dict)

    def without_guidance(self):
        return replace(self, guided=False, cfg=self.unguided_cfg)


@dataclass(frozen=True)
class Velocities:
    """The predictions of one step as σ·v = x − x0, each [B, …] like `x`, or None where the pass did not run.

    Every rule is homogeneous of degree one in v, so σ need not be divided out, and no step is too small.

    Attributes:
        x: the noisy latent.
        cond, uncond, image, skip: of the positive, the negative, the negative without reference latents, and the
            positive with layers skipped.
        guided: the result so far, from the combination on.
    """

    x: torch.Tensor
    cond: torch.Tensor
    uncond: torch.Tensor | None = None
    image: torch.Tensor | None = None
    skip: torch.Tensor | None = None
    guided: torch.Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """A guidance method. What it leaves out is neutral."""

    node: ClassVar[str]
    order: ClassVar[int]

    def decide(self, step):
        """The step as this rule wants it: its cfg, guided or not, zero or not."""
        return step

    def needs(self, step):
        """The passes that this rule needs in the step, beyond those of its cfg."""
        return ()

    def transform(self, velocities, step):
        """The velocities with this rule applied; the same object where the rule has nothing to do."""
        return velocities

    def observe(self, velocities):
        """A scalar tensor that `decide` finds in `step.observed` from the next step on, or None."""
        return None
