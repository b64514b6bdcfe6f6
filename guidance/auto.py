"""AutoGuidance: away from what a weaker version of the model would say."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import number, one_of, steps_in_range
from .cfg import combine
from .rule import ADD, COND, UNCOND, ExtraPass, Rule, ScaledVelocities, Step
from .skip_layer import layers, skip

WEAK, WEAK_UNCOND = "weak", "weak_uncond"
POSITIVE, NEGATIVE, BOTH = PROMPTS = ("positive", "negative", "both")


def autoguided(guided: torch.Tensor, strong: torch.Tensor, weak: torch.Tensor, scale: float) -> torch.Tensor:
    """v + (scale − 1)(v_strong − v_weak): the paper's v_weak + scale (v_strong − v_weak) where v is v_strong.

    Source: AutoGuidance, arXiv 2406.02507, eq. 3 with w for the scale, there in x0; velocities are linear in it.

    Args:
        guided, strong, weak: [B, …].
        scale: 1 changes nothing.
    Returns:
        [B, …].
    """
    return guided + (scale - 1.0) * (strong - weak)


@dataclass(frozen=True)
class AutoGuidance(Rule):
    """v += (scale − 1)(v_strong − v_weak) while start·n ≤ i < end·n.

    Attributes:
        double_layers, single_layers: what the weaker version lacks, where it is this model.
        prompt: which one the weaker version gets. `positive` is the paper's; `negative` is what diffusers' `AutoGuidance`
            does where its pipeline has a negative; with `both` each prompt is compared with itself, and the two
            differences are joined as CFG joins the predictions.
        weak_model: whether the weaker version is a model of its own.
    """

    node: ClassVar[str] = "KleinKitAutoGuidance"
    title: ClassVar[str] = "Klein AutoGuidance"
    order: ClassVar[int] = ADD
    scale: float = 2.0
    double_layers: tuple[int, ...] = ()
    single_layers: tuple[int, ...] = (9,)
    prompt: str = POSITIVE
    start: float = 0.0
    end: float = 1.0
    weak_model: bool = False

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)
        number("scale", self.scale, 1.0, 100.0)
        one_of("prompt", PROMPTS, self.prompt)

    @property
    def passes(self) -> tuple[ExtraPass, ...]:
        blocks = {} if self.weak_model else dict.fromkeys(layers(self.double_layers, self.single_layers), lambda before: skip)
        return tuple(
            ExtraPass(name, of, blocks=blocks, model=WEAK if self.weak_model else None)
            for name, of in ((WEAK, COND), (WEAK_UNCOND, UNCOND))
        )

    def needs(self, step: Step) -> tuple[str, ...]:
        weaker = self.weak_model or self.double_layers or self.single_layers
        if self.scale == 1.0 or not weaker or step.index not in steps_in_range(self.start, self.end, step.steps):
            return ()
        if self.prompt != BOTH:
            return COND, WEAK if self.prompt == POSITIVE else WEAK_UNCOND
        return COND, *((WEAK,) if step.cfg != 0.0 else ()), *((WEAK_UNCOND,) if step.cfg != 1.0 else ())

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        strong, weak, weak_uncond = v.cond, v.extra.get(WEAK), v.extra.get(WEAK_UNCOND)
        if weak_uncond is not None and self.prompt == BOTH and v.uncond is not None:
            if weak is None:
                strong, weak = v.uncond, weak_uncond
            else:
                pairs = (v.cond, v.uncond), (weak, weak_uncond)
                strong, weak = (v.joined(step, *pair, combine(*pair, step.cfg)) for pair in pairs)
        elif weak is None and self.prompt == NEGATIVE:
            weak = weak_uncond
        if v.guided is None or weak is None:
            return v
        return replace(v, guided=autoguided(v.guided, strong, weak, self.scale))
