"""The pack's subgraph blueprints in the editor: what is typed into one is what runs, also after it was saved or copied."""

import json

import pytest
from editor import body, choose, connect, enter, in_vue, one_renderer, overlapping, run, settle, shorten
from kleinkit.harness.editor import add_node, clear
from kleinkit.harness.workflow import NANO_EXAMPLES, NANO_PIXELS, WORKFLOWS

BLUEPRINTS = sorted(path.stem for path in WORKFLOWS.parent.glob("subgraphs/*.json"))
PICTURE = f"{NANO_EXAMPLES}/kleinkit-circle-masked.png"
TITLES = {"prompt": "Prompt", "negative_prompt": "Negative prompt"}
# Of what else a blueprint shows: its name, and the node and the widget inside.
PLACES = (
    ("width", "EmptyFlux2LatentImage", "width"),
    ("height", "EmptyFlux2LatentImage", "height"),
    ("image_scale", "KleinKitImageCFG", "image_scale"),
    ("denoise", "KleinKitScheduler", "denoise"),
    ("padding", "KleinKitInpaintCrop", "padding"),
    ("seed", "RandomNoise", "noise_seed"),
    ("seed", "KSampler", "seed"),
    ("seed", "SamplerCustom", "noise_seed"),
    ("diffusion_model", "KleinKitLoader", "diffusion_model"),
)
TYPED = {
    "prompt": "a red fox in the snow",
    "negative_prompt": "a sketch",
    "width": NANO_PIXELS,
    "height": 2 * NANO_PIXELS,
    "image_scale": 1.5,
    "denoise": 0.5,
    "padding": 16,
    "seed": 77,
    "diffusion_model": "flux-2-klein-nano.safetensors",
}


def drop(page, name):
    """Put a blueprint into the graph from the node library; the node's id."""
    # The key that opens and closes the node library.
    page.keyboard.press("n")
    page.get_by_placeholder("Search").first.fill(name)
    page.get_by_text(name).first.click()
    page.mouse.click(700, 200)
    page.wait_for_function("app.graph.nodes.length")
    page.keyboard.press("n")
    assert page.evaluate("[app.graph.nodes[0].title, app.graph.nodes[0].isSubgraphNode()]") == [name, True]
    # Some editors put it below the window's edge.
    page.evaluate("app.canvas.centerOnNode(app.graph.nodes[0])")
    settle(page)
    return page.evaluate("app.graph.nodes[0].id")


def widgets(page, node):
    """`{name: label}` of the widgets that the node shows."""
    return page.evaluate(
        "(id) => Object.fromEntries(app.graph.getNodeById(id).widgets.map(({ name, label }) => [name, label ?? name]))", node
    )


def texts(page, node):
    """The text fields of a node, from above."""
    return body(page, node).locator("textarea") if in_vue(page) else page.locator("textarea:visible")


def write(page, node):
    """Type into every widget of a blueprint's node; what was typed, by name."""
    shown = widgets(page, node)
    typed = {name: value for name, value in TYPED.items() if name in shown}
    fields = iter(texts(page, node).all())
    for name, value in typed.items():
        named = shown[name] if in_vue(page) else name
        match name:
            case "prompt" | "negative_prompt":
                next(fields).fill(value)
            case "diffusion_model":
                choose(page, node, named, value)
            case _:
                enter(page, node, named, value)
    return typed


def seen(page, node):
    """What a node shows, by name: its text fields, and the values of the other widgets."""
    values = page.evaluate(
        "(id) => Object.fromEntries(app.graph.getNodeById(id).widgets.map(({ name, value }) => [name, value]))", node
    )
    written = [field.input_value() for field in texts(page, node).all()]
    return {**values, **dict(zip((name for name in TITLES if name in values), written, strict=True))}


def queued(page, node):
    """What is inside a blueprint's node when the graph is queued, by the name of the node's widget."""
    inside = [
        entry
        for key, entry in page.evaluate("async () => (await app.graphToPrompt()).output").items()
        if key.startswith(f"{node}:")
    ]
    found = {
        name: entry["inputs"][place]
        for name, kind, place in PLACES
        for entry in inside
        if entry["class_type"] == kind and name in widgets(page, node)
    }
    named = {entry["_meta"]["title"]: entry["inputs"] for entry in inside}
    return found | {name: named[title]["text"] for name, title in TITLES.items() if title in named}


