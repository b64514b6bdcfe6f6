"""The sigmas of a run, from settings that fit."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from ..checks import expected, number, one_of
from .mu import SHIFTS
from .shift import time_shift
from .spacing import SPACINGS

PIXELS_PER_TOKEN_SIDE = 16
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


def choose_shift(choice, /, **inputs):
    """The function `(tokens, steps) → mu` of a choice of `shift` and the inputs that the choice brings.

    Raises:
        ValueError: no such choice, an input that it does not bring, or a number that does not fit.
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
    """What `KleinKitScheduler` is set to; `shift` comes from `choose_shift`.

    Raises:
        ValueError: a value that does not fit.
    """

    steps: int = 20
    width: int = 1024
    height: int = 1024
    denoise: float = 1.0
    denoise_mode: str = "ksampler"
    shift: partial = partial(SHIFTS["flux2"])
    spacing: str = "uniform"
    terminal: float = 0.0

    def __post_init__(self):
        for name in ("steps", "width", "height", "denoise", "terminal"):
            number(name, getattr(self, name), *LIMITS[name])
        for name in ("width", "height"):
            multiple_of_16(name, getattr(self, name))
        one_of("denoise_mode", DENOISE_MODES, self.denoise_mode)
        one_of("spacing", SPACINGS, self.spacing)
        if 0.0 < self.denoise < SMALLEST_DENOISE:
            raise expected("denoise", f"0.0, or between {SMALLEST_DENOISE} and 1.0", self.denoise)


def multiple_of_16(name, value):
    """Check that a side of a picture, in pixels, is whole tokens.

    Raises:
        ValueError: it is not.
    """
    if value % PIXELS_PER_TOKEN_SIDE:
        raise expected(name, f"a multiple of {PIXELS_PER_TOKEN_SIDE}", value)


def picture_tokens(width, height):
    """The number of 16×16 cells of a picture, from its sides in pixels."""
    return (width // PIXELS_PER_TOKEN_SIDE) * (height // PIXELS_PER_TOKEN_SIDE)


def steps_made(steps, denoise, mode):
    """How many steps a schedule is made of, and the first that is kept.

    `ksampler` makes ⌊steps/denoise⌋ and keeps the last `steps` (ComfyUI's `KSampler.set_steps`); `strength` makes
    `steps` and keeps the last min(steps·denoise, steps) (diffusers' `get_timesteps`); `sigma` keeps all.

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
        return steps, int(max(steps - min(steps * denoise, steps), 0))
    return steps, 0


def make(schedule, tokens):
    """The sigmas of a schedule, in the order of diffusers' `FlowMatchEulerDiscreteScheduler.set_timesteps`.

    Even steps, shifted by mu, stretched to end at `terminal`, spaced anew between their first and last, and a 0.

    Args:
        schedule: a `Schedule`; its width and height are not read.
        tokens: int, the number of 16×16 cells of the picture.
    Returns:
        `(sigmas, mu)`: float32 array [kept steps + 1], falling to 0.0 (empty when `denoise` is 0.0), and a float.
    Raises:
        ValueError: `terminal` is not below the first sigma, or mu is so extreme that nothing can be stretched.
    """
    if schedule.denoise == 0.0:
        return np.zeros(0, np.float32), schedule.shift(tokens, schedule.steps)
    made, kept_from = steps_made(schedule.steps, schedule.denoise, schedule.denoise_mode)
    mu = schedule.shift(tokens, made)
    first = schedule.denoise if schedule.denoise_mode == "sigma" else 1.0
    even_first = time_shift(first, -mu)

    def even(index):
        return even_first * (made - index) / made

    def gap(index):
        """How far a sigma is below the first; precise for those that lie so close to 1.0 that they are equal to it."""
        return time_shift(1.0 - even(index), -mu) - (1.0 - first)

    stretch = None
    if schedule.terminal and made > 1:
        widest = gap(made - 1)
        if schedule.terminal >= first or not widest:
            fits = f"below the first sigma ({first})" if widest else f"0.0 where mu is as extreme as {mu:.4g}"
            raise expected("terminal", fits, schedule.terminal)
        stretch = (first - schedule.terminal) / widest

    def stretched(index):
        return time_shift(even(index), mu) if stretch is None else first - gap(index) * stretch

    index = np.arange(kept_from, made)
    space = SPACINGS[schedule.spacing]
    sigmas = space(index, made, first, stretched(made - 1)) if space else stretched(index)
    return in_float32(np.append(np.where(index == 0, first, sigmas), 0.0)), mu


def in_float32(sigmas):
    """Sigmas as a sampler takes them: those that float32 cannot tell apart, or from 0, differ by its smallest step.

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
