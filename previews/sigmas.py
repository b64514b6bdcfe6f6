"""What the editor's preview of a schedule shows."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..checks import one_of
from ..scheduler.mu import STATIC_MU
from ..scheduler.schedule import AUTO, Schedule, choose_shift, make, picture_tokens, shift_of


def inputs_of(choice: str, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the inputs that a choice brings from the other settings: `shift.mu` from `shift`.

    Args:
        choice: name of a DynamicCombo.
        settings: `{input: value}`.
    Returns:
        `(settings, inputs)`: two dicts, the names in the second without the choice's.
    """
    prefix = f"{choice}."
    inputs = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return {name: value for name, value in settings.items() if not name.startswith(prefix)}, inputs


def preview(settings: dict[str, Any]) -> dict[str, Any]:
    """The schedule of Klein Scheduler for the values of its inputs.

    Args:
        settings: `{input: value}` as in a prompt of ComfyUI's API (`steps`, `shift`, `shift.mu`, …); those that are
            left out have their defaults. `auto` of `shift` is FLUX.2's: the editor says another where it knows the model.
    Returns:
        dict: `sigmas` [n + 1]; `mu`; `tokens`, how many 16×16 cells the size has (for a connected latent the editor sends
        its size as `width` and `height`); `step_sizes` [n], how far sigma falls in each step; `start`, the first sigma
        (0.0 when `denoise` is 0.0); and for comparison `static_sigmas` [n + 1] and `static_mu`, with ComfyUI's own shift.
    Raises:
        ValueError: there is no such setting, or a value does not fit.
    """
    settings, numbers = inputs_of("shift", settings)
    for name in settings:
        one_of("setting", Schedule.__dataclass_fields__, name)
    shift = choose_shift(shift_of(settings.pop("shift", AUTO)), **numbers)
    schedule = Schedule(shift=shift, **settings)
    tokens = picture_tokens(schedule.width, schedule.height)
    sigmas, mu = make(schedule, tokens)
    static_sigmas, static_mu = make(replace(schedule, shift=choose_shift("fixed", mu=STATIC_MU)), tokens)
    return {
        "sigmas": sigmas.tolist(),
        "mu": mu,
        "tokens": tokens,
        "step_sizes": (-np.diff(sigmas)).tolist(),
        "start": float(sigmas[0]) if len(sigmas) else 0.0,
        "static_sigmas": static_sigmas.tolist(),
        "static_mu": static_mu,
    }
