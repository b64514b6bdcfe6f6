"""The time shift of flow matching."""

from typing import TypeVar

import numpy as np
from scipy.special import expit, logit

Sigma = TypeVar("Sigma", float, np.ndarray)


def time_shift(sigma: Sigma, mu: float) -> Sigma:
    """The exponential time shift σ' = e^μ / (e^μ + (1/σ − 1)) of FLUX.1 (diffusers' `time_shift`).

    It moves the logit of σ by mu, so the shift by −mu is its inverse.

    Args:
        sigma: float or float64 array, 0 to 1; both ends stay where they are.
        mu: float.
    Returns:
        as `sigma`.
    """
    return expit(logit(sigma) + mu)
