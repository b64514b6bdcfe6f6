"""The workflows that the pack ships, on the nano family over the API queue."""

import itertools
from urllib.parse import quote

import numpy as np
import pytest
from kleinkit.harness import server as api
from kleinkit.harness.workflow import (
    BYPASSED,
    EXAMPLES,
    NANO,
    NANO_FLUX3,
    NOTES,
    WORKFLOWS,
    as_prompt,
    for_nano,
    names,
    nodes,
    read,
    tried,
)
from PIL import Image

TITLE_BAR, SLOTS = 30, 20
# Where ComfyUI has the official files from, and Black Forest Labs' own.
FILES = {*NANO, *NANO_FLUX3, "qwen_3_4b.safetensors", "qwen3vl_4b_bf16.safetensors", "flux2-vae.safetensors"}
# On the canvas, notes not counted.
MOST_NODES, MOST_OF_TEXT = 12, 8
# What shows the whole pack at work.
LARGE = ("16 Klein Probe and Report",)
MOST_BYTES = 60_000
WIDTH, HEIGHT = 768, 512

# Nodes that a workflow has bypassed, for its reader to try one by one.
TRIED = [(name, node["id"]) for name in names() for node in read(name)["nodes"] if node["mode"] == BYPASSED]

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


def test_the_template_browser_shows_titles_in_words(server):
    assert sorted(api.get(server, "/workflow_templates")[api.PACK]) == names()
    of_flux3 = [name for name in names() if name.startswith("FLUX 3 ")]
    others = [name for name in names() if name not in of_flux3]
    # Two digits, because names are sorted as texts.
    for group, begins in ((others, "{:02} Klein "), (of_flux3, "FLUX 3 Klein {} ")):
        assert all(name.startswith(begins.format(number)) and "-" not in name for number, name in enumerate(group, 1))
    for name in names():
        assert api.get(server, f"/api/workflow_templates/{api.PACK}/{quote(name)}.json") == read(name)


@every_workflow
def test_the_canvas_is_not_crowded(name):
    canvas = [node for node in read(name)["nodes"] if node["type"] not in NOTES]
    most = MOST_OF_TEXT if any(words in name for words in ("First Picture", "Text to Image")) else MOST_NODES
    assert len(canvas) <= most or name in LARGE


@every_workflow
def test_runs(server, ran, name):
    for path in api.pictures(server, ran(name)):
        assert np.asarray(Image.open(path)).std() > 0


def made(server, ran, name):
    """The picture of a workflow, and that which it begins with, with its alpha channel: int [height, width, 3 and 4]."""
    [path] = api.pictures(server, ran(name))
    [load] = nodes(for_nano(read(name)), "LoadImage")
    source = Image.open(server.base / "input" / load["widgets_values"][0]).convert("RGBA")
    return np.asarray(Image.open(path).convert("RGB"), int), np.asarray(source, int)


def test_inpainting_changes_what_the_mask_covers_alone(server, ran):
    picture, source = made(server, ran, "06 Klein Inpaint")
    changed, hole = (picture != source[..., :3]).any(-1), source[..., 3] == 0
    assert not changed[~hole].any() and changed[hole].mean() > 0.5


def test_an_extended_picture_has_the_old_one_in_it(server, ran):
    picture, source = made(server, ran, "07 Klein Extend a Picture")
    height, width, _ = source.shape
    assert picture.shape == (height, width + width // 2, 3)
    assert np.array_equal(picture[:, :width], source[..., :3]) and picture[:, width:].std() > 0


@pytest.mark.parametrize("name, number", TRIED)
def test_a_bypassed_node_can_be_tried(server, name, number):
    prompt = as_prompt(tried(read(name), number))
    for node in prompt.values():
        node["inputs"] |= {"steps": 1} if "steps" in node["inputs"] else {}
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    assert len(api.pictures(server, outcome)) == 1 and "KleinKit: 1 steps" in outcome.log


def test_every_node_is_in_a_workflow(known):
    shown = {node["type"] for name in names() for node in read(name)["nodes"]}
    assert {kind for kind in known if kind.startswith("KleinKit")} - shown == set()


@pytest.mark.parametrize("name", [name for name in names() if nodes(read(name), "LoadImage")])
def test_a_workflow_begins_with_pictures_of_the_pack(name):
    loads = nodes(read(name), "LoadImage")
    assert all((EXAMPLES / load["widgets_values"][0]).stat().st_size < MOST_BYTES for load in loads)
    # The editor's script knows them by their names.
    assert all(load["widgets_values"][0].startswith("kleinkit-") for load in loads)


@every_workflow
def test_notes_say_where_the_files_are_to_be_had(name):
    graph = read(name)
    text = "\n".join(note["widgets_values"][0] for note in nodes(graph, *NOTES))
    for loader in nodes(graph, "KleinKitLoader"):
        models = loader["properties"]["models"]
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
def test_what_is_no_note_is_in_a_group(name):
    graph = read(name)
    for node in graph["nodes"]:
        left, top, right, bottom = rectangle(node)
        around = [
            group["title"]
            for group in graph["groups"]
            if group["bounding"][0] < left
            and group["bounding"][1] < top
            and group["bounding"][0] + group["bounding"][2] > right
            and group["bounding"][1] + group["bounding"][3] > bottom
        ]
        assert len(around) == (node["type"] not in NOTES), f"{node['type']} {node['id']}: {around}"


@every_workflow
def test_no_node_hides_a_model_or_a_vae_wire(name):
    graph = read(name)
    by_id = {node["id"]: node for node in graph["nodes"]}
    bends = {bend["id"]: bend for bend in graph["extra"].get("reroutes", ())}
    last = {link["id"]: link["parentId"] for link in graph["extra"].get("linkExtensions", ())}
    for link, origin, slot, target, into, kind in graph["links"]:
        if kind not in ("MODEL", "VAE"):
            continue
        way, bend = [place(by_id[target], into)], last.get(link)
        while bend is not None:
            way, bend = [bends[bend]["pos"], *way], bends[bend].get("parentId")
        way = [place(by_id[origin], slot, right=True), *way]
        for point in along(way):
            hidden = [node["id"] for node in graph["nodes"] if inside(point, rectangle(node))]
            assert hidden == [], f"{kind} from {origin} to {target} at {point}"


def place(node, slot, right=False):
    """Where a node's slot is: on its right for outputs."""
    return node["pos"][0] + right * node["size"][0], node["pos"][1] + SLOTS * (slot + 0.7)


def along(way):
    """Points of straight lines from point to point."""
    for (x, y), (x2, y2) in itertools.pairwise(way):
        for part in np.linspace(0, 1, 50):
            yield x + part * (x2 - x), y + part * (y2 - y)


def inside(point, sides):
    (x, y), (left, top, right, bottom) = point, sides
    return left < x < right and top < y < bottom


@every_workflow
def test_the_size_of_a_run_is_typed_once(name):
    graph = read(name)
    assert len(nodes(graph, "EmptyFlux2LatentImage")) == (not nodes(graph, "LoadImage"))
    for node in nodes(graph, "KleinKitScheduler"):
        [latent] = [entry for entry in node["inputs"] if entry["name"] == "latent"]
        assert latent["link"] is not None


@every_workflow
def test_thumbnail(name):
    path = WORKFLOWS / f"{name}.jpg"
    width, height = Image.open(path).size
    assert path.stat().st_size <= MOST_BYTES
    assert width <= WIDTH and height <= HEIGHT and max(width / WIDTH, height / HEIGHT) == 1
