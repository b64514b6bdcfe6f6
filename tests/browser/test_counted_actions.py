"""From an empty graph to an edit with two pictures: the actions it takes, by the same rules here and in ComfyUI's template.

A click, a drag, a key and a typed value are one action each. Moving the view is none. All model files are there.
"""

import pytest
from editor import one_renderer, run
from kleinkit.harness.workflow import EXAMPLES, NANO_PIXELS
from PIL import Image

OURS, OFFICIAL = "05 Klein Edit with Two Pictures", "Flux.2 [Klein] 4B: Image Edit"
PROMPT = "Put the star on the blue background."
PICTURES = ("of mine.png", "another.png")
# What the official template loads besides what ours do.
FILES = ("diffusion_models/flux-2-klein-base-4b-fp8.safetensors", "vae/full_encoder_small_decoder.safetensors")
MARGIN = 20


class Actions:
    """What a user does to the editor in its classic renderer, counted in `list`."""

    def __init__(self, page):
        self.page, self.list = page, []

    def click(self, locator):
        locator.click()
        self.list.append("click")

    def click_at(self, x, y):
        self.page.mouse.click(x, y)
        self.list.append("click")

    def write(self, locator, text):
        locator.fill(text)
        self.list.append("type")

    def key(self, name):
        self.page.keyboard.press(name)
        self.list.append("key")

    def drag_around(self, ids):
        """Select nodes by a drag around them."""
        left, top, right, bottom = self.look_at(ids)
        self.page.keyboard.down("Control")
        self.page.mouse.move(left, top)
        self.page.mouse.down()
        self.page.mouse.move(right, bottom, steps=5)
        self.page.mouse.up()
        self.page.keyboard.up("Control")
        self.list.append("drag")

    def look_at(self, ids):
        """Move the view to nodes; where they are in the window: left, top, right, bottom."""
        return self.page.evaluate(
            """async ([ids, margin]) => {
            const rects = ids.map((id) => app.graph.getNodeById(id).getBounding()), { ds } = app.canvas
            const [left, top] = [0, 1].map((i) => Math.min(...rects.map((rect) => rect[i])) - margin)
            const [right, bottom] = [0, 1].map((i) => Math.max(...rects.map((rect) => rect[i] + rect[i + 2])) + margin)
            ds.scale = Math.min(1, 1200 / (right - left), 600 / (bottom - top))
            ds.offset = [100 / ds.scale - left, 120 / ds.scale - top]
            app.canvas.setDirty(true, true)
            for (let frame = 0; frame < 20; frame++) await new Promise(requestAnimationFrame)
            const box = app.canvas.canvas.getBoundingClientRect()
            const place = (x, y) => app.canvas.convertOffsetToCanvas([x, y])
            const [a, b] = [place(left, top), place(right, bottom)]
            return [a[0] + box.left, a[1] + box.top, b[0] + box.left, b[1] + box.top]
        }""",
            [ids, MARGIN],
        )

    def open_template(self, title, search):
        dialog = self.page.get_by_role("dialog")
        self.click(self.page.get_by_role("button", name="Templates").first)
        self.write(dialog.get_by_placeholder("Search"), search)
        self.click(dialog.get_by_text(title, exact=True).first)
        dialog.wait_for(state="hidden")
        self.page.wait_for_function("app.graph.nodes.some((node) => node.type === 'LoadImage')")

    def choose_picture(self, node, name):
        self.look_at([node])
        x, y = self.page.evaluate(
            """(id) => {
            const { pos, size, widgets: [widget] } = app.graph.getNodeById(id)
            const [x, y] = app.canvas.convertOffsetToCanvas([pos[0] + size[0] / 2, pos[1] + (widget.last_y ?? widget.y) + 10])
            const { left, top } = app.canvas.canvas.getBoundingClientRect()
            return [x + left, y + top]
        }""",
            node,
        )
        self.click_at(x, y)
        self.click(self.page.locator(".litemenu-entry").get_by_text(name, exact=True))

    def write_prompt(self, node, text):
        left, top, right, bottom = self.look_at([node])
        for field in self.page.locator("textarea:visible").all():
            box = field.bounding_box()
            if left < box["x"] < right and top < box["y"] < bottom:
                self.write(field, text)
                return
        raise AssertionError(f"Node {node} has no text field.")


def ids(page, kind):
    """The nodes of a type in the graph that is open, from above."""
    return page.evaluate(
        "(kind) => app.graph.nodes.filter(({ type }) => type === kind).sort((a, b) => a.pos[1] - b.pos[1]).map(({ id }) => id)",
        kind,
    )


@pytest.fixture
def pictures(page, server):
    """Two pictures of the user's and the files of the official template, in the lists of the editor."""
    for name, source in zip(PICTURES, sorted(EXAMPLES.glob("*.png"))):
        Image.open(source).convert("RGB").resize((NANO_PIXELS, NANO_PIXELS)).save(server.base / "input" / name)
    nano = next((server.base / "models" / "diffusion_models").glob("*nano-base*"))
    new = [server.base / "models" / file for file in FILES if not (server.base / "models" / file).exists()]
    for path in new:
        path.hardlink_to(nano)
    page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    yield
    for path in (*new, *(server.base / "input" / name for name in PICTURES)):
        path.unlink()


def queued(page):
    """What `Run` would queue: the pictures that come before each saved one, and the texts."""
    output = page.evaluate("async () => (await app.graphToPrompt()).output")

    def before(number):
        found = {number}
        for value in output[number]["inputs"].values():
            if isinstance(value, list) and str(value[0]) in output:
                found |= before(str(value[0]))
        return found

    saved = [before(number) for number, node in output.items() if node["class_type"] == "SaveImage"]
    return [
        {value for number in numbers for value in output[number]["inputs"].values() if isinstance(value, str)}
        for numbers in saved
    ]


def counted(page, actions):
    """How many actions, of which Run is the last, made the graph of one saved picture out of both pictures and the prompt."""
    assert any({*PICTURES, PROMPT} <= found for found in queued(page))
    return len(actions.list) + 1


@one_renderer
def test_an_edit_with_two_pictures_takes_fewer_actions_than_in_the_official_template(page, pictures):
    ours = Actions(page)
    ours.open_template(OURS, "Klein Edit with Two")
    for node, name in zip(ids(page, "LoadImage"), PICTURES, strict=True):
        ours.choose_picture(node, name)
    [prompt] = page.evaluate("app.graph.nodes.filter(({ title }) => title === 'How to combine').map(({ id }) => id)")
    ours.write_prompt(prompt, PROMPT)
    few = counted(page, ours)
    assert run(page)["type"] == "execution_success"

    theirs = Actions(page)
    theirs.open_template(OFFICIAL, "Klein 4B Image Edit")
    for node, name in zip(ids(page, "LoadImage"), PICTURES, strict=True):
        theirs.choose_picture(node, name)
    # Its part with two pictures is bypassed.
    off = page.evaluate("app.graph.nodes.filter(({ mode }) => mode === 4).map(({ id }) => id)")
    theirs.drag_around(off)
    theirs.key("Control+b")
    [edit] = page.evaluate("(off) => off.filter((id) => app.graph.getNodeById(id).isSubgraphNode())", off)
    theirs.write_prompt(edit, PROMPT)
    # It is not run: nano's text encoder is none that ComfyUI's loader knows.
    assert few == 9 < counted(page, theirs)
