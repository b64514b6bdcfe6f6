"""mu, the amount of the time shift: one function for each choice of `shift`, `(tokens, steps, its own inputs) → mu`.

A token is a cell of 16×16 pixels. `steps` is the number of steps that the user asks for, also where a denoise below 1
keeps only the end of a longer schedule: diffusers computes mu from the same number.
"""

import math
from collections.abc import Callable
from functools import partial

Shift = Callable[[int, int], float]

# Black Forest Labs fitted two lines in the number of tokens, for 10 and for 200 steps.
FEW_STEPS, FEW_SLOPE, FEW_OFFSET = 10, 8.73809524e-05, 1.89833333
MANY_STEPS, MANY_SLOPE, MANY_OFFSET = 200, 0.00016927, 0.45666666
MANY_STEPS_LINE_ABOVE = 4300

FLUX2_CONTINUOUS_TOKENS = 4096, 8192
FLUX1_TOKENS = 256, 4096

# s of FLUX 3's σ' = sσ/(1 + (s − 1)σ).
FLUX3_SHIFT = 6.93

# ComfyUI's shift of FLUX.2, at every size and step count.
STATIC_MU = 2.02


def flux2(tokens: int, steps: int) -> float:
    """Black Forest Labs' empirical mu (diffusers' `compute_empirical_mu`). It halves above 4300 tokens.

    It was fitted to 10 and 200 steps. Above 200 steps it falls on, and means nothing (`beyond_fit`).
    """
    many = MANY_SLOPE * tokens + MANY_OFFSET
    if tokens > MANY_STEPS_LINE_ABOVE:
        return many
    few = FEW_SLOPE * tokens + FEW_OFFSET
    slope = (many - few) / (MANY_STEPS - FEW_STEPS)
    return slope * steps + (many - MANY_STEPS * slope)


def flux2_continuous(tokens: int, steps: int) -> float:
    """`flux2` without its jump and without its fall: a straight line joins 4096 and 8192 tokens, and mu above 200 steps
    is that of 200.
    """
    steps = min(steps, MANY_STEPS)
    low, high = FLUX2_CONTINUOUS_TOKENS
    if not low < tokens < high:
        return flux2(tokens, steps)
    share = (tokens - low) / (high - low)
    return (1 - share) * flux2(low, steps) + share * flux2(high, steps)


def flux3(tokens: int, steps: int) -> float:
    """FLUX 3's mu, ln 6.93 at every size and step count (diffusers' `Flux3SetTimestepsStep`: `shift` 6.93)."""
    return math.log(FLUX3_SHIFT)


def flux1(tokens: int, steps: int, *, base_shift: float = 0.5, max_shift: float = 1.15) -> float:
    """FLUX.1's mu (diffusers' `calculate_shift`): a line through `base_shift` at 256 and `max_shift` at 4096 tokens."""
    low, high = FLUX1_TOKENS
    slope = (max_shift - base_shift) / (high - low)
    return tokens * slope + (base_shift - slope * low)


def fixed(tokens: int, steps: int, *, mu: float = 1.15) -> float:
    """The given mu at every size and step count."""
    return mu


def linear(tokens: int, steps: int, *, linear_shift: float = 3.0) -> float:
    """Stable Diffusion 3's σ' = sσ/(1 + (s − 1)σ) is the exponential shift by ln s."""
    return math.log(linear_shift)


def none(tokens: int, steps: int) -> float:
    """No shift."""
    return 0.0


SHIFTS = {choice.__name__: choice for choice in (flux2, flux2_continuous, flux3, flux1, fixed, linear, none)}


def beyond_fit(shift: Shift, tokens: int, steps: int) -> str | None:
    """A warning where `flux2` is asked for more steps than it was fitted to; None elsewhere.

    Args:
        shift: what `choose_shift` returns.
        tokens, steps: what mu is computed from.
    """
    if not (isinstance(shift, partial) and shift.func is flux2 and steps > MANY_STEPS and tokens <= MANY_STEPS_LINE_ABOVE):
        return None
    return (
        f"shift flux2 was made for at most {MANY_STEPS} steps. At {steps} steps its mu is {shift(tokens, steps):.2f}, "
        f"which is of no use. Choose flux2_continuous: it keeps the mu of {MANY_STEPS} steps."
    )
