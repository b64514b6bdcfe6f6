"""What a run on a flow map, such as a distilled FLUX 3, cannot do, and what in it has another meaning."""

import math
from collections.abc import Iterator, Mapping

from comfy.samplers import CFGGuider

from ..checks import expected, in_node
from ..guidance.flow_map import does, sampler_name
from ..guidance.plan import plan
from ..guidance.rule import MOMENTUM, UNCOND
from ..guidance.zero_star import CFGZeroStar
from .conflicts import scale_of
from .run import Run


def refuse(run: Run) -> None:
    """Raise where a run on a flow map would give no picture that its model can make.

    Raises:
        ValueError: CFG-Zero* is to begin with steps of zero velocity.
    """
    for rule in run.rules:
        if isinstance(rule, CFGZeroStar) and rule.zero_init_steps:
            with in_node(rule.title):
                fits = "0 on this distilled model, which predicts where a step goes and cannot stand still"
                raise expected("zero_init_steps", fits, rule.zero_init_steps)


def before_run(run: Run, guider: CFGGuider, options: Mapping[str, object]) -> Iterator[str]:
    """What is known before a run on a flow map begins.

    Args:
        run: that begins.
        guider: of the run.
        options: what the sampler's function is called with besides.
    """
    if what := does(run.sampler, options):
        yield (
            f"The sampler {sampler_name(run.sampler) or 'of this run'} {what}. This distilled model predicts whole steps, so "
            "plain Euler is exact: choose euler."
        )
    steps = plan(run.rules, run.sigmas, scale_of(guider))
    ran = {name for step in steps for name in step.passes}
    joins = [rule for rule in run.rules if rule.order == MOMENTUM or any(extra.name in ran for extra in rule.passes)]
    scales = [step.cfg for step in steps if UNCOND in step.passes and not math.isclose(step.cfg, 1.0)]
    if scales or joins:
        what = ", ".join([*(f"cfg {scale:g}" for scale in sorted(scales)[-1:]), *(rule.title for rule in joins)])
        yield (
            f"This distilled model predicts whole steps. Guidance that joins several of them ({what}) is an experiment: "
            "expect more contrast and colour."
        )


def off_sigmas(run: Run, sigma: float) -> None:
    """Warn where the model is asked at a sigma from which it cannot know where the step goes.

    ComfyUI finds that by the place of the sigma in the run, float for float.
    """
    if run.flow_map and sigma not in run.sigmas[:-1]:
        run.warn(
            f"The model is asked at sigma {sigma:.6g}, which is none of the run's, so it is not told where this step goes. "
            "Choose the sampler euler, and remove nodes that change sigmas during the run.",
            "off",
        )
