"""What a user does to a node in the editor, in the renderer that is on; and what the pack's figures say."""

import itertools
import json
import re
from pathlib import Path

import pytest
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from playwright.sync_api import TimeoutError

TRIES = 10
# For a test of what does not depend on how a graph is drawn.
one_renderer = pytest.mark.parametrize("renderer", ["classic"], indirect=True)
SCREENSHOTS = Path(__file__).resolve().parent.parent.parent / ".reports" / "screenshots"
HTML = "<img src=x onerror=hacked=1>"
FILE = f"klein {HTML}.safetensors"
# So much of a pixel may be the rounding of a browser that draws a graph at another scale.
TOUCHING = 0.5


def in_vue(page):
    return page.evaluate("LiteGraph.vueNodesMode")


def frontend(page):
    """The version of the editor, as `(1, 47, 12)`."""
    return tuple(int(part) for part in page.evaluate("__COMFYUI_FRONTEND_VERSION__").split("."))


def body(page, node):
    """The node in Nodes 2.0."""
    return page.locator(f'[data-node-id="{node}"]')


def click_widget(page, node, name):
    """Click the middle of a widget in the classic renderer."""
    x, y = page.evaluate(
        """async ([id, name]) => {
        const { canvas } = app, node = app.graph.getNodeById(id)
        const widget = () => node.widgets.find((widget) => widget.name === name)
        // A widget has its place once it has been drawn.
        while (widget()?.last_y === undefined && !widget()?.y) await new Promise(requestAnimationFrame)
        const [x, y] = canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget().y + 10])
        const { left, top } = canvas.canvas.getBoundingClientRect()
        return [x + left, y + top]
    }""",
        [node, name],
    )
    page.mouse.click(x, y)


def open_widget(page, node, name, opened):
    """Click a widget in the classic renderer until what that opens is there, a locator: a busy editor misses a click."""
    for _ in range(TRIES):
        click_widget(page, node, name)
        try:
            opened.first.wait_for(timeout=5000)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"A click on {name} opens nothing.")


def enter(page, node, name, value):
    """Type a number or a text into a widget."""
    if in_vue(page):
        field = body(page, node).get_by_label(name, exact=True)
        field = field.get_by_role("spinbutton").or_(field.and_(page.get_by_role("textbox"))).first
    else:
        field = page.locator(".graphdialog .value")
        open_widget(page, node, name, field)
    field.fill(str(value))
    field.press("Enter")


def choose(page, node, name, value):
    """Choose in a list."""
    if in_vue(page):
        body(page, node).get_by_role("combobox", name=name, exact=True).click()
        page.get_by_role("option", name=value, exact=True).click()
    else:
        entry = page.locator(".litemenu-entry").get_by_text(value, exact=True)
        open_widget(page, node, name, entry)
        entry.click()


def values(page, node):
    """`{widget: value}` of what a workflow keeps."""
    return page.evaluate(
        """(id) => Object.fromEntries(app.graph.getNodeById(id).widgets
        .filter((widget) => widget.serialize !== false).map((widget) => [widget.name, widget.value]))""",
        node,
    )


def shorten(page, steps):
    """Have every Klein Scheduler and KSampler make so many steps, also those in subgraphs, whatever is connected."""
    page.evaluate(
        """(steps) => {
        const inside = app.graph.nodes.flatMap((node) => node.subgraph?.nodes ?? [])
        const counts = ({ type }) => type === "KleinKitScheduler" || type === "KSampler"
        for (const node of [...app.graph.nodes, ...inside].filter(counts)) {
            node.disconnectInput(node.findInputSlot("steps"))
            node.widgets.find((widget) => widget.name === "steps").value = steps
        }
    }""",
        steps,
    )


def run(page):
    """Press the button that queues the graph, and wait for the end: `{"type": …, "prompt": id}`."""
    page.evaluate("""() => {
        const ends = ["execution_success", "execution_error", "execution_interrupted"]
        window.ended = new Promise((resolve) => ends.forEach((type) => app.api.addEventListener(
            type, ({ detail }) => resolve({ type, prompt: detail.prompt_id }), { once: true })))
    }""")
    page.get_by_test_id("queue-button").click()
    return page.evaluate("window.ended")


def keep(page, name):
    """A screenshot among the files of the run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.png")


def figure(page, text=""):
    """The figures whose text for screen readers has a part."""
    # By its role, the browser looks through the whole editor for it each time.
    label = f"[aria-label*={json.dumps(text, ensure_ascii=False)}]" if text else ""
    return page.locator(f".kleinkit-figure[role=img]{label}:visible")


def flux2(steps, tokens=4096):
    """What is said of BFL's schedule of a number of steps."""
    return f"{steps} steps, mu {round(compute_empirical_mu(tokens, steps), 3):g},"


def connect(page, *links):
    """Connect nodes: links are `(from, output, to, input)`, outputs by number, inputs by name."""
    page.evaluate(
        """(links) => {
        const node = (id) => app.graph.getNodeById(id)
        for (const [from, output, to, input] of links) node(from).connect(output, node(to), input)
    }""",
        links,
    )


def settle(page):
    """Wait until no node grows any more: before, a click on a widget would miss it."""
    page.evaluate("""async () => {
        const sizes = () => JSON.stringify(app.graph.nodes.map((node) => [...node.pos, ...node.size]))
        for (let same = 0, last; same < 30; same = sizes() === last ? same + 1 : 0) {
            last = sizes()
            await new Promise(requestAnimationFrame)
        }
    }""")


def overlapping(page):
    """The titles of each two nodes of which one covers a part of the other, as the renderer that is on draws them."""
    boxes = page.evaluate("""() => app.canvas.graph.nodes.map((node) => {
        if (!LiteGraph.vueNodesMode) {
            const [left, top, width, height] = node.getBounding()
            return [node.title, left, top, left + width, top + height]
        }
        const { left, top, right, bottom } = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect()
        return [node.title, ...[left, top, right, bottom].map((side) => side / app.canvas.ds.scale)]
    })""")
    return [
        (one, other)
        for (one, left, top, right, bottom), (other, left2, top2, right2, bottom2) in itertools.combinations(boxes, 2)
        if min(right, right2) - max(left, left2) > TOUCHING and min(bottom, bottom2) - max(top, top2) > TOUCHING
    ]


def switch(page, language):
    """Choose another language of the editor, and look at the graph in it."""
    button = "document.querySelector('[data-testid=queue-button]').innerText"
    was = page.evaluate(button)
    page.evaluate("(language) => app.extensionManager.setting.set('Comfy.Locale', language)", language)
    page.wait_for_function(f"(was) => {button} !== was", arg=was)
    # The editor draws the graph anew by itself, but by then it may not have loaded the language.
    page.evaluate("""async () => {
        await app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions")
        await app.loadGraphData(app.graph.serialize())
    }""")