def saved(name):
    """What a blueprint's file has in its widgets, by name."""
    [node] = json.loads((WORKFLOWS.parent / "subgraphs" / f"{name}.json").read_text("utf-8"))["nodes"]
    return dict(zip((entry["name"] for entry in node["inputs"] if "widget" in entry), node["widgets_values"], strict=True))


def connect_pictures(page, node):
    """Connect a Load Image to the first picture of a blueprint, and to its mask."""
    sockets = page.evaluate(
        "(id) => app.graph.getNodeById(id).inputs.filter((one) => !one.widget).map(({ name }) => name)", node
    )
    if sockets:
        load = add_node(page, "LoadImage", -400)
        page.evaluate("([id, name]) => { app.graph.getNodeById(id).widgets[0].value = name }", [load, PICTURE])
        connect(page, *((load, slot, node, name) for slot, name in enumerate(("image", "mask")) if name in sockets))


@pytest.fixture
def dropped(page, request):
    return drop(page, request.param)


@one_renderer
def test_what_is_inside_is_as_the_editor_keeps_it(page):
    """Else undo finds a change that nobody made, and ends; and one node is drawn over another."""
    files = [json.loads(path.read_text("utf-8")) for path in WORKFLOWS.parent.glob("subgraphs/*.json")]
    for file in files:
        [saved] = file["definitions"]["subgraphs"]
        [kept] = page.evaluate(
            """async (graph) => {
            await app.loadGraphData(graph)
            return app.rootGraph.serialize().definitions.subgraphs
        }""",
            file,
        )
        names, sizes = (
            [{node["id"]: of(node) for node in one["nodes"]} for one in (saved, kept)]
            for of in (lambda node: [entry["name"] for entry in node["inputs"]], lambda node: node["size"])
        )
        assert (names[0], sizes[0], saved["links"]) == (names[1], sizes[1], kept["links"])
        page.evaluate("app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
        assert overlapping(page) == []
        page.evaluate("app.canvas.setGraph(app.rootGraph)")


# All in one renderer; in the other those that have the most to show.
@pytest.mark.parametrize(
    "renderer, dropped",
    [*(("classic", name) for name in BLUEPRINTS), *(("nodes2", name) for name in BLUEPRINTS if "(Base)" in name)],
    indirect=True,
)
def test_it_shows_what_is_inside_keeps_what_is_typed_and_runs(page, server, renderer, request, dropped):
    name = request.node.callspec.params["dropped"]
    assert seen(page, dropped) == queued(page, dropped) == saved(name)
    typed = write(page, dropped)
    assert seen(page, dropped) == queued(page, dropped) == typed
    # Saved, and seen again behind another tab.
    file = server.base / "user" / "default" / "workflows" / f"blueprint {renderer} {len(name)}.json"
    # ComfyUI 0.16's Nodes 2.0 looks for changes when the graph is clicked.
    page.mouse.click(1000, 700)
    page.keyboard.press("Control+s")
    page.get_by_role("dialog").get_by_role("textbox").fill(file.stem)
    with page.expect_response(lambda answer: "/userdata/workflows" in answer.url and answer.request.method == "POST"):
        page.keyboard.press("Enter")
    tab = page.get_by_text(file.stem).first
    tab.wait_for()
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("!app.graph.nodes.some((node) => node.isSubgraphNode?.())")
    tab.click()
    page.wait_for_function("app.graph.nodes.some((node) => node.isSubgraphNode?.())")
    settle(page)
    assert seen(page, dropped) == queued(page, dropped) == typed
    # Opened as a file.
    clear(page)
    page.evaluate("([text, name]) => app.handleFile(new File([text], name))", [file.read_text("utf-8"), file.name])
    page.wait_for_function("app.graph.nodes.length")
    file.unlink()
    settle(page)
    assert seen(page, dropped) == queued(page, dropped) == typed
    # A copy of it, when the first is gone.
    page.evaluate("""() => {
        app.canvas.canvas.focus()
        app.canvas.selectItems(app.graph.nodes)
    }""")
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+v")
    page.wait_for_function("app.graph.nodes.length === 2")
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", dropped)
    settle(page)
    copy = page.evaluate("app.graph.nodes[0].id")
    assert seen(page, copy) == queued(page, copy) == typed
    shorten(page, 4)
    connect_pictures(page, copy)
    connect(page, (copy, 0, add_node(page, "PreviewImage", 500), "images"))
    assert run(page)["type"] == "execution_success"
