"""mu, the amount of the time shift: one function a choice of `shift`, each `(tokens, steps, its own inputs) → mu`.

A token is a cell of 16×16 pixels; steps are those of the schedule that is made.
"""

import math

# Black Forest Labs fitted two lines in the number of tokens, for 10 and for 200 steps.
FEW_STEPS, FEW_SLOPE, FEW_OFFSET = 10, 8.73809524e-05, 1.89833333
MANY_STEPS, MANY_SLOPE, MANY_OFFSET = 200, 0.00016927, 0.45666666
MANY_STEPS_LINE_ABOVE = 4300

FLUX2_CONTINUOUS_TOKENS = 4096, 8192
FLUX1_TOKENS = 256, 4096

# ComfyUI's shift of FLUX.2, at every size and step count.
STATIC_MU = 2.02


def flux2(tokens, steps):
    """Black Forest Labs' empirical mu (diffusers' `compute_empirical_mu`), which halves above 4300 tokens."""
    many = MANY_SLOPE * tokens + MANY_OFFSET
    if tokens > MANY_STEPS_LINE_ABOVE:
        return many
    few = FEW_SLOPE * tokens + FEW_OFFSET
    slope = (many - few) / (MANY_STEPS - FEW_STEPS)
    return slope * steps + (many - MANY_STEPS * slope)


def flux2_continuous(tokens, steps):
    """`flux2` without its jump: between 4096 and 8192 tokens a straight line joins its two ends."""
    low, high = FLUX2_CONTINUOUS_TOKENS
    if not low < tokens < high:
        return flux2(tokens, steps)
    share = (tokens - low) / (high - low)
    return (1 - share) * flux2(low, steps) + share * flux2(high, steps)


def flux1(tokens, steps, *, base_shift=0.5, max_shift=1.15):
    """FLUX.1's mu (diffusers' `calculate_shift`): a line through `base_shift` at 256 and `max_shift` at 4096 tokens."""
    low, high = FLUX1_TOKENS
    slope = (max_shift - base_shift) / (high - low)
    return tokens * slope + (base_shift - slope * low)


def fixed(tokens, steps, *, mu=1.15):
    """The given mu at every size and step count."""
    return mu


def linear(tokens, steps, *, linear_shift=3.0):
    """Stable Diffusion 3's σ' = sσ/(1 + (s − 1)σ) is the exponential shift by ln s."""
    return math.log(linear_shift)


def none(tokens, steps):
    """No shift."""
    return 0.0


SHIFTS = {choice.__name__: choice for choice in (flux2, flux2_continuous, flux1, fixed, linear, none)}
