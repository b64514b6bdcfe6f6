"""What has no effect or no meaning in a run, or did not happen as it was planned: a sentence each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import comfy.model_sampling
import comfy_extras.nodes_cfg
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider

from ..checkpoint.families import FLUX2_KLEIN, FLUX3_KLEIN
from ..checks import is_number
from ..guidance.image import IMAGE, has_references
from ..guidance.momentum import Momentum
from ..guidance.plan import plan
from ..guidance.rule import (
    ADAPTIVE,
    ATTENTION,
    BASE,
    COMBINE,
    COND,
    DISTILLED,
    MOMENTUM,
    NEGATIVE,
    RENORM,
    SCHEDULE,
    TANGENT,
    UNCOND,
    Rule,
    Step,
)
from .family import family_of_model, is_flow_map
from .run import COMBINING, POST, Run, as_list, at_sigma, name_of, titles

PROMPTS = {COND: "positive", UNCOND: "negative"}
# Orders of rules that need a negative prediction.
OF_NEGATIVE = (ADAPTIVE, BASE, TANGENT, NEGATIVE, COMBINE)
# Orders of rules that need the positive too, and do not ask for it.
OF_BOTH = (ADAPTIVE, ATTENTION, TANGENT, NEGATIVE, COMBINE, MOMENTUM)


def is_flow(model: ModelPatcher) -> bool:
    """Whether a model samples by flow matching, as FLUX.2 does; some nodes make it sample in another way."""
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def is_plain(guider: CFGGuider) -> bool:
    """Whether a guider predicts as ComfyUI's CFGGuider does: a positive, a negative, and `cfg` between them."""
    return type(guider).predict_noise is CFGGuider.predict_noise


def scale_of(guider: CFGGuider) -> float:
    """A guider's cfg; 1 where it is no number, as in KJNodes' ScheduledCFGGuidance, whose cfg can be a list."""
    return guider.cfg if is_number(guider.cfg) else 1.0


def is_zero_star(hook: Callable) -> bool:
    """Whether a hook is that of ComfyUI's CFGZeroStar: the function that its node defines."""
    node = getattr(comfy_extras.nodes_cfg, "CFGZeroStar", None)
    method = getattr(node, "execute", None) or getattr(node, "patch", None)
    defines = getattr(getattr(method, "__code__", None), "co_consts", ())
    # A callable object has no code, and None is among the constants of most functions.
    return hasattr(hook, "__code__") and hook.__code__ in defines


