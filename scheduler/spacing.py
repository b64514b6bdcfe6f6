"""Spacings: how sigmas lie between the first and the last of a schedule.

Each is `(index, steps, first, last) → sigmas`: the sigmas at `index` (integer array) of a schedule of `steps` sigmas
that runs from `first` to `last`.
"""

import numpy as np
from scipy.special import betaincinv

KARRAS_RHO = 7.0
BETA_ALPHA = BETA_BETA = 0.6
LINEAR_QUADRATIC_THRESHOLD = 0.025


def _ramp(index: np.ndarray, steps: int) -> np.ndarray:
    return index / max(steps - 1, 1)


def karras(index: np.ndarray, steps: int, first: float, last: float) -> np.ndarray:
    """Even steps of σ^(1/7) (Karras et al. 2022, arXiv 2206.00364; diffusers' `use_karras_sigmas`)."""
    start, end = first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO)
    return (start + _ramp(index, steps) * (end - start)) ** KARRAS_RHO


def exponential(index: np.ndarray, steps: int, first: float, last: float) -> np.ndarray:
    """Even steps of ln σ (diffusers' `use_exponential_sigmas`)."""
    return first * (last / first) ** _ramp(index, steps)


def beta(index: np.ndarray, steps: int, first: float, last: float) -> np.ndarray:
    """Quantiles of the beta distribution (Lee et al. 2024, arXiv 2407.12173; diffusers' `use_beta_sigmas`)."""
    return last + betaincinv(BETA_ALPHA, BETA_BETA, 1 - _ramp(index, steps)) * (first - last)


def linear_quadratic(index: np.ndarray, steps: int, first: float, last: float) -> np.ndarray:
    """A first half of small even steps, then a parabola down to 0 (Mochi; ComfyUI's `linear_quadratic_schedule`).

    It depends on `first` alone: neither the shift nor `last` bends it.
    """
    if steps == 1:
        return np.full(len(index), float(first))
    straight = steps // 2
    slope = LINEAR_QUADRATIC_THRESHOLD / straight
    missing = straight - LINEAR_QUADRATIC_THRESHOLD * steps
    square = missing / (straight * (steps - straight) ** 2)
    tilt = slope - 2 * missing / (steps - straight) ** 2
    parabola = square * index**2 + tilt * index + square * straight**2
    return first * (1 - np.where(index < straight, slope * index, parabola))


SPACINGS = {"uniform": None, **{f.__name__: f for f in (karras, exponential, beta, linear_quadratic)}}
