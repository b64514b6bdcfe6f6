"""The editor in one browser, in both of its renderers, with what the pack's workflows ask for."""

import pytest
from editor import FILE, keep
from files import flux3_klein, write
from kleinkit.harness.editor import OURS, PATIENCE_SECONDS, chromium, clear, open_editor
from kleinkit.harness.workflow import NANO, NANO_FLUX3, names, read
from playwright.sync_api import expect

RENDERERS = {"classic": False, "nodes2": True}
expect.set_options(timeout=60_000)


@pytest.fixture(scope="package")
def files(server):
    """A model whose name is HTML, and something under the names that the workflows ask after: of FLUX 3 the header."""
    models = server.base / "models"
    nano = models / "diffusion_models" / next(iter(NANO.values()))
    wanted = {
        models / file["directory"] / file["name"]
        for workflow in names()
        for node in read(workflow)["nodes"]
        for file in node["properties"].get("models", ())
    } | {models / "diffusion_models" / FILE}
    for path in wanted:
        path.parent.mkdir(exist_ok=True)
        if path.name in NANO_FLUX3:
            write(path, flux3_klein(distilled="base" not in path.name))
        else:
            path.hardlink_to(nano)
    yield
    for path in wanted:
        path.unlink()


@pytest.fixture(scope="package")
def browser():
    """One browser for all tests here, and for no others: beside it, this thread has an event loop that runs."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def window(browser, server, files):
    """`(page, errors)` of one editor for all tests."""
    return open_editor(browser, server)


@pytest.fixture(scope="package", params=RENDERERS)
def renderer(window, request):
    page, _ = window
    page.evaluate("(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", RENDERERS[request.param])
    return request.param


@pytest.fixture(scope="package")
def unanswered(window):
    """The requests of the pack's own that wait for an answer."""
    page, _ = window
    waiting = set()
    page.on("request", lambda request: OURS.search(request.url) and waiting.add(request))
    for event in ("requestfinished", "requestfailed"):
        page.on(event, lambda request: waiting.discard(request))
    return waiting


@pytest.fixture
def errors(window):
    return window[1]


@pytest.fixture
def page(window, renderer, unanswered, request):
    """The editor with an empty graph. After every test there is a screenshot, and no error of any script.

    `@pytest.mark.refused(route)` names a route of ours that refuses something in a test, however often it is asked.
    """
    page, errors = window
    # What a failed test may have left open.
    page.keyboard.press("Escape")
    clear(page)
    yield page
    keep(page, request.node.name)
    # A late answer would be an error of the next test.
    clear(page)
    for _ in range(10 * PATIENCE_SECONDS):
        if not unanswered:
            break
        page.wait_for_timeout(100)
    # nano bears the names of Kleins with more layers: those that a workflow skips there are refused.
    refused = ["/kleinkit/layers", *(route for mark in request.node.iter_markers("refused") for route in mark.args)]
    found = [error for error in errors if not any(route in error for route in refused)]
    errors.clear()
    assert found == [] and not page.evaluate("window.hacked")
