"""Which of ComfyUI's schedulers made a schedule."""

import numpy as np

# ddim_uniform may make a step or two more than asked for, and beta makes fewer when there are hundreds.
MOST_EXTRA_STEPS = 2
MOST_TRIES = 20


def find(sigmas, last, names, schedule):
    """Find the scheduler that makes the given sigmas: float for float and all of them, or none.

    KSampler drops the sigma before the last for some samplers, and sets the last of a run to 0 when no noise is to be
    left over: both are still found.

    Args:
        sigmas: float32 array [n + 1], a whole schedule.
        last: the place of the last sigma that the run uses.
        names: the schedulers to try.
        schedule: `(name, steps) → float32 array`, what a scheduler makes; an exception says that it makes nothing.
    Returns:
        `(name, steps, made, index)`: the scheduler, the steps to ask it for, what it makes then, and the places of
        `sigmas` in that (int array [n + 1]); or None.
    """
    set_to_zero = (np.arange(len(sigmas)) == last) & (sigmas == 0)

    def fits(made, index):
        return len(index) == len(sigmas) and (set_to_zero | (made[index] == sigmas)).all()

    for dropped in (False, True):
        wanted = len(sigmas) + dropped
        for name in names:
            steps = max(wanted - 1 - MOST_EXTRA_STEPS, 1)
            for _ in range(MOST_TRIES):
                try:
                    made = schedule(name, steps)
                except Exception:  # another pack's scheduler, asked for a number of steps that its user never chose
                    steps += 1
                    continue
                index = np.arange(len(made))
                if dropped:
                    index = np.delete(index, -2)
                if fits(made, index):
                    return name, steps, made, np.where(set_to_zero, len(made) - 1, index)
                missing = wanted - len(made)
                if steps >= wanted - 1 and missing < 0:
                    break
                steps += max(missing, 1) if steps >= wanted - 1 else 1
    return None
