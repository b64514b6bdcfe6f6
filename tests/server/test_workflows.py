"""The workflows that the pack ships, on the nano family over the API queue."""

import itertools

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api
from kleinkit.harness.workflow import NANO, NOTES, WORKFLOWS, as_prompt, names, nodes, read
from PIL import Image

TITLE_BAR = 30
# Where ComfyUI has the official files from, and Black Forest Labs' own.
FILES = {*NANO, "qwen_3_4b.safetensors", "flux2-vae.safetensors"}
MOST_BYTES = 60_000
WIDTH, HEIGHT = 768, 512

every_workflow = pytest.mark.parametrize("name", names())


def rectangle(node):
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - TITLE_BAR, left + width, top + height


@pytest.fixture(scope="module")
def known(server):
    return api.get(server, "/object_info")


@every_workflow
def test_inputs_are_those_of_the_nodes(known, name):
    for node in as_prompt(read(name)).values():
        inputs = known[node["class_type"]]["input"]
        # Those that a choice brings are named after it.
        assert {key.partition(".")[0] for key in node["inputs"]} <= {key for group in inputs.values() for key in group}


@every_workflow
def test_runs(server, name):
    outcome = api.queue(server, prompts.of_workflow(name, steps=2, values="1, 4"))
    assert outcome.error is None, api.sentences(outcome.error)
    for path in api.pictures(server, outcome):
        assert np.asarray(Image.open(path)).std() > 0


@every_workflow
def test_notes_say_where_the_files_are_to_be_had(name):
    graph = read(name)
    [loader] = nodes(graph, "KleinKitLoader")
    models = loader["properties"]["models"]
    text = "\n".join(note["widgets_values"][0] for note in nodes(graph, *NOTES))
    assert loader["widgets_values"][:3] == [models[0]["name"], "auto", "auto"]
    assert {model["name"] for model in models} < FILES
    assert [model["url"] for model in models if model["url"] not in text] == []


@every_workflow
def test_nodes_do_not_overlap(name):
    for one, other in itertools.combinations(read(name)["nodes"], 2):
        (left, top, right, bottom), (left2, top2, right2, bottom2) = rectangle(one), rectangle(other)
        apart = right < left2 or right2 < left or bottom < top2 or bottom2 < top
        assert apart, f"{one['type']} {one['id']} and {other['type']} {other['id']}"


@every_workflow
def test_thumbnail(name):
    path = WORKFLOWS / f"{name}.jpg"
    width, height = Image.open(path).size
    assert path.stat().st_size <= MOST_BYTES
    assert width <= WIDTH and height <= HEIGHT and max(width / WIDTH, height / HEIGHT) == 1
