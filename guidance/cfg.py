"""Classifier-free guidance and its schedules."""

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import expected, number, numbers_of, one_of, steps_in_range
from .reuse import keep, rebuilt
from .rule import SCHEDULE, UNCOND, UNGUIDED, Rule, ScaledVelocities, Step

SKIP_MODES = ("early", "late", "early_late", "middle", "alternate")


def combine(cond: torch.Tensor, uncond: torch.Tensor, cfg: float) -> torch.Tensor:
    """v_u + w (v_c − v_u), arXiv 2207.12598 in the form that ComfyUI and diffusers use.

    Args:
        cond, uncond: [B, …] predictions, of velocity or of x0.
        cfg: w; 0 is the negative only, 0.5 the mean, 1 the positive only.
    Returns:
        [B, …].
    """
    return uncond + (cond - uncond) * cfg


@dataclass(frozen=True)
class Constant:
    """Every step at the sampler's cfg."""

    def cfg(self, step: Step) -> float | None:
        return step.cfg


@dataclass(frozen=True)
class Interval:
    """Guided while start·n ≤ i < end·n (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    diffusers' guiders round both ends down to whole steps: the same where they are whole steps, else up to a step earlier.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)

    def cfg(self, step: Step) -> float | None:
        return step.cfg if step.index in steps_in_range(self.start, self.end, step.steps) else None


@dataclass(frozen=True)
class Skip:
    """Guided in k = ⌊n·ratio⌋ of n steps, placed by `mode` (musubi-tuner's `cfg_skip_mode`)."""

    mode: str = "late"
    guided_ratio: float = 0.5

    def __post_init__(self) -> None:
        one_of("mode", SKIP_MODES, self.mode)
        number("guided_ratio", self.guided_ratio, 0.0, 1.0)

    def cfg(self, step: Step) -> float | None:
        i, n = step.index, step.steps

        def guided_before(steps: int) -> int:
            # 0.29 · 100 is 28.999999999999996 in floating point; 29 steps are meant.
            return math.floor(round(steps * self.guided_ratio, 9))

        k = guided_before(n)
        guided = {
            "early": i >= n - k,
            "late": i < k,
            "early_late": (n - k) // 2 <= i < (n - k) // 2 + k,
            "middle": not k // 2 <= i < k // 2 + n - k,
            "alternate": guided_before(i + 1) > guided_before(i),
        }[self.mode]
        return step.cfg if guided else None


@dataclass(frozen=True)
class Diminishing:
    """cfg falls linearly in t = 1 − σ to 1 at t = `cutoff`, then stays 1 (Step-Video-T2V, arXiv 2502.10248)."""

    cutoff: float = 0.11

    def __post_init__(self) -> None:
        number("cutoff", self.cutoff, 0.01, 1.0)

    def cfg(self, step: Step) -> float | None:
        return step.cfg + (1.0 - step.cfg) * min((1.0 - step.sigma) / self.cutoff, 1.0)


@dataclass(frozen=True)
class Curve:
    """A list of scales stretched over the steps, linear between its points; the sampler's cfg is not used."""

    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and 0.0 <= scale <= 100.0 for scale in self.scales):
            raise expected("scales", "numbers between 0 and 100, such as `5, 3, 1`", self.scales)

    @classmethod
    def parse(cls, scales: str = "5, 3, 1") -> "Curve":
        """The curve of a text: numbers between commas.

        Raises:
            ValueError: the text is not of that form.
        """
        try:
            return cls(numbers_of(scales))
        except (AttributeError, ValueError):
            raise expected("scales", "numbers between 0 and 100, such as `5, 3, 1`", scales) from None

    def cfg(self, step: Step) -> float | None:
        last = len(self.scales) - 1
        position = step.index * last / (step.steps - 1) if step.steps > 1 else 0.0
        before = int(position)
        low, high = self.scales[before], self.scales[min(before + 1, last)]
        return low + (high - low) * (position - before)


Schedule = Constant | Interval | Skip | Diminishing | Curve
SCHEDULES = {"constant": Constant, "interval": Interval, "skip": Skip, "diminishing": Diminishing, "curve": Curve.parse}


def choose_schedule(choice: str, /, **inputs: Any) -> Schedule:
    """The schedule of a choice of `schedule` and the inputs that the choice brings.

    Raises:
        ValueError: no such choice, an input that it does not bring, or a value that does not fit.
    """
    one_of("schedule", SCHEDULES, choice)
    takes = inspect.signature(SCHEDULES[choice]).parameters
    for name, value in inputs.items():
        if name not in takes:
            raise expected(f"schedule.{name}", f"absent ({choice} takes {', '.join(takes) or 'no input'})", value)
    return SCHEDULES[choice](**inputs)


@dataclass(frozen=True)
class CFG(Rule):
    """The sampler's cfg on a schedule; a step off the schedule is `unguided`, one pass either way.

    Before the first guided step there is nothing to reuse: with `reuse` and `extrapolate` the run's first step is guided.
    """

    node: ClassVar[str] = "KleinKitCFG"
    title: ClassVar[str] = "Klein CFG"
    order: ClassVar[int] = SCHEDULE
    schedule: Schedule = Constant()
    unguided: str = "conditional"

    def __post_init__(self) -> None:
        one_of("unguided", UNGUIDED, self.unguided)

    def decide(self, step: Step) -> Step:
        step = replace(step, unguided=self.unguided)
        cfg = self.schedule.cfg(step)
        return step.without_guidance() if cfg is None else replace(step, cfg=cfg)

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        if step.reuse:
            return rebuilt(velocities, step, memory)
        if step.unguided_cfg is None and UNCOND in step.negatives and velocities.uncond is not None:
            keep(velocities, step, memory)
        return velocities