def before_run(rules: tuple[Rule, ...], guider: CFGGuider, model_options: dict, sigmas: list[float]) -> Iterator[str]:
    """What is known before a run begins."""
    title, family = {rule.order: rule.title for rule in rules}, family_of_model(guider.model_patcher.model)
    hooks = model_options[POST]
    steps, has_negative = plan(rules, sigmas, scale_of(guider)), "negative" in guider.conds
    with_nag = family is FLUX2_KLEIN and ATTENTION not in title and has_negative
    if rules and not is_flow(guider.model_patcher):
        yield (
            "A node behind KleinKit's, such as ModelSamplingDiscrete, makes the model sample in a way that FLUX.2 was not "
            "trained for. Remove it."
        )
    if DISTILLED in title:
        others = [rule for rule in rules if rule.order != DISTILLED]
        asked = max((step.cfg for step in plan(others, sigmas, scale_of(guider))), default=0.0)
        if asked > 1.0:
            offer = " For a negative prompt at cfg 1 there is Klein NAG." if with_nag else ""
            with_nag = False
            yield (
                f"cfg {asked:g} counts as 1 on this distilled model. Set cfg to 1, or `distilled_cfg` of Klein Loader to "
                f"`allow`.{offer}"
            )
    if is_plain(guider) and (idle := without_negative(rules, steps, len(hooks) > 1)):
        distilled = DISTILLED in title or is_flow_map(guider.model_patcher.model)
        where = "on this distilled model" if distilled else "at cfg 1" if has_negative else "with this guider, which has none"
        offer = " Klein NAG is what makes a negative prompt work there." if with_nag else ""
        yield f"No negative runs {where}, so nothing comes of {titles(idle)}.{offer}"
    theirs = model_options.get("sampler_cfg_function")
    if theirs is not None and (ours := title.get(COMBINE) or title.get(NEGATIVE) or title.get(TANGENT)):
        yield (
            f"{ours} and another node's function ({name_of(theirs)}) both change how the positive and the negative are "
            "combined. Remove one."
        )
    combining = [hook for name in COMBINING for hook in as_list(model_options.get(name))]
    if combining and any(step.reuse or (ADAPTIVE in title and step.unguided_cfg is None) for step in steps):
        yield (
            f"{title[SCHEDULE]} reuses guidance in steps of one pass, and another node's function ({name_of(combining[0])}) "
            "needs both predictions: it is left out in these steps. Remove one, or set `unguided` to conditional."
        )
    if NEGATIVE in title and any(map(is_zero_star, hooks)):
        yield f"{title[NEGATIVE]} and ComfyUI's CFGZeroStar both scale the negative prediction. Remove ComfyUI's."
    patches = model_options.get("transformer_options", {}).get("patches", {})
    if ATTENTION in title and "attn1_output_patch" in patches:
        yield (
            f"{title[ATTENTION]} and another node, such as ComfyUI's Normalized Attention Guidance, both change what the "
            "attention gives. Remove one of the two."
        )
    if BASE in title and any(name.startswith("attn") for name in patches):
        yield (
            f"{title[BASE]} takes the negative out of the batch, so a node that mixes positive and negative in the model's "
            "attention, such as ComfyUI's Normalized Attention Guidance, does nothing. Remove one of the two."
        )
    if family is FLUX3_KLEIN:
        ran = {name for step in steps for name in step.passes}
        having = [prompt for prompt in PROMPTS.values() if has_references(guider.conds.get(prompt) or ())]
        # Klein Image CFG says itself what it needs.
        if UNCOND in ran and (having == ["negative"] or (having == ["positive"] and IMAGE not in ran)):
            yield (
                f"The references are in the {having[0]} prompt alone. FLUX 3 is guided with them in both: take both prompts "
                "from Klein References, or put ReferenceLatent behind the other one too."
            )


def without_negative(rules: tuple[Rule, ...], steps: tuple[Step, ...], hooked: bool) -> list[Rule]:
    """The rules that do nothing in a run, because its steps run without the negative.

    Args:
        rules, steps: of the run.
        hooked: whether another node changes the sampler's result.
    """
    ran = {name for step in steps for name in step.passes}
    if UNCOND in ran or not ran:
        return []
    changed = hooked or any(extra.name in ran for rule in rules for extra in rule.passes)
    idle = [rule for rule in rules if rule.order in OF_NEGATIVE or (rule.order == RENORM and not changed)]
    return [rule for rule in idle if not makes_zero(rule, steps)]


def after_run(run: Run, guider: CFGGuider) -> None:
    """Warn of the rules that did nothing in a run, because its steps ran the negative alone, as planned."""
    if set(run.total) != {UNCOND}:
        return
    steps = plan(run.rules, run.sigmas, scale_of(guider))
    if {name for step in steps for name in step.passes} == {UNCOND}:
        idle = [rule for rule in run.rules if rule.order in OF_BOTH and not makes_zero(rule, steps)]
        if idle:
            run.warn(f"At cfg 0 the negative runs alone, so nothing comes of {titles(idle)}.")


def makes_zero(rule: Rule, steps: tuple[Step, ...]) -> bool:
    """Whether a rule makes the velocity of a step zero: such a step needs no prediction."""
    return any(step.zero and rule.decide(replace(step, zero=False)).zero for step in steps)


