"""What users saved with an older version of the pack opens in the editor, and is queued as that version's own prompts."""

import json

from editor import frontend, one_renderer
from kleinkit.harness.workflow import WORKFLOWS, for_nano

pytestmark = one_renderer

SAVED = WORKFLOWS.parent / "tests" / "fixtures" / "c6ab3be"
# That version's file itself names one widget twice: an editor may write the negative prompt into this node too, by its id.
NAMED_TWICE = {"Klein Text to Image (Base)": "2"}


def read(folder):
    """`{name: graph}` of what was saved."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in (SAVED / folder).glob("*.json")}


def queued(page, graph):
    """What the editor would queue of a graph, by node id, without titles."""
    output = page.evaluate(
        """async (graph) => {
        await app.loadGraphData(graph)
        return (await app.graphToPrompt()).output
    }""",
        graph,
    )
    return {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in output.items()}


def ours(page, prompt):
    """A prompt without what ComfyUI has changed: PreviewAny of 0.26.0 and older keeps other things."""
    older = frontend(page) < (1, 47)
    return {number: node for number, node in prompt.items() if not (older and node["class_type"] == "PreviewAny")}


def filled(graph, wanted):
    """A blueprint that holds what a prompt of its inside does, in the widgets that its node shows too, in place."""
    [node], [subgraph] = graph["nodes"], graph["definitions"]["subgraphs"]
    for_nano(subgraph)
    links, inside = ({one["id"]: one for one in subgraph[kind]} for kind in ("links", "nodes"))
    for number, entry in enumerate(subgraph["inputs"]):
        link = links[entry["linkIds"][0]]
        name = inside[link["target_id"]]["inputs"][link["target_slot"]]["name"]
        node["widgets_values"][number] = wanted[str(link["target_id"])]["inputs"][name]
    return graph


def test_workflows_are_queued_as_they_were(page):
    wanted, saved = read("prompts"), read("workflows")
    assert len(saved) == 8
    found = {name: ours(page, queued(page, for_nano(graph))) for name, graph in saved.items()}
    assert found == {name: ours(page, wanted[name]) for name in saved}


def test_blueprints_are_queued_as_they_were(page):
    wanted, saved = read("prompts"), read("subgraphs")
    assert len(saved) == 2
    for name, graph in saved.items():
        within = f"{graph['nodes'][0]['id']}:"
        found = json.loads(json.dumps(queued(page, filled(graph, wanted[name]))).replace(f'"{within}', '"'))
        # The blueprint itself saves nothing.
        del wanted[name]["save"]
        if name in NAMED_TWICE:
            for prompt in (found, wanted[name]):
                del prompt[NAMED_TWICE[name]]["inputs"]["text"]
        assert found == wanted[name]
