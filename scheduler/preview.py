"""What the editor's preview of a schedule shows."""

import numpy as np

from .checks import one_of
from .schedule import Schedule, choose_shift, make, picture_tokens

NUMBER_OF_SHIFT = "shift."


def preview(settings):
    """The schedule of `KleinKitScheduler` for the values of its inputs.

    Args:
        settings: `{input: value}` as in a prompt of ComfyUI's API (`steps`, `shift`, `shift.mu`, …); those that are
            left out have their defaults.
    Returns:
        dict: `sigmas` [n + 1], `mu`, `step_sizes` [n] (how far sigma falls in each step), `start` (the first sigma; 0.0
        when `denoise` is 0.0).
    Raises:
        ValueError: no such setting, or a value that does not fit.
    """
    settings = dict(settings)
    numbers = {name.removeprefix(NUMBER_OF_SHIFT): settings.pop(name)
               for name in list(settings) if name.startswith(NUMBER_OF_SHIFT)}
    for name in settings:
        one_of("setting", Schedule.__dataclass_fields__, name)
    shift = choose_shift(settings.pop("shift", "flux2"), **numbers)
    schedule = Schedule(shift=shift, **settings)
    sigmas, mu = make(schedule, picture_tokens(schedule.width, schedule.height))
    return {
        "sigmas": sigmas.tolist(),
        "mu": mu,
        "step_sizes": (-np.diff(sigmas)).tolist(),
        "start": float(sigmas[0]) if len(sigmas) else 0.0,
    }
