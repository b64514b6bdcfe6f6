"""Which scheduler made a schedule."""

import numpy as np
import pytest
from kleinkit.scheduler import stock


def picky(name, steps):
    """A scheduler of another pack that cannot make fewer than three steps."""
    if steps < 3:
        raise ZeroDivisionError
    return np.linspace(1.0, 0.0, steps + 1, dtype=np.float32) ** 2


@pytest.mark.parametrize("steps", (3, 4, 5, 20))
def test_a_scheduler_that_fails_at_other_step_counts_is_found(steps):
    sigmas = picky("picky", steps)
    name, asked, made, index = stock.find(sigmas, steps, ("picky",), picky)
    assert (name, asked, index.tolist()) == ("picky", steps, list(range(steps + 1)))
    assert np.array_equal(made, sigmas)


def test_a_scheduler_that_always_fails_is_left_out():
    def fails(name, steps):
        raise ValueError

    assert stock.find(np.linspace(1.0, 0.0, 5, dtype=np.float32), 4, ("fails",), fails) is None
