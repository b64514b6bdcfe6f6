"""ComfyUI's editor in a headless Chromium: for tests, benchmarks and screenshots."""

import contextlib
import json
import re
import shutil
import urllib.request
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

# Debian's, and what others call it.
NAMES = "chromium", "chromium-browser", "google-chrome"
# Software rendering, which is the same everywhere; a container's root has no sandbox and little shared memory.
ARGUMENTS = "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"
# A start without tours, and a canvas without what covers it.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ConfirmDelete": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Locale": "en",
}
PATIENCE_SECONDS = 120
OURS = re.compile(r"/kleinkit/|/extensions/KleinKit/.*\.js$")
# What ComfyUI's editor says by itself when it starts, and when it asks after models that a workflow names.
OF_COMFYUI = re.compile("^ComfyApp graph accessed before initialization|https://huggingface.co/")


@contextlib.contextmanager
def chromium():
    """A browser, for a `with` block. In the block, this thread has an event loop that runs: no `asyncio.run`.

    Raises:
        RuntimeError: there is none.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise RuntimeError("The editor needs Chromium: run `apt-get install chromium`, or `python3 tasks.py setup` as root.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def set_up(server, **settings):
    """Save settings of the editor, as its settings dialog does, for pages that are opened from now on."""
    request = urllib.request.Request(
        f"{server.url}/settings", json.dumps(settings).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).close()


def open_editor(browser, server, *, width=1400, height=800, **settings):
    """The editor with an empty graph, in a browser context of its own.

    Args:
        browser: of `chromium`.
        server: `harness.server.Server`.
        width, height: of the page, in pixels.
        settings: of the editor, dots as double underscores: `Comfy__VueNodes__Enabled=True`.
    Returns:
        `(page, errors)`: Playwright's page, and a list that every JavaScript error is added to, as text.
    """
    set_up(server, **SETTINGS | {name.replace("__", "."): value for name, value in settings.items()})
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    # Nothing is asked of the internet: neither news nor fonts.
    here = urlsplit(server.url).netloc
    context.route(lambda url: urlsplit(url).netloc != here, lambda route: route.abort())
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(said(message)) if is_error(message) else None)
    page.goto(server.url)
    page.wait_for_function("window.app?.vueAppReady && app.canvas?.graph")
    clear(page)
    return page, errors


def is_error(message):
    """Whether a message of the console is an error of a script, or tells of what the pack's own scripts asked for."""
    if message.text.startswith("Failed to load resource"):
        # The editor itself asks for files that nobody has, such as `user.css`.
        return bool(OURS.search(message.location["url"]))
    return message.type == "error" and not OF_COMFYUI.search(message.text)


def said(message):
    return f"{message.text} ({message.location['url']})"


def clear(page):
    """A new workflow without nodes, seen at its natural size. Other open ones are closed: each slows the editor."""
    page.evaluate("""async () => {
        await app.loadGraphData({ id: crypto.randomUUID(), nodes: [], links: [], version: 0.4 })
        const tabs = app.extensionManager.workflow
        for (const one of [...tabs.openWorkflows]) if (one.key !== tabs.activeWorkflow.key) await tabs.closeWorkflow(one)
        app.canvas.ds.scale = 1
        app.canvas.ds.offset = [120, 200]
        app.canvas.setDirty(true, true)
    }""")


def add_node(page, kind, x=0, y=0):
    """Put a node into the graph as the node search does; its id."""
    return page.evaluate(
        """([kind, x, y]) => {
        const node = LiteGraph.createNode(kind)
        node.pos = [x, y]
        app.graph.add(node)
        return node.id
    }""",
        [kind, x, y],
    )
