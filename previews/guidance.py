"""What the editor's preview of a guidance schedule shows."""

from ..checks import expected, number, one_of
from ..guidance.cfg import CFG, choose_schedule
from ..guidance.plan import plan
from .sigmas import inputs_of
from .sigmas import preview as preview_sigmas

SETTINGS = "schedule", "unguided", "cfg", "sigmas"
# The server waits while a plan is made, step by step.
MOST_STEPS = 1000


def preview(settings):
    """What `KleinKitCFG`, and no other rule, makes of a run, for the values of its inputs.

    Args:
        settings: `{input: value}` as in a prompt of ComfyUI's API (`schedule`, `schedule.start`, `unguided`, …), `cfg`
            of the sampler, and `sigmas`, the settings of `scheduler.preview`; those that are left out have their
            defaults, cfg 5.
    Returns:
        dict: `cfg` [n], the scale of each step; `passes` [n], how many run; `total`, their sum; `plain`, how many run
        without this node.
    Raises:
        ValueError: no such setting, or a value that does not fit.
    """
    settings, inputs = inputs_of("schedule", settings)
    for name in settings:
        one_of("setting", SETTINGS, name)
    cfg, of_sigmas = settings.get("cfg", 5.0), settings.get("sigmas", {})
    number("cfg", cfg, 0.0, 100.0)
    if not isinstance(of_sigmas, dict):
        raise expected("sigmas", "an object of settings", of_sigmas)
    rule = CFG(choose_schedule(settings.get("schedule", "constant"), **inputs), settings.get("unguided", "conditional"))
    sigmas = preview_sigmas(of_sigmas)["sigmas"]
    if len(sigmas) > MOST_STEPS + 1:
        raise expected("steps", f"at most {MOST_STEPS} in a preview of guidance", len(sigmas) - 1)
    steps = plan((rule,), sigmas, cfg)
    passes = [len(step.passes) for step in steps]
    return {
        "cfg": [step.cfg for step in steps],
        "passes": passes,
        "total": sum(passes),
        "plain": sum(len(step.passes) for step in plan((), sigmas, cfg)),
    }
