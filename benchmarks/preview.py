"""How soon the editor shows a preview: after its node is added, and after a value has changed."""

import os
import statistics
import tempfile
from pathlib import Path

from ..harness.editor import chromium, clear, open_editor
from ..harness.server import running

ROUNDS = 20
MOST_MILLISECONDS = {"first": 300, "update": 150}
NODES = {"KleinKitScheduler": "steps", "KleinKitDynamicShift": "shift.mu", "KleinKitCFG": "schedule.end"}
CHOICES = {"KleinKitDynamicShift": ("shift", "fixed"), "KleinKitCFG": ("schedule", "interval")}

# The milliseconds from a change of the graph until the frame in which a figure says something else is drawn.
MEASURE = """([kind, choice, name, value]) => new Promise((resolve) => {
    const said = () => document.querySelector(".kleinkit-figure")?.getAttribute("aria-label")
    const drawn = () => document.querySelector(".kleinkit-figure")?.checkVisibility() && document.querySelector(
        ".kleinkit-figure path:is(.line, .bars)")
    const before = said()
    const set = (node, name, value) => {
        const widget = node.widgets.find((widget) => widget.name === name)
        widget.value = value
        widget.callback(value, app.canvas, node)
    }
    const start = performance.now()
    if (value === undefined) {
        const node = LiteGraph.createNode(kind)
        app.graph.add(node)
        if (choice) set(node, ...choice)
    } else {
        set(app.graph.nodes[0], name, value)
    }
    const look = () => {
        if (drawn() && said() !== before) requestAnimationFrame(() => resolve(performance.now() - start))
        else requestAnimationFrame(look)
    }
    look()
})"""


def times(page, kind):
    """`{"first": milliseconds, "update": milliseconds}`, lists of `ROUNDS`."""
    choice, name = CHOICES.get(kind), NODES[kind]
    found = {"first": [], "update": []}
    for number in range(ROUNDS):
        clear(page)
        found["first"].append(page.evaluate(MEASURE, [kind, choice, name]))
        # Never what it is already: nothing would be drawn.
        value = 21 + number if name == "steps" else 0.02 * (number + 1)
        found["update"].append(page.evaluate(MEASURE, [kind, choice, name, value]))
    return found


def main(arguments):
    late = False
    with (
        tempfile.TemporaryDirectory() as base,
        running(Path(os.environ["COMFYUI_PATH"]), base) as server,
        chromium() as browser,
    ):
        for renderer, vue in (("classic", False), ("Nodes 2.0", True)):
            page, _ = open_editor(browser, server, Comfy__VueNodes__Enabled=vue)
            for kind in NODES:
                for what, found in times(page, kind).items():
                    median = statistics.median(found)
                    late |= median > MOST_MILLISECONDS[what]
                    print(
                        f"{renderer}, {kind}, {what}: median {median:.0f} ms of {ROUNDS}, worst {max(found):.0f} ms "
                        f"(at most {MOST_MILLISECONDS[what]} ms)",
                        flush=True,
                    )
            page.context.close()
    return int(late)
