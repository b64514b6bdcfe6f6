"""What the editor's previews of guidance show."""

from dataclasses import fields
from functools import partial
from typing import Any

from ..checks import expected, in_node, number, one_of
from ..engine.samplers import asks_once
from ..guidance import stack
from ..guidance.adaptive import Adaptive
from ..guidance.apg import APG
from ..guidance.auto import AutoGuidance
from ..guidance.base_uncond import BaseUncond
from ..guidance.cfg import CFG, choose_schedule
from ..guidance.distilled import Distilled
from ..guidance.fdg import FDG, parse_shares
from ..guidance.image import ImageCFG
from ..guidance.mambo_g import MamboG
from ..guidance.momentum import Momentum
from ..guidance.nag import NAG
from ..guidance.plan import plan
from ..guidance.presets import NODE as PRESET_NODE
from ..guidance.presets import TITLE as PRESET_TITLE
from ..guidance.presets import preset
from ..guidance.renorm import Renorm
from ..guidance.rule import UNCOND, Rule
from ..guidance.seg import SEG
from ..guidance.skip_layer import SkipLayer, parse_layers
from ..guidance.slerp import Slerp
from ..guidance.tcfg import TCFG
from ..guidance.zero_star import CFGZeroStar
from .sigmas import inputs_of
from .sigmas import preview as preview_sigmas

SETTINGS = "schedule", "unguided", "rules", "distilled", "cfg", "sampler", "sigmas"
# The server waits while a plan is made, step by step.
MOST_STEPS = 1000
MOST_RULES = 16
MOST_LAYERS = 1000
KINDS = "double_layers", "single_layers"


def _cfg(schedule: str = "constant", unguided: str = "conditional", **inputs: Any) -> Rule:
    others, inputs = inputs_of("schedule", inputs)
    for name in others:
        one_of("input", ("schedule", "unguided"), name)
    return CFG(choose_schedule(schedule, **inputs), unguided)


def _with_layers(kind: type[Rule], **inputs: Any) -> Rule:
    return _of_fields(kind, inputs | {name: layers_of(name, inputs[name]) for name in KINDS if name in inputs})


def _fdg(**inputs: Any) -> Rule:
    return _of_fields(FDG, inputs | ({"shares": parse_shares(inputs["shares"])} if "shares" in inputs else {}))


def _of_fields(kind: type[Rule], inputs: dict[str, Any]) -> Rule:
    for name in inputs:
        one_of("input", [field.name for field in fields(kind)], name)
    return kind(**inputs)


KINDS_OF_RULES = (
    CFG,
    SkipLayer,
    SEG,
    CFGZeroStar,
    Renorm,
    Slerp,
    ImageCFG,
    BaseUncond,
    AutoGuidance,
    Momentum,
    Adaptive,
    NAG,
    APG,
    MamboG,
    FDG,
    TCFG,
)
RULES = {kind.node: kind for kind in KINDS_OF_RULES}
# Rules of other fields than their node has inputs.
FROM_INPUTS = {CFG: _cfg, FDG: _fdg, **{kind: partial(_with_layers, kind) for kind in (SkipLayer, SEG, AutoGuidance)}}


def layers_of(name: str, text: Any, count: int | None = None) -> tuple[int, ...]:
    """The layers of an input of Klein Skip-Layer Guidance, Klein SEG or Klein AutoGuidance.

    Args:
        name: of the input.
        text: as typed.
        count: how many layers of this kind the model has, or None where the model is not known.
    Raises:
        ValueError: not of that form, or outside the model.
    """
    if not isinstance(text, str):
        raise expected(name, "a text", text)
    if count is not None:
        return parse_layers(name, text, count)
    try:
        return parse_layers(name, text, MOST_LAYERS)
    except ValueError:
        raise expected(name, "layers such as `9` or `7-9, 12`", text) from None


def node_of(settings: Any) -> tuple[str, dict]:
    """The id of a node in a list of settings, and its inputs.

    Raises:
        ValueError: not of that form, or no such node.
    """
    if not (isinstance(settings, dict) and settings.keys() <= {"node", "inputs"}):
        raise expected("rules", "objects of `node` and `inputs`", settings)
    node, inputs = settings.get("node"), settings.get("inputs", {})
    one_of("node", (*RULES, PRESET_NODE), node)
    if not isinstance(inputs, dict):
        raise expected("inputs", "an object of settings", inputs)
    return node, inputs


def rule_of(settings: Any) -> Rule:
    """The rule that a guidance node adds to the model.

    Args:
        settings: `{"node": id, "inputs": {input: value}}`, inputs as in a prompt of ComfyUI's API; those that are left out
            have their defaults.
    Raises:
        ValueError: not of that form, no such node or input, or a value that does not fit.
    """
    node, inputs = node_of(settings)
    one_of("node", RULES, node)
    kind = RULES[node]
    with in_node(kind.title):
        return FROM_INPUTS[kind](**inputs) if kind in FROM_INPUTS else _of_fields(kind, inputs)


