"""Make the pictures of the template browser and of the README, by running the workflows: `python3 tasks.py pictures`."""

import tempfile
from pathlib import Path

from PIL import Image

from . import server as api
from .demo import FIRST, STUDY, in_order, show_progress, with_comfyui
from .editor import chromium, open_editor
from .workflow import BYPASSED, EXAMPLES, WORKFLOWS, as_prompt, for_nano, names, nodes, read, tried

ASSETS = WORKFLOWS.parent / "assets"
# What the README shows of a workflow, besides the first in the editor: its last picture.
REPORT = "16 Klein Probe and Report"
SHOWN = {STUDY: "guidance-study", REPORT: "report"}
SCREENSHOT = "klein-first-picture.jpg"
# Of a thumbnail, and of a picture of the README.
THUMBNAIL, THUMBNAIL_BYTES = (768, 512), 60_000
PICTURE, PICTURE_BYTES = (1200, 1200), 250_000
GAP = 12
EDITOR = (1400, 900)


def for_installed(graph, server):
    """A workflow as it is where its model is installed, else for the nano family."""
    loader = nodes(graph, "KleinKitLoader")[0]
    installed = loader["widgets_values"][0] in api.get(server, "/models/diffusion_models")
    return graph if installed else for_nano(graph)


def run(server, name, graph=None):
    """Run a workflow, or `graph`, a change of it; the pictures that it saves and shows, in the order of its nodes."""
    print(name)
    prompt = as_prompt(graph or for_installed(read(name), server))
    outcome = api.queue(server, prompt, show_progress(prompt), timeout=None)
    print()
    if outcome.error:
        raise RuntimeError(f"{name}: " + "\n".join(api.sentences(outcome.error)))
    return [Image.open(path).convert("RGB") for path in in_order(server, outcome)]


def loaded(name):
    """The pictures that a workflow begins with; where the mask of one is white, it is."""
    files = [EXAMPLES / node["widgets_values"][0] for node in nodes(read(name), "LoadImage")]
    pictures = [Image.open(file).convert("RGBA") for file in files]
    return [Image.alpha_composite(Image.new("RGBA", one.size, "white"), one).convert("RGB") for one in pictures]


def variants(server, name):
    """What a workflow makes on the nano family with each of the nodes that it has bypassed."""
    numbers = [node["id"] for node in read(name)["nodes"] if node["mode"] == BYPASSED]
    return [picture for number in numbers for picture in run(server, name, tried(read(name), number))]


def side_by_side(pictures):
    """Pictures in a row, all as high as a thumbnail."""
    height = THUMBNAIL[1]
    # The cells of nano's pictures stay sharp.
    same = [
        picture.resize(
            (round(picture.width * height / picture.height), height),
            Image.Resampling.NEAREST if picture.height < height else Image.Resampling.LANCZOS,
        )
        for picture in pictures
    ]
    row, x = Image.new("RGB", (sum(picture.width + GAP for picture in same) - GAP, height), "white"), 0
    for picture in same:
        row.paste(picture, (x, 0))
        x += picture.width + GAP
    return row


def save(picture, path, size, most_bytes):
    """Save a JPEG, no larger than `size`, as good as `most_bytes` allow."""
    picture.thumbnail(size)
    for quality in range(90, 0, -5):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= most_bytes:
            return


def screenshot(server, name):
    """The editor with a workflow that has run in it."""
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        page, _ = open_editor(browser, server, width=EDITOR[0], height=EDITOR[1])
        page.evaluate("graph => app.loadGraphData(graph)", for_installed(read(name), server))
        # Beside and below the editor's bars.
        page.evaluate(
            """async ([width, height]) => {
            const rects = app.graph.nodes.map((node) => node.getBounding()), { ds } = app.canvas
            const [left, top] = [0, 1].map((i) => Math.min(...rects.map((rect) => rect[i])))
            const [right, bottom] = [0, 1].map((i) => Math.max(...rects.map((rect) => rect[i] + rect[i + 2])))
            // The groups' headings and the wires above them take 70 more.
            ds.scale = Math.min((width - 90) / (right - left), (height - 130) / (bottom - top + 70))
            ds.offset = [75 / ds.scale - left, 110 / ds.scale - top + 70]
            const ended = new Promise((resolve) => app.api.addEventListener("execution_success", resolve))
            await app.queuePrompt(0)
            await ended
        }""",
            EDITOR,
        )
        page.wait_for_function("app.graph.nodes.some((node) => node.type === 'SaveImage' && node.imgs?.length)")
        page.get_by_text("Job completed").wait_for(state="hidden")
        path = Path(folder, "editor.png")
        page.screenshot(path=path)
        return Image.open(path).convert("RGB")


def main(arguments):
    """Args: names of workflows; all, and the screenshot, when there are none."""
    with (
        tempfile.TemporaryDirectory(prefix="kleinkit-", ignore_cleanup_errors=True) as base,
        with_comfyui(Path(base)) as server,
    ):
        for name in arguments or names():
            pictures = run(server, name)
            # A study's sheet has all its pictures on it.
            shown = side_by_side(pictures[-1:] if name == STUDY else [*loaded(name), *pictures, *variants(server, name)])
            save(shown, WORKFLOWS / f"{name}.jpg", THUMBNAIL, THUMBNAIL_BYTES)
            if name in SHOWN:
                save(pictures[-1], ASSETS / f"{SHOWN[name]}.jpg", PICTURE, PICTURE_BYTES)
        if not arguments:
            save(screenshot(server, FIRST), ASSETS / SCREENSHOT, EDITOR, PICTURE_BYTES)
