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


@pytest.mark.parametrize("steps", (1, 4, 50, 1000))
def test_no_scheduler_is_asked_twice_for_the_same_steps(steps):
    asked = []

    def schedule(name, steps):
        asked.append((name, steps))
        return np.linspace(1.0, 0.0, steps + 1, dtype=np.float32) ** 2

    names = ("one", "two", "three")
    sigmas = np.linspace(1.0, 0.0, steps + 1, dtype=np.float32)
    sigmas[0] = 0.9
    assert stock.find(sigmas, steps, names, schedule) is None
    assert len(asked) == len(set(asked)) <= 6 * len(names)


def test_the_number_of_steps_that_is_likely_is_asked_for_first():
    asked = []

    def schedule(name, steps):
        asked.append((name, steps))
        return picky(name, steps)

    assert stock.find(picky("", 20), 20, ("picky", "other"), schedule)
    assert asked == [("picky", 20)]


@pytest.mark.parametrize("first, count", ((0.0, 3), (0.4, 2), (0.4, 3), (1.0, 3)))
@pytest.mark.parametrize("steps", (3, 10, 30, 999))
def test_a_part_of_a_schedule_of_unknown_length(steps, first, count):
    asked = []

    def schedule(name, steps):
        asked.append(steps)
        return picky(name, steps)

    start = round(first * (steps + 1 - count))
    part = picky("", steps)[start : start + count]
    name, found, made, index = stock.find_part(part, ("picky",), schedule)
    assert (name, found, index.tolist()) == ("picky", steps, list(range(start, start + count)))
    assert np.array_equal(made[index], part) and len(asked) == len(set(asked)) <= 17
    assert stock.find_part(part * np.float32(0.9), ("picky",), picky) is None


def test_a_single_sigma():
    assert stock.find(np.float32([0.5]), 0, ("picky",), picky) is None


def test_a_scheduler_that_always_fails_is_left_out():
    def fails(name, steps):
        raise ValueError

    assert stock.find(np.linspace(1.0, 0.0, 5, dtype=np.float32), 4, ("fails",), fails) is None
