"""The rules that a model carries, and their order."""

from dataclasses import replace

from .cfg import combine
from .rule import COMBINE


def add(rules, rule):
    """The rules with one more; a rule of the same node is replaced.

    Args:
        rules: tuple of rules.
        rule: the new one.
    Returns:
        `(rules, replaced)`: the new tuple, and whether an earlier one was replaced.
    Raises:
        ValueError: the rule cannot be combined with one that is there; the sentence names both nodes.
    """
    for other in rules:
        if other.order == rule.order and other.node != rule.node:
            raise ValueError(f"{rule.node} and {other.node} both decide how the predictions are combined: remove one.")
    kept = tuple(other for other in rules if other.node != rule.node)
    return (*kept, rule), len(kept) < len(rules)


def guide(rules, velocities, step):
    """The guided velocity of a step.

    Args:
        rules: of the stack, in any order.
        velocities: `Velocities` of the passes that ran; without `uncond` the combination is the positive alone.
        step: the `Step`, its cfg the scale that the sampler really used.
    Returns:
        σ·v, [B, …], or None where the rules change nothing and the sampler's own result stands.
    """
    changed = False
    for rule in sorted(rules, key=lambda rule: rule.order):
        if rule.order > COMBINE:
            velocities = combined(velocities, step)
        before, velocities = velocities, rule.transform(velocities, step)
        changed |= velocities is not before
    return combined(velocities, step).guided if changed else None


def combined(velocities, step):
    """The velocities with `guided` set, by plain CFG unless a rule has combined them already."""
    v = velocities
    if v.guided is not None:
        return v
    return replace(v, guided=v.cond if v.uncond is None else combine(v.cond, v.uncond, step.cfg))