def both_run(run: Run, guider: CFGGuider) -> None:
    """Warn that a step which the plan gives one pass has both."""
    saving = titles(rule for rule in run.rules if rule.order in (SCHEDULE, DISTILLED, ADAPTIVE))
    if saving and not is_plain(guider):
        kind = type(guider).__name__
        run.warn(f"{kind} runs more than one prompt in steps without guidance too, so they save no time ({saving}).", "both")
    elif saving:
        run.warn(
            "Another node or the sampler, such as ComfyUI's Normalized Attention Guidance or a sampler of the cfg_pp kind, "
            f"asks for both passes in every step. So steps without guidance save no time ({saving}).",
            "both",
        )


def has_prompt(guider: CFGGuider, name: str, sigma: float) -> bool:
    """Whether a prompt of the sampler has a conditioning at this sigma: it may be empty, or be for other steps."""
    conds = guider.conds.get(PROMPTS[name])
    return conds is None or bool(at_sigma(conds, sigma))


def after_step(run: Run, guider: CFGGuider) -> None:
    """Warn where a step did not run as it was planned."""
    step, ran, kind = run.step, run.ran(), type(guider).__name__
    reuses = step.unguided_cfg is None
    owners = {extra.name: (rule.title, extra.of) for rule in run.rules for extra in rule.passes}
    # Some guiders have more prompts than two, and guide by them.
    others = any(ran[name] for name in run.conds if name not in PROMPTS.values())
    for name in step.passes:
        if ran[name]:
            continue
        number, (title, of) = step.index + 1, owners.get(name, ("", name))
        if not has_prompt(guider, of, step.sigma):
            run.warn(f"The {PROMPTS[of]} prompt has no conditioning in step {number}, so no pass runs for it.", of)
        elif not ran:
            run.warn(f"The plan had passes in step {number}, and none ran: another node answered for the model.", "none")
        elif not title and run.used not in (None, 1.0) and is_plain(guider):
            run.warn(f"Another node answered for the {PROMPTS[name]} prompt in step {number}: no pass ran for it.", name)
        elif not title and others:
            if idle := titles(rule for rule in run.rules if rule.order in OF_NEGATIVE or (rule.order == SCHEDULE and reuses)):
                run.warn(f"{kind} ran no {PROMPTS[name]} in step {number}, so nothing comes of {idle} in it.", name)
        elif not title:
            run.warn(f"{kind} ran no {PROMPTS[name]} in step {number}, so there is no guidance in it.", name)
        elif run.served(of) or (of in step.passes and not ran[of]):
            run.warn(f"{title} does nothing in steps that a cache answers, because the model does not run in them.", title)
        else:
            run.warn(f"{title} planned a pass in step {number}, but {kind} did not run it, so it has no effect.", name)
    for rule in run.rules:
        if isinstance(rule, Momentum) and rule.alpha and run.used is None and ran[COND] and not is_plain(guider):
            run.warn(f"{rule.title} has no effect in step {step.index + 1}, because {kind} calls no hook in it.", rule.node)
        if rule.node in run.asked - run.acted and ran[COND] and not run.served(COND):
            run.warn(f"{rule.title} had nothing to mix in step {step.index + 1}, so it has no effect there.", rule.node)
    as_planned = run.used is None or math.isclose(run.used, step.cfg)
    one_pass = step.passes and UNCOND not in step.passes and (is_plain(guider) or not step.guided)
    if as_planned and one_pass and (ran[UNCOND] or others):
        both_run(run, guider)
    follows = [rule.title for rule in run.rules if rule.order in (SCHEDULE, DISTILLED, ADAPTIVE)]
    if as_planned or (not ran[UNCOND] and ran[COND]):
        return
    if is_plain(guider):
        run.warn(f"Another node changed cfg to {run.used:g} behind KleinKit's nodes, which follow it.", "cfg")
    elif follows:
        run.warn(
            f"{kind} does not take its scale from cfg, so {', '.join(follows)} cannot save passes or change the scale in it.",
            "cfg",
        )
