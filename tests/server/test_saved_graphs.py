"""What users saved with an older version of the pack: their graphs run, and give the pictures that they gave."""

import json
from pathlib import Path

import numpy as np
import pytest
from kleinkit.harness import server as api
from kleinkit.nano.build import knows_taef2
from PIL import Image

SAVED = Path(__file__).resolve().parent.parent / "fixtures" / "c6ab3be"
NODES = json.loads((SAVED / "nodes.json").read_text("utf-8"))
PROMPTS = sorted(path.stem for path in (SAVED / "prompts").glob("*.json"))
# Another CPU may round the last digit of a pixel differently.
LIMIT = 1
# Where ComfyUI does not know TAEF2, nano has another VAE, which rounds differently; a sampler makes more of it in an edit.
WITHOUT_TAEF2 = 12
# What has changed on purpose since: `{(node, input): {what: why}}`.
EXPLAINED: dict[tuple[str, str], dict[str, str]] = {
    ("KleinKitScheduler", "shift"): {
        "first choice": "`auto` asks the model, and is `flux2` without one. Saved graphs and prompts name their choice."
    },
    ("KleinKitCFGZeroStar", "zero_init_steps"): {
        "default": "A fresh node gives no step away: zero-init is reported to harm Klein. Saved graphs and prompts name theirs."
    },
}


@pytest.fixture(scope="module")
def known(server):
    return api.get(server, "/object_info")


def pictures_of(name):
    """`{node id: pixels}` of the pictures that a prompt gave then."""
    return {
        path.stem.removeprefix(f"{name}."): np.asarray(Image.open(path)) for path in (SAVED / "pictures").glob(f"{name}.*.png")
    }


def test_everything_that_was_shipped_is_here():
    shipped = [path.stem for folder in ("workflows", "subgraphs") for path in (SAVED / folder).glob("*.json")]
    assert sorted(shipped) == PROMPTS and len(PROMPTS) == 8 + 2
    assert all(pictures_of(name) for name in PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_saved_prompt_gives_its_pictures(server, comfyui, name):
    limit = LIMIT if knows_taef2(comfyui) else WITHOUT_TAEF2
    prompt = json.loads((SAVED / "prompts" / f"{name}.json").read_text("utf-8"))
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    for node, wanted in pictures_of(name).items():
        [path] = api.pictures(server, outcome._replace(outputs={node: outcome.outputs[node]}))
        made = np.asarray(Image.open(path))
        assert made.shape == wanted.shape
        difference = np.abs(made.astype(int) - wanted)
        assert difference.max() <= limit and difference.mean() <= LIMIT, (difference.max(), difference.mean())


def entries(inputs):
    """`{name: [type, options]}` of the inputs of a node or of a choice, required or optional, in their order."""
    return {name: spec for group in inputs.values() for name, spec in group.items()}


def changes(node, then, now, prefix=""):
    """What is missing or different in today's inputs, a line each."""
    today = entries(now)
    for entry in (entry for group in then.values() for entry in group):
        name = prefix + entry["name"]
        if entry["name"] not in today:
            yield name, "gone"
            continue
        kind, options = [*today[entry["name"]], {}][:2]
        if kind != entry["type"]:
            yield name, "type"
        if options.get("default") != entry.get("default"):
            yield name, "default"
        # A range may grow.
        if options.get("min", 0) > entry.get("min", 0) or options.get("max", 0) < entry.get("max", 0):
            yield name, "range"
        if options.get("forceInput", False) != entry.get("forceInput", False):
            yield name, "widget"
        if "options" in entry:
            yield from changed_choices(node, name, entry["options"], options["options"])


def changed_choices(node, name, then, now):
    """The choices of then are there, the first of them first: it is what a fresh node begins with."""
    keys = [choice["key"] if isinstance(choice, dict) else choice for choice in then]
    today = {choice["key"]: choice["inputs"] for choice in now if isinstance(choice, dict)}
    names = list(today or now)
    if names[0] != keys[0]:
        yield name, "first choice"
    if not set(keys) <= set(names):
        yield name, "choices"
        return
    for choice in then:
        if isinstance(choice, dict):
            old, new = choice["inputs"], today[choice["key"]]
            # An input more in a choice would take the value of the widget behind it.
            if [entry["name"] for group in old.values() for entry in group] != list(entries(new)):
                yield f"{name}={choice['key']}", "inputs of the choice"
            yield from changes(node, old, new, f"{name}.")


@pytest.mark.parametrize("node", NODES)
def test_a_node_only_grows(known, node):
    then, now = NODES[node], known[node]
    found = [
        change
        for change in changes(node, then["inputs"], now["input"])
        if change[1] not in EXPLAINED.get((node, change[0]), {})
    ]
    assert found == []
    outputs = [list(output) for output in zip(now["output"], now["output_name"], now["output_is_list"])]
    assert outputs[: len(then["outputs"])] == then["outputs"]
    assert (now["is_input_list"], now["output_node"]) == (then["is_input_list"], then["output_node"])


@pytest.mark.parametrize("node", NODES)
def test_new_widgets_come_last(known, node):
    """A saved graph keeps the values of widgets as a list: one between them would take the value of the next."""

    def widgets(names, kinds):
        return [
            name for name in names if kinds[name] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
        ]

    then = [entry for group in NODES[node]["inputs"].values() for entry in group if not entry.get("forceInput")]
    now = {name: spec for name, spec in entries(known[node]["input"]).items() if not [*spec, {}][1].get("forceInput")}
    before = widgets([entry["name"] for entry in then], {entry["name"]: entry["type"] for entry in then})
    today = widgets(now, {name: spec[0] for name, spec in now.items()})
    assert today[: len(before)] == before
