"""Which of ComfyUI's schedulers made a schedule."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import numpy as np

# A search asks every scheduler several times: it is too slow for a run of more steps than this.
MOST_STEPS = 1000
# ddim_uniform may make a step or two more than asked for, and beta makes fewer when there are hundreds.
MOST_EXTRA_STEPS = 2
MOST_TRIES = 20
# How far from the length that a search comes to the right one may be.
NEAR = 3

Found = tuple[str, int, np.ndarray, np.ndarray]
Scheduler = Callable[[str, int], np.ndarray]


def find(sigmas: np.ndarray, last: int, names: Iterable[str], schedule: Scheduler) -> Found | None:
    """Find the scheduler that makes the given sigmas: float for float and all of them, or none.

    KSampler drops the sigma before the last for some samplers, and sets the last of a run to 0 when no noise is to be
    left over. Both are still found. No scheduler is asked twice for the same number of steps.

    Args:
        sigmas: float32 array [n + 1], a whole schedule.
        last: the place of the last sigma that the run uses.
        names: the schedulers to try.
        schedule: `(name, steps) → float32 array`, what a scheduler makes. An exception means that it makes nothing.
    Returns:
        `(name, steps, made, index)`: the scheduler, the number of steps to ask it for, what it then makes, and the
        places of `sigmas` in that (int array [n + 1]); or None.
    """
    set_to_zero = (np.arange(len(sigmas)) == last) & (sigmas == 0)
    ask = cache(_or_none(schedule))
    for dropped in (False, True):
        wanted = len(sigmas) + dropped
        for name in names:
            for steps in _step_counts(partial(ask, name), wanted):
                made = ask(name, steps)
                if made is None or len(made) != wanted:
                    continue
                index = np.delete(np.arange(wanted), -2) if dropped else np.arange(wanted)
                if (set_to_zero | (made[index] == sigmas)).all():
                    return name, steps, made, np.where(set_to_zero, wanted - 1, index)
    return None


def find_part(sigmas: np.ndarray, names: Iterable[str], schedule: Scheduler) -> Found | None:
    """Find the scheduler that makes a schedule of unknown length with the given part: FlipSigmas copies what it flips.

    The longer a schedule is, the less it falls in as many steps from the same sigma. So a few schedules lead to the one.

    Args:
        sigmas: float32 array [n + 1], falling, n ≥ 1.
        names, schedule: as of `find`.
    Returns:
        as `find`.
    """
    ask, count = cache(_or_none(schedule)), len(sigmas)
    for name in names:
        low, high = max(count - MOST_EXTRA_STEPS, 1), MOST_STEPS
        while low <= high:
            steps = (low + high) // 2
            made = ask(name, steps)
            if made is not None and (index := _places(made, sigmas)) is not None:
                return name, steps, made, index
            if made is None or _falls_faster(made, sigmas):
                low = steps + 1
            else:
                high = steps - 1
        # Between two steps a schedule is no straight line: the one may be a neighbour.
        for steps in range(max(low - NEAR, 1), low + NEAR + 1):
            made = ask(name, steps)
            if made is not None and (index := _places(made, sigmas)) is not None:
                return name, steps, made, index
    return None


def _places(made: np.ndarray, sigmas: np.ndarray) -> np.ndarray | None:
    """The places of a part in a schedule, or None if it is not one."""
    for first in np.flatnonzero(made == sigmas[0]):
        if np.array_equal(made[first : first + len(sigmas)], sigmas):
            return np.arange(first, first + len(sigmas))
    return None


def _falls_faster(made: np.ndarray, sigmas: np.ndarray) -> bool:
    """Whether a schedule comes further down than a part does, in as many steps from the same sigma."""
    places = np.arange(len(made))
    last = np.interp(-sigmas[0], -made, places) + len(sigmas) - 1
    return bool(last > len(made) - 1 or np.interp(last, places, made) < sigmas[-1])


def _or_none(schedule: Scheduler) -> Callable[[str, int], np.ndarray | None]:
    def ask(name: str, steps: int) -> np.ndarray | None:
        try:
            return schedule(name, steps)
        except Exception:  # another pack's scheduler, asked for a number of steps that its user never chose
            return None

    return ask


def _step_counts(ask: Callable[[int], np.ndarray | None], wanted: int) -> Iterator[int]:
    """The numbers of steps for which a scheduler may make `wanted` sigmas, the most likely first."""
    exact = wanted - 1
    yield from range(exact, max(exact - MOST_EXTRA_STEPS, 1) - 1, -1)
    steps = exact
    for _ in range(MOST_TRIES):
        made = ask(steps)
        if made is None or len(made) > wanted:
            return
        steps += max(wanted - len(made), 1)
        yield steps
