"""What a guidance method is to the stack: a frozen dataclass that plans a step and transforms predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

# The stack's order, whatever the order of the wiring. Two rules that combine the predictions exclude each other.
SCHEDULE, DISTILLED, ADAPTIVE, ATTENTION, BASE, TANGENT, NEGATIVE, COMBINE, ADD, MOMENTUM, RENORM = range(11)

COND, UNCOND = "cond", "uncond"
# What a step without guidance of its own does: the scale of its one pass, or None where it reuses guidance.
UNGUIDED = {"conditional": 1.0, "unconditional": 0.0, "reuse": None, "extrapolate": None}


def precise(device: torch.device) -> torch.dtype:
    """The dtype for sums whose squares would overflow: float64, which Apple's, Intel's and DirectML's GPUs may not have."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def each(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value for each picture, [B], in a shape that goes with predictions [B, …]: [B, 1, …]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


# `(arguments, extra) → states`, as ComfyUI calls what takes the place of a block: `extra["original_block"]` runs the block.
BlockPatch = Callable[[dict, dict], dict]
Block = tuple[str, int]
# In a block's `transformer_options`, where a rule asks for it: the picture's tokens as `(height, width)`.
GRID = "kleinkit_grid"
# `(positive, negative) → mixed`, each [B, tokens, channels]: the attention's output at the image's tokens.
Mix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExtraPass:
    """One more pass of the model, which a rule owns: a prompt of the sampler, run with something changed.

    Attributes:
        name: what the plan, the log and the probe call it, and the key of its prediction in `ScaledVelocities.extra`.
        of: whose prompt it takes, `COND` or `UNCOND`.
        conds: `(conditionings) → conditionings`, lists of dicts as ComfyUI's samplers have them; it changes copies alone.
        blocks: for each block that is replaced, such as `("single_block", 9)`: `(patch of another node or None) → patch`.
            Until the first of them the pass equals the plain one, and the engine starts there where it can.
        grid: whether its blocks find `GRID` in their options.
        model: the name under which the sampler's model holds the other model that the pass runs on, or None.
    """

    name: str
    of: str = COND
    conds: Callable[[list], list] | None = None
    blocks: Mapping[Block, Callable[[BlockPatch | None], BlockPatch]] = field(default_factory=dict)
    grid: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Step:
    """One step of a run, before it runs.

    Attributes:
        index: of the step, from 0.
        steps: of the whole run.
        sigma: at which the model is asked.
        cfg: the effective scale w: 1 is the positive pass alone, 0 the negative alone.
        guided: False where a schedule or a rule turned guidance off.
        unguided: what a step without guidance of its own does, of `UNGUIDED`.
        reuse: guided, at `cfg`, by what the negative differed by in earlier steps: its passes do not run.
        zero: the velocity is zero and the model is not asked.
        passes: names of what runs: `COND`, `UNCOND`, then those of rules.
        negatives: of the passes that the step needs, those of the negative's prompt; with `reuse` they are rebuilt.
        known: the passes of the negative's prompt that ran in the last guided step before, beside the positive.
        observed: what rules observed in earlier steps, by node.
    """

    index: int
    steps: int
    sigma: float
    cfg: float
    guided: bool = True
    unguided: str = "conditional"
    reuse: bool = False
    zero: bool = False
    passes: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()
    observed: Mapping[str, float] = field(default_factory=dict)

    @property
    def combines(self) -> bool:
        """Whether positive and negative are combined: at cfg 0 and 1 one of them stands alone."""
        return self.cfg not in (0.0, 1.0)

    @property
    def unguided_cfg(self) -> float | None:
        """The scale of a step that is not guided, 1 or 0; None where such a step reuses guidance."""
        return UNGUIDED[self.unguided]

    def without_guidance(self) -> "Step":
        """The step without guidance of its own. Where nothing is known to reuse, the plan guides it after all."""
        if self.unguided_cfg is None:
            return replace(self, reuse=True)
        return replace(self, guided=False, cfg=self.unguided_cfg)


@dataclass(frozen=True)
class ScaledVelocities:
    """The predictions of one step as σ·v = x − x0, each [B, …] like `x`, or None where the pass did not run.

    Every rule is homogeneous of degree one in v, so σ need not be divided out, and no step is too small.

    Attributes:
        x: the noisy latent.
        cond, uncond: of the positive and of the negative.
        extra: of the rules' own passes, by their names.
        guided: the result so far, from the combination on.
        unguided: [B] booleans, the pictures that are not guided in this step though others are; None where all are.
    """

    x: torch.Tensor
    cond: torch.Tensor
    uncond: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    guided: torch.Tensor | None = None
    unguided: torch.Tensor | None = None

    def joined(self, step: Step, cond: torch.Tensor, uncond: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
        """What guidance makes of two predictions, and for the unguided pictures the one that stands alone."""
        if self.unguided is None:
            return guided
        rows = each(self.unguided, guided)
        return torch.where(rows, uncond if step.unguided_cfg == 0.0 else cond, guided)


@dataclass(frozen=True)
class Rule:
    """A guidance method. Every method that a rule does not write changes nothing.

    `memory` is a dict of the rule's own for one sampling run, empty at its start: it may hold tensors, and the engine drops
    it when the run ends.

    Attributes:
        node, title: id and display name of its node.
        order: its place in the stack.
        passes: the passes that it may ask for in `needs`, besides the positive's and the negative's.
    """

    node: ClassVar[str]
    title: ClassVar[str]
    order: ClassVar[int]

    @property
    def passes(self) -> tuple[ExtraPass, ...]:
        return ()

    @property
    def decides(self) -> bool:
        """Whether it decides by what it observes during the run, so that the plan is not known before."""
        return type(self).observe is not Rule.observe

    def decide(self, step: Step) -> Step:
        """The step as this rule wants it: its cfg, guided or not, zero or not."""
        return step

    def needs(self, step: Step) -> tuple[str, ...]:
        """Names of the passes that this rule needs in the step, beyond those of its cfg."""
        return ()

    def mix(self, step: Step) -> Mix | None:
        """How the image's attention to the positive's text and to the negative's become one; None where it stays as it is.

        The engine then runs both texts in the positive's pass, and the negative needs no pass of its own.
        """
        return None

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        """The predictions with this rule applied; the same object where the rule has nothing to do."""
        return velocities

    def observe(self, velocities: ScaledVelocities, memory: dict[str, Any]) -> torch.Tensor | None:
        """A scalar tensor that `decide` finds in `step.observed` from the next step on, or None."""
        return None
