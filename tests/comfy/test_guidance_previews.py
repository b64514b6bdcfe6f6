"""What is typed into a guidance node: the editor's previews make the rule that the node adds, and both know its limits."""

import math

import pytest
from kleinkit.nano.in_comfyui import random_klein

TYPED = {
    "KleinKitCFG": {"schedule": "curve", "schedule.scales": "6, 2, 1", "unguided": "unconditional"},
    "KleinKitCFGZeroStar": {"optimized_scale": False, "zero_init_steps": 3},
    "KleinKitSkipLayerGuidance": {"scale": 2.0, "double_layers": "1-3", "single_layers": "7, 9", "mode": "attention"},
    "KleinKitSEG": {"scale": 2.0, "double_layers": "1-3", "single_layers": "7, 9", "blur_sigma": 2.5},
    "KleinKitRenorm": {"mode": "channel", "strength": 0.5, "shrink_only": False},
    "KleinKitSlerpCFG": {"cap": 45.0},
    "KleinKitImageCFG": {"image_scale": 2.0},
    "KleinKitAutoGuidance": {"scale": 3.0, "double_layers": "1-3", "single_layers": "7, 9", "prompt": "both", "end": 0.5},
    "KleinKitMomentum": {"alpha": 1.5, "beta": 0.2, "start": 0.1, "end": 0.5},
    "KleinKitAdaptiveGuidance": {"threshold": 0.5, "start": 0.2, "every": 3},
    "KleinKitGuidance": {"preset": "high_cfg"},
    "KleinKitNAG": {"scale": 3.0, "tau": 2.0, "alpha": 0.5, "start": 0.1, "end": 0.9},
    "KleinKitAPG": {"eta": 0.5, "norm_threshold": 9.0, "momentum": 0.1, "space": "velocity", "start": 0.2, "scale": 7.0},
    "KleinKitMAMBOG": {"alpha": 3.0},
    "KleinKitFDG": {"shares": "0.5, 1, 0.1"},
}


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein(double_blocks=5, single_blocks=20)


@pytest.fixture(scope="module")
def guidance_nodes(comfy):
    """`{id: schema}` of the nodes that add a rule to a model."""
    schemas = {name: node.GET_SCHEMA() for name, node in comfy.NODE_CLASS_MAPPINGS.items() if name.startswith("KleinKit")}
    return {name: schema for name, schema in schemas.items() if schema.category == "KleinKit/guidance"}


def test_previews_know_every_guidance_node_by_its_title(pack, guidance_nodes):
    titles, presets = {name: schema.display_name for name, schema in guidance_nodes.items()}, pack("guidance.presets")
    known = {name: rule.title for name, rule in pack("previews.guidance").RULES.items()}
    assert known | {presets.NODE: presets.TITLE} == titles


@pytest.mark.parametrize("typed", [False, True], ids=["defaults", "typed"])
def test_a_preview_makes_the_rule_that_the_node_adds(pack, run_node, klein, guidance_nodes, typed):
    rules_of, key = pack("previews.guidance").rules_of, pack("engine.sampling").RULES
    for name, schema in guidance_nodes.items():
        inputs = {one.id: one.default for one in schema.inputs if getattr(one, "default", None) is not None}
        if name == "KleinKitCFG":
            inputs |= {"schedule": "constant"}
        inputs |= TYPED.get(name, {}) if typed else {}
        of_choice = {of.partition(".")[2]: value for of, value in inputs.items() if "." in of}
        plain = {of: value for of, value in inputs.items() if "." not in of}
        if "schedule" in plain:
            plain["schedule"] = {"schedule": plain["schedule"]} | of_choice
        others = {"base_model": random_klein(1, double_blocks=5, single_blocks=20)} if name == "KleinKitBaseUncond" else {}
        guided = run_node(name, model=klein, **plain, **others)[0]
        rules = guided.model_options.get(key, ())
        assert rules == rules_of({"node": name, "inputs": inputs}), name
        assert typed or rules in ((), rules_of({"node": name, "inputs": {}})), name


def defaults(inputs):
    return {one.id: one.default for one in inputs if getattr(one, "default", None) is not None}


def numbers(schema):
    """Each number of a node, and the inputs that it stands among: the node's, or those of a choice of its schedule."""
    plain = defaults(schema.inputs)
    for one in schema.inputs:
        if hasattr(one, "min"):
            yield one, plain, plain
        for option in one.options if one.id == "schedule" else ():
            choice = {"schedule": option.key, **defaults(option.inputs)}
            yield from ((inner, choice, {**plain, "schedule": choice}) for inner in option.inputs if hasattr(inner, "min"))


def test_a_number_by_link_has_the_limits_of_its_widget(run_node, klein, guidance_nodes):
    """No widget checks it then."""
    for name, schema in guidance_nodes.items():
        for number, beside, inputs in numbers(schema):
            step, empty_range = number.step or 1, {"start": 1.0, "end": 0.0}.get(number.id)
            for value in {number.min, number.max} - {empty_range}:
                beside[number.id] = value
                run_node(name, model=klein, **inputs)
            for value in (number.min - step, number.max + step, math.nan):
                beside[number.id] = value
                with pytest.raises(ValueError, match=f"Expected `{number.id}` to be "):
                    run_node(name, model=klein, **inputs)
            beside[number.id] = number.default