def rules_of(settings: Any) -> tuple[Rule, ...]:
    """The rules that a node adds to the model: that of a guidance node, or those of a preset.

    Args:
        settings: as `rule_of` takes them.
    Raises:
        ValueError: as `rule_of`.
    """
    node, inputs = node_of(settings)
    if node != PRESET_NODE:
        return (rule_of(settings),)
    with in_node(PRESET_TITLE):
        for name in inputs:
            one_of("input", ("preset",), name)
        return preset(inputs.get("preset", "off"))


def preview(settings: dict) -> dict:
    """What the guidance nodes of a model make of a run.

    Args:
        settings: `rules`, the nodes in the order of the wiring as `rules_of` takes them; in front of them one `KleinKitCFG`
            by its inputs (`schedule`, `schedule.start`, `unguided`, …); `distilled`, whether the loader's guard is on the
            model; `cfg` of the sampler; `sampler`, its name; and `sigmas`, the settings of `sigmas.preview`. Those that are
            left out have their defaults, cfg 5 and euler.
    Returns:
        dict: `cfg` [n], the scale of each step; `passes` [n], how many run; `total`, their sum; `plain`, how many run
        without any of the rules; `ignored`, the highest cfg that counts as 1 because the model is distilled, else 0;
        `negative`, whether the negative prompt counts in a step; `decides`, the nodes that can end guidance during the
        run, so that `total` is the most that runs; `once`, whether the sampler asks for the passes of each step once and for
        no others; `by_sigma`, whether other sigmas would give other scales or passes; `rules`, the nodes of the rules in the
        order in which they act, without a Klein CFG that changes nothing.
    Raises:
        ValueError: no such setting, or a value that does not fit.
    """
    settings, inputs = inputs_of("schedule", settings)
    for name in settings:
        one_of("setting", SETTINGS, name)
    inputs = {f"schedule.{name}": value for name, value in inputs.items()}
    first = {name: settings[name] for name in ("schedule", "unguided") if name in settings}
    listed, distilled = settings.get("rules", []), settings.get("distilled", False)
    cfg, of_sigmas = settings.get("cfg", 5.0), settings.get("sigmas", {})
    sampler = settings.get("sampler", "euler")
    number("cfg", cfg, 0.0, 100.0)
    if not isinstance(sampler, str):
        raise expected("sampler", "a name", sampler)
    if not isinstance(distilled, bool):
        raise expected("distilled", "true or false", distilled)
    if not isinstance(of_sigmas, dict):
        raise expected("sigmas", "an object of settings", of_sigmas)
    if not isinstance(listed, list) or len(listed) > MOST_RULES:
        raise expected("rules", f"a list of at most {MOST_RULES} nodes", listed)
    rules: tuple[Rule, ...] = ()
    for rule in (_cfg(**first, **inputs), *(rule for one in listed for rule in rules_of(one))):
        rules, _ = stack.add(rules, rule)
    guard = (Distilled(),) if distilled else ()
    sigmas = preview_sigmas(of_sigmas)["sigmas"]
    if len(sigmas) > MOST_STEPS + 1:
        raise expected("steps", f"at most {MOST_STEPS} in a preview of guidance", len(sigmas) - 1)
    asked, steps = plan(rules, sigmas, cfg), plan((*rules, *guard), sigmas, cfg)
    passes = [len(step.passes) for step in steps]
    straight = plan((*rules, *guard), [1.0 - i / max(len(steps), 1) for i in range(len(steps) + 1)], cfg)
    guided = any(step.guided and not step.zero and len(step.passes) > 1 for step in steps)
    return {
        "cfg": [step.cfg for step in steps],
        "passes": passes,
        "total": sum(passes),
        "plain": sum(len(step.passes) for step in plan(guard, sigmas, cfg)),
        "ignored": max((step.cfg for step in asked if step.cfg > 1.0), default=0.0) if distilled else 0.0,
        "negative": any(UNCOND in step.passes or any(rule.mix(step) for rule in rules) for step in steps),
        "once": asks_once(sampler),
        "by_sigma": [(step.cfg, step.passes) for step in straight] != [(step.cfg, step.passes) for step in steps],
        "decides": [rule.node for rule in rules if guided and rule.decides],
        "rules": [rule.node for rule in stack.ordered(rules) if rule != CFG()],
    }


def preview_layers(settings: dict) -> dict:
    """The layers that the texts of Klein Skip-Layer Guidance, Klein SEG or Klein AutoGuidance mean.

    Args:
        settings: `double_layers` and `single_layers` as typed; and `counts`, how many of each the model has, or left out
            where the model is not known.
    Returns:
        dict: `double_layers` and `single_layers`, lists of indices.
    Raises:
        ValueError: no such setting, or a text not of that form, or outside the model.
    """
    for name in settings:
        one_of("setting", (*KINDS, "counts"), name)
    counts = settings.get("counts", {})
    if not (isinstance(counts, dict) and counts.keys() <= set(KINDS)):
        raise expected("counts", "an object of double_layers and single_layers", counts)
    for name, count in counts.items():
        number(name, count, 0, MOST_LAYERS)
    return {name: list(layers_of(name, settings.get(name, ""), counts.get(name))) for name in KINDS}
