"""Which passes every step needs: a pure function of the rules, the sigmas and cfg. Nothing else decides whether a pass runs."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .rule import COND, UNCOND, Rule, Step
from .stack import ordered

TOLERANCE = 1e-6


def step_index(
    sigma: float,
    sigmas: Sequence[float],
    previous: int | None = None,
    counted: tuple[int, int] | None = None,
    over: int = 0,
) -> int:
    """The step of a run that a model call belongs to.

    A call at a step's own sigma is that step's; a call between two sigmas belongs to the step that leads from one to the
    other, down or up. Where several steps fit, the first that is not before `previous` counts, and of equal neighbours
    each call is the next. A sampler's second call at the sigma of the next step (heun) counts as the next step's.
    Where sigma is no step's own, or that of a step which is over, it may have been altered: then the sampler's own count
    decides.

    Args:
        sigma: of the call.
        sigmas: of the run, n + 1 of them.
        previous: step of the call before, or None.
        counted: the first and the last step that the sampler's own count allows, or None where it does not count.
        over: how many steps are surely over.
    Returns:
        The index, 0 to n − 1.
    """
    starts, ends = np.asarray(sigmas[:-1]), np.asarray(sigmas[1:])
    distance = np.abs(starts - sigma)
    nearest = int(distance.argmin())
    # Many sigmas lie closer together than a sampler's own arithmetic is exact: no tolerance where one is met exactly.
    if distance[nearest] <= TOLERANCE * abs(sigma):
        fitting = np.flatnonzero(starts == starts[nearest])
        # One of a step that is over has been altered, such as by a limit of 1.
        if counted and fitting[-1] < over:
            return min(counted[1], len(starts) - 1)
    else:
        fitting = np.flatnonzero((np.minimum(starts, ends) < sigma) & (sigma < np.maximum(starts, ends)))
        if counted:
            first, last = (min(bound, len(starts) - 1) for bound in counted)
            fitting = fitting[(first <= fitting) & (fitting <= last)]
            if not len(fitting):
                return last
    if not len(fitting):
        return nearest
    if previous is None:
        return int(fitting[0])
    if previous in fitting:
        return previous + 1 if previous + 1 in fitting and starts[previous] == starts[previous + 1] else previous
    later = fitting[fitting > previous]
    return int(later[0] if len(later) else fitting[-1])


def plan_step(
    rules: Iterable[Rule],
    index: int,
    steps: int,
    sigma: float,
    cfg: float,
    observed: Mapping[str, float] | None = None,
    known: Collection[str] = (),
) -> Step:
    """What one step does.

    Args:
        rules: of the stack, in any order.
        index, steps: i and n.
        sigma: at which the model is asked.
        cfg: the sampler's.
        observed: `{node: float}` of what rules observed in earlier steps.
        known: the passes of the negative's prompt that ran in the last guided step, beside the positive.
    Returns:
        `Step`.
    """
    step = Step(index, steps, sigma, cfg, observed=observed or {}, known=frozenset(known))
    rules = ordered(rules)
    for rule in rules:
        step = rule.decide(step)
    if step.zero:
        return step
    needs = {need for rule in rules for need in rule.needs(step)}
    if step.cfg != 0.0:
        needs.add(COND)
    if not math.isclose(step.cfg, 1.0):
        needs.add(UNCOND)
    prompts = {COND: COND, UNCOND: UNCOND, **{extra.name: extra.of for rule in rules for extra in rule.passes}}
    negatives = tuple(name for name, of in prompts.items() if of == UNCOND and name in needs)
    reuse = step.reuse and bool(negatives) and step.known.issuperset(negatives)
    if reuse:
        needs = needs.difference(negatives) | {COND}
    return replace(step, reuse=reuse, negatives=negatives, passes=tuple(name for name in prompts if name in needs))


def plan(rules: Iterable[Rule], sigmas: Sequence[float], cfg: float) -> tuple[Step, ...]:
    """The steps of a whole run with one model call a step, before rules that decide at run time have observed anything.

    Args:
        rules: of the stack.
        sigmas: n + 1 descending floats.
        cfg: the sampler's.
    Returns:
        Tuple of n `Step`s.
    """
    count, known, steps = len(sigmas) - 1, frozenset(), []
    for i in range(count):
        steps.append(step := plan_step(rules, i, count, float(sigmas[i]), cfg, known=known))
        if {COND, UNCOND} <= set(step.passes):
            known = frozenset(step.negatives)
    return tuple(steps)
