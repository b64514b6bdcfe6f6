"""The sigmas of a run, from settings that fit."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..checks import expected, number, one_of
from .mu import SHIFTS, Shift
from .shift import time_shift
from .spacing import SPACINGS

AUTO = "auto"
# What `shift` of Klein Scheduler can be.
SHIFT_CHOICES = (AUTO, *SHIFTS)
PIXELS_PER_TOKEN = 16 * 16
SMALLEST_DENOISE = 1e-4
SMALLEST_BITS = np.finfo(np.float32).tiny.view(np.int32)
DENOISE_MODES = "ksampler", "strength", "sigma"
# The smallest and the largest value of each number.
LIMITS = {
    "steps": (1, 10000),
    "width": (16, 16384),
    "height": (16, 16384),
    "denoise": (0.0, 1.0),
    "terminal": (0.0, 0.99),
    "base_shift": (0.0, 100.0),
    "max_shift": (0.0, 100.0),
    "mu": (-20.0, 20.0),
    "linear_shift": (0.01, 100.0),
}


def shift_of(choice: str) -> str:
    """The name in `SHIFTS` that a choice of `shift` means where no model says more: for `auto` FLUX.2's."""
    return "flux2" if choice == AUTO else choice


def choose_shift(choice: str, /, **inputs: float) -> Shift:
    """The function `(tokens, steps) → mu` of a choice of `shift` and the inputs that the choice brings.

    Raises:
        ValueError: there is no such choice, the choice does not bring such an input, or a number does not fit.
    """
    one_of("shift", SHIFTS, choice)
    takes = SHIFTS[choice].__kwdefaults__ or {}
    for name, value in inputs.items():
        if name not in takes:
            raise expected(f"shift.{name}", f"absent ({choice} takes {', '.join(takes) or 'no number'})", value)
        number(f"shift.{name}", value, *LIMITS[name])
    return partial(SHIFTS[choice], **inputs)


@dataclass(frozen=True)
class Schedule:
    """The settings of Klein Scheduler; `shift` comes from `choose_shift`.

    Raises:
        ValueError: a value does not fit.
    """

    steps: int = 20
    width: int = 1024
    height: int = 1024
    denoise: float = 1.0
    denoise_mode: str = "ksampler"
    shift: Shift = partial(SHIFTS["flux2"])
    spacing: str = "uniform"
    terminal: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "width", "height", "denoise", "terminal"):
            number(name, getattr(self, name), *LIMITS[name])
        one_of("denoise_mode", DENOISE_MODES, self.denoise_mode)
        one_of("spacing", SPACINGS, self.spacing)
        if 0.0 < self.denoise < SMALLEST_DENOISE:
            raise expected("denoise", f"0.0, or between {SMALLEST_DENOISE} and 1.0", self.denoise)


def picture_tokens(width: int, height: int) -> int:
    """The number of 16×16 cells of a picture, from its sides in pixels, rounded as ComfyUI's Flux2Scheduler does."""
    return round(width * height / PIXELS_PER_TOKEN)


def steps_made(steps: int, denoise: float, mode: str) -> tuple[int, int]:
    """How many steps a schedule has, and the first of them that the run keeps.

    `ksampler` makes ⌊steps/denoise⌋ and keeps the last `steps` (ComfyUI's `KSampler.set_steps`); `strength` makes
    `steps` and keeps the last steps·denoise (diffusers' `get_timesteps`); `sigma` keeps all.

    Args:
        steps: int.
        denoise: above 0.0, at most 1.0.
        mode: one of `DENOISE_MODES`.
    Returns:
        `(made, first)`, two ints.
    """
    if mode == "ksampler":
        made = int(steps / denoise)
        return made, made - steps
    if mode == "strength":
        return steps, int(steps - steps * denoise)
    return steps, 0


def make(schedule: Schedule, tokens: int) -> tuple[np.ndarray, float]:
    """The sigmas of a schedule, in the order of diffusers' `FlowMatchEulerDiscreteScheduler.set_timesteps`.

    Even steps are shifted by mu, stretched to end at `terminal`, and spaced anew between the first and the last; then
    comes a 0. mu is that of `schedule.steps`, as in diffusers: it does not depend on the longer schedule that a denoise
    below 1 cuts (else 100 steps at denoise 0.2 would have the mu of 500).

    Args:
        schedule: a `Schedule`; its width and height are not read.
        tokens: int, the number of 16×16 cells of the picture.
    Returns:
        `(sigmas, mu)`: float32 array [kept steps + 1], falling to 0.0 (empty when `denoise` is 0.0), and a float.
    Raises:
        ValueError: `terminal` is not below the first sigma, or mu is so extreme that nothing can be stretched.
    """
    mu = schedule.shift(tokens, schedule.steps)
    if schedule.denoise == 0.0:
        return np.zeros(0, np.float32), mu
    made, kept_from = steps_made(schedule.steps, schedule.denoise, schedule.denoise_mode)
    first = schedule.denoise if schedule.denoise_mode == "sigma" else 1.0
    even_first = time_shift(first, -mu)

    def even(index: Any) -> Any:
        return even_first * (made - index) / made

    def gap(index: Any) -> Any:
        """How far a sigma is below the first. It is precise also where the sigma itself rounds to 1.0."""
        return time_shift(1.0 - even(index), -mu) - (1.0 - first)

    stretch = None
    if schedule.terminal and made > 1:
        widest = gap(made - 1)
        if schedule.terminal >= first or not widest:
            fits = f"below the first sigma ({first})" if widest else f"0.0 where mu is as extreme as {mu:.4g}"
            raise expected("terminal", fits, schedule.terminal)
        stretch = (first - schedule.terminal) / widest

    def stretched(index: Any) -> Any:
        return time_shift(even(index), mu) if stretch is None else first - gap(index) * stretch

    index = np.arange(kept_from, made)
    space = SPACINGS[schedule.spacing]
    sigmas = space(index, made, first, stretched(made - 1)) if space else stretched(index)
    return in_float32(np.append(np.where(index == 0, first, sigmas), 0.0)), mu


def in_float32(sigmas: np.ndarray) -> np.ndarray:
    """Sigmas as a sampler takes them. Where float32 cannot tell two apart, or one from 0, they differ by its smallest step.

    Args:
        sigmas: float64 array [n + 1], falling from at most 1.0 to 0.0.
    Returns:
        float32 array [n + 1], strictly decreasing.
    """
    order = np.arange(len(sigmas) - 1, dtype=np.int32)
    # The bits of positive floats, read as integers, are in the order of the floats.
    bits = np.minimum.accumulate(sigmas[:-1].astype(np.float32).view(np.int32) + order) - order
    bits = np.maximum(bits, SMALLEST_BITS + order[::-1])
    return np.append(bits.view(np.float32), np.float32(0.0))
