"""The rules that a model carries, and their order."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from .cfg import combine
from .rule import ADAPTIVE, ATTENTION, COMBINE, COND, Rule, ScaledVelocities, Step


def ordered(rules: Iterable[Rule]) -> list[Rule]:
    """The rules in the order in which they act, which does not depend on the order of the wiring."""
    return sorted(rules, key=lambda rule: (rule.order, rule.node))


def add(rules: tuple[Rule, ...], rule: Rule) -> tuple[tuple[Rule, ...], bool]:
    """The rules with one more; a rule of the same node is replaced.

    Args:
        rules: those that are there.
        rule: the new one.
    Returns:
        `(rules, replaced)`: the new tuple, and whether an earlier one was replaced.
    Raises:
        ValueError: both combine the predictions, both mix the attention, or two passes have one name. The sentence names
            both nodes.
    """
    kept = tuple(other for other in rules if other.node != rule.node)
    for other in kept:
        if other.order == rule.order == COMBINE:
            raise ValueError(
                f"{rule.title} and {other.title} both decide how the positive and the negative are combined: remove one."
            )
        if other.order == rule.order == ATTENTION:
            raise ValueError(f"{rule.title} and {other.title} both mix the attention to the two prompts: remove one.")
        same = {extra.name for extra in rule.passes} & {extra.name for extra in other.passes}
        if same:
            raise ValueError(f"{rule.title} and {other.title} both have a pass named {min(same)}: rename one.")
    return (*kept, rule), len(kept) < len(rules)


def apply(
    rules: Iterable[Rule],
    velocities: ScaledVelocities,
    step: Step,
    memories: Mapping[str, dict],
    sampled: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """What the rules make of a step.

    Up to the combination, rules change what plain CFG would make of the predictions; the rules after it begin from the
    sampler's result with that change.

    Args:
        rules: of the stack, in any order.
        velocities: of the passes that ran; without `uncond` the combination is the positive alone.
        step: its cfg is the scale that the sampler really used.
        memories: for each rule's node its own dict.
        sampled: σ·v of what the sampler made, with other nodes' changes; plain CFG where it is not given.
    Returns:
        σ·v, [B, …], or None where the rules change nothing and the sampler's own result stands.
    """
    own = v = velocities
    rules = ordered(rules)
    before = [rule for rule in rules if rule.order <= COMBINE]
    for rule in before:
        v = rule.transform(v, step, memories[rule.node])
        if rule.order <= ADAPTIVE:
            # What is reused stands for what the model would have predicted.
            own = v
    changed, guided = v is not velocities, combined(v, step)
    if own.uncond is not None:
        guided = v.joined(step, own.cond, own.uncond, guided)
    if sampled is not None:
        guided = sampled + (guided - combined(velocities, step)) if changed else sampled
    # Rules after the combination compare what the model itself predicted.
    v = combination = replace(own, guided=guided, unguided=v.unguided)
    for rule in rules[len(before) :]:
        v = rule.transform(v, step, memories[rule.node])
    if v.guided is None or (v is combination and not changed):
        return None
    alone = step.without_guidance()
    if alone.cfg == 0.0 and not any(COND in rule.needs(alone) for rule in rules):
        # Of an unguided picture the negative would run alone, and nothing come after it.
        return v.joined(step, guided, guided, v.guided)
    return v.guided


def combined(velocities: ScaledVelocities, step: Step) -> torch.Tensor:
    """σ·v of the combination: a rule's, where one has combined, else plain CFG; the positive where the negative did not run."""
    v = velocities
    if v.guided is not None:
        return v.guided
    return v.cond if v.uncond is None else combine(v.cond, v.uncond, step.cfg)
