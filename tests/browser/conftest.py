"""The editor in one browser, in both of its renderers, with what the pack's workflows ask for."""

import pytest
from editor import FILE, keep
from files import flux3_klein, write
from kleinkit.harness.editor import chromium, clear, open_editor
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


@pytest.fixture
def errors(window):
    return window[1]


@pytest.fixture
def page(window, renderer, request):
    """The editor with an empty graph. After every test there is a screenshot, and no error of any script."""
    page, errors = window
    # What a failed test may have left open.
    page.keyboard.press("Escape")
    clear(page)
    yield page
    keep(page, request.node.name)
    # nano bears the names of Kleins with more layers: those that a workflow skips there are refused.
    found = [error for error in errors if "/kleinkit/layers" not in error]
    errors.clear()
    assert found == [] and not page.evaluate("window.hacked")
