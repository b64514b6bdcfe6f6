"""The texts of `locales/` are those of the nodes, in every language."""

import json
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parent.parent.parent / "locales"
TRANSLATED = ("ja", "zh")
# What these list is found on the disk; only `auto` is a word of ours.
LISTS_OF_FILES = ("diffusion_model", "text_encoder", "vae")
# The editor's translator reads these as syntax.
SYNTAX = set("{}@|")
# Names of methods, files and quantities, which those who write in these languages write so too.
SAME_EVERYWHERE = {"mu", "ksampler", "flux2", "flux3", "flux1", "karras", "beta", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"}


def texts(node):
    """The texts of a node, keyed as the editor looks them up: a dot in an input's name is an underscore."""
    schema, outputs = node.GET_SCHEMA(), {}
    inputs = dict(of_inputs(schema.inputs))
    for index, (output, name, kind) in enumerate(zip(schema.outputs, node.RETURN_NAMES, node.RETURN_TYPES)):
        # The editor itself translates a name that is the type.
        outputs[str(index)] = ({"name": name} if name != kind else {}) | {"tooltip": output.tooltip}
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        **({"inputs": inputs} if inputs else {}),
        "outputs": outputs,
    }


def of_inputs(items, prefix=""):
    for item in items:
        choices = [getattr(option, "key", option) for option in getattr(item, "options", None) or ()]
        if item.id in LISTS_OF_FILES:
            choices = [choice for choice in choices if choice == "auto"]
        options = {"options": {choice: choice for choice in choices}} if choices else {}
        yield prefix + item.id, {"name": item.display_name or item.id, "tooltip": item.tooltip} | options
        for option in getattr(item, "options", None) or ():
            yield from of_inputs(getattr(option, "inputs", ()), f"{prefix}{item.id}_")


def leaves(tree, path=()):
    """`{path: text}` of a tree of texts."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {leaf: text for key, below in tree.items() for leaf, text in leaves(below, (*path, key)).items()}


def read(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def english(comfy):
    return {name: texts(node) for name, node in comfy.NODE_CLASS_MAPPINGS.items() if name.startswith("KleinKit")}


def test_english_is_what_the_nodes_say(english):
    assert read("en") == english


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_language_has_every_text_and_none_too_many(english, language):
    assert set(leaves(read(language))) == set(leaves(english))


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_language_leaves_nothing_in_english(english, language):
    translated = leaves(read(language))
    same = {path: text for path, text in leaves(english).items() if translated[path] == text}
    assert {path: text for path, text in same.items() if text not in SAME_EVERYWHERE} == {}


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_choice_keeps_its_value_in_sight(english, language):
    """Help pages, errors and other people's workflows name choices by their values."""
    translated = leaves(read(language))
    choices = [(path, value) for path, value in leaves(english).items() if path[-2] == "options"]
    assert [path for path, value in choices if value not in translated[path]] == []


@pytest.mark.parametrize("language", ("en", *TRANSLATED))
def test_texts_hold_no_syntax_of_the_translator(language):
    assert [path for path, text in leaves(read(language)).items() if SYNTAX & set(text)] == []
