"""The subgraph blueprints that the pack ships: ComfyUI offers them, and what is inside runs on the nano family."""

import json

import pytest
from kleinkit.harness import server as api
from kleinkit.harness.workflow import INPUTS, NANO_EXAMPLES, OUTPUTS, WORKFLOWS, as_prompt, for_nano, widgets

BLUEPRINTS = sorted(WORKFLOWS.parent.glob("subgraphs/*.json"))
# What is connected to a blueprint, and where a Load Image has it.
PICTURE, SLOTS = "kleinkit-circle-masked.png", {"IMAGE": 0, "MASK": 1}

every_blueprint = pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)


def parts(path):
    """The node that stands for a blueprint's subgraph, and the subgraph."""
    graph = json.loads(path.read_text("utf-8"))
    [node], [subgraph] = graph["nodes"], graph["definitions"]["subgraphs"]
    return node, subgraph


def expanded(subgraph):
    """The inner graph as a workflow, and the one link to an output. What would be typed outside, the widgets hold."""
    links = [
        [link[key] for key in ("id", "origin_id", "origin_slot")] for link in subgraph["links"] if link["origin_id"] != INPUTS
    ]
    for link in subgraph["links"]:
        if link["origin_id"] == INPUTS and link["type"] in SLOTS:
            links.append([link["id"], "picture", SLOTS[link["type"]]])
    inside = {link for link, *_ in links}
    for node in subgraph["nodes"]:
        for entry in node["inputs"]:
            entry["link"] = entry["link"] if entry["link"] in inside else None
    [output] = [link for link in subgraph["links"] if link["target_id"] == OUTPUTS]
    return {"nodes": subgraph["nodes"], "links": links}, output


def test_the_server_lists_them(server):
    ours = [
        entry["name"]
        for entry in api.get(server, "/global_subgraphs").values()
        if entry["info"]["node_pack"] == f"custom_nodes.{api.PACK}"
    ]
    assert sorted(ours) == [path.stem for path in BLUEPRINTS] != []


@every_blueprint
def test_the_node_shows_the_subgraphs_inputs_and_outputs(path):
    node, subgraph = parts(path)
    assert node["type"] == subgraph["id"]
    for slots in ("inputs", "outputs"):
        assert [(slot["name"], slot["type"]) for slot in node[slots]] == [
            (slot["name"], slot["type"]) for slot in subgraph[slots]
        ]


@every_blueprint
def test_the_node_shows_what_is_inside(path):
    """Without `proxyWidgets`: newer editors quarantine one of its forms, the oldest the other, and what is typed is lost."""
    node, subgraph = parts(path)
    typed = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    shown = dict(zip(typed, node["widgets_values"], strict=True))
    assert "proxyWidgets" not in node["properties"] and len({entry["name"] for entry in node["inputs"]}) == len(node["inputs"])
    by_id, links = {inner["id"]: inner for inner in subgraph["nodes"]}, {link["id"]: link for link in subgraph["links"]}
    for entry in subgraph["inputs"]:
        [link] = [links[link] for link in entry["linkIds"]]
        inner = by_id[link["target_id"]]
        into = inner["inputs"][link["target_slot"]]
        assert ("widget" in into) == (entry["name"] in shown) and into["type"] == entry["type"]
        if entry["name"] in shown:
            assert shown[entry["name"]] == inner["widgets_values"][widgets(inner).index(into["name"])]


@every_blueprint
def test_runs(server, path):
    graph, output = expanded(parts(path)[1])
    prompt = as_prompt(for_nano(graph))
    for node in prompt.values():
        node["inputs"] |= {"steps": 2} if "steps" in node["inputs"] else {}
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": f"{NANO_EXAMPLES}/{PICTURE}"}}
    prompt["save"] = {
        "class_type": "SaveImage",
        "inputs": {"filename_prefix": "subgraph", "images": [str(output["origin_id"]), output["origin_slot"]]},
    }
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    assert len(api.pictures(server, outcome)) == 1
