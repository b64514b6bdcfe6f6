"""Which passes every step needs: a pure function of the rules, the sigmas and cfg. Nothing else decides whether a pass runs."""

import bisect
import math
from dataclasses import replace

from .rule import PASSES, Step


def step_index(sigma, sigmas, previous=None):
    """The step of a run that a model call belongs to.

    Step i spans σ_i ≥ σ > σ_{i+1}: a sampler that calls the model several times a step is asked at the sigma of each
    call. Equal neighbours are told apart by `previous`: each call at their sigma moves on by one.

    Args:
        sigma: of the call.
        sigmas: of the run, descending, n + 1 of them.
        previous: step of the call before, or None.
    Returns:
        The index, 0 to n − 1.
    """
    steps = len(sigmas) - 1
    tolerance = 1e-6 * abs(sigma)
    final = bisect.bisect_right(sigmas, tolerance - sigma, hi=steps, key=lambda s: -s) - 1
    if final < 0:
        return 0
    first = bisect.bisect_left(sigmas, -sigmas[final], hi=steps, key=lambda s: -s)
    if sigmas[final] > sigma + tolerance:
        return final
    return first if previous is None or previous < first else min(previous + 1, final)


def plan_step(rules, index, steps, sigma, cfg, observed=None):
    """What one step does.

    Args:
        rules: of the stack, in any order.
        index, steps: i and n.
        sigma: at which the model is asked.
        cfg: the sampler's.
        observed: `{node: float}` of what rules observed in earlier steps.
    Returns:
        `Step`.
    """
    step = Step(index, steps, sigma, cfg, observed=observed or {})
    rules = sorted(rules, key=lambda rule: rule.order)
    for rule in rules:
        step = rule.decide(step)
    if step.zero:
        return step
    needs = {need for rule in rules for need in rule.needs(step)}
    if step.cfg != 0.0:
        needs.add("cond")
    if not math.isclose(step.cfg, 1.0):
        needs.add("uncond")
    return replace(step, passes=tuple(name for name in PASSES if name in needs))


def plan(rules, sigmas, cfg):
    """The steps of a whole run with one model call a step, before rules that decide at run time have observed anything.

    Args:
        rules: of the stack.
        sigmas: n + 1 descending floats.
        cfg: the sampler's.
    Returns:
        Tuple of n `Step`s.
    """
    steps = len(sigmas) - 1
    return tuple(plan_step(rules, i, steps, float(sigmas[i]), cfg) for i in range(steps))
