"""The help pages in the panel of ComfyUI's editor: each fits it, and its pictures are there, in every language."""

import json
from pathlib import Path

import pytest
from editor import TRIES
from kleinkit.harness.editor import add_node, open_editor, set_up
from playwright.sync_api import TimeoutError, expect

LOCALES = Path(__file__).resolve().parents[2] / "locales"
# The first heading of a page in its language: a title alone could be that of a page in English.
LANGUAGES = {"en": "When to use it", "ja": "使いどころ", "zh": "何时使用"}
# What the panel, 296 pixels wide, leaves to a page.
NARROWEST = 242
PANEL = "Comfy.RightSidePanel.IsOpen"
KINDS = tuple(json.loads((LOCALES / "en" / "nodeDefs.json").read_text("utf-8")))
expect.set_options(timeout=60_000)


def select(page, kind):
    page.evaluate(
        """(kind) => {
        app.canvas.deselectAll()
        app.canvas.selectNode(app.graph.nodes.find((node) => node.type === kind))
    }""",
        kind,
    )


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture
def page(browser, server, language):
    """The editor in a language, with one of our nodes of each kind, and with the panel open at Node Info."""
    page, _ = open_editor(browser, server, **{"Comfy.Locale": language, PANEL: False})
    page.wait_for_function(
        "(en) => (document.querySelector('[data-testid=queue-button]')?.innerText === 'Run') === en", arg=language == "en"
    )
    for kind in KINDS:
        add_node(page, kind)
    for tries in range(TRIES):
        # A busy editor may miss a selection, and sees no change in one that is made again.
        select(page, KINDS[tries % 2])
        try:
            page.get_by_test_id("info-button").click(timeout=5000)
            break
        except TimeoutError:
            if tries == TRIES - 1:
                raise
    yield page
    page.context.close()
    # The server keeps what the next editor begins with.
    set_up(server, **{"Comfy.Locale": "en", PANEL: False})


def test_every_page_fits_the_panel(page, language):
    texts = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))
    too_wide = {}
    for kind, names in texts.items():
        select(page, kind)
        shown = page.locator(".node-help-content")
        expect(shown.get_by_role("heading", level=1)).to_have_text(names["display_name"])
        expect(shown.get_by_role("heading", level=2).first).to_have_text(LANGUAGES[language])
        pictures = shown.locator("img").all()
        assert pictures, kind
        for picture in pictures:
            expect(picture).to_have_js_property("complete", True)
            assert picture.evaluate("(picture) => picture.naturalWidth") > NARROWEST, kind
        shown.evaluate("(shown, width) => { shown.style.width = `${width}px` }", NARROWEST)
        # Neither the page nor a table or a block of code in it can be moved sideways.
        too_wide[kind] = shown.evaluate("""(shown) => {
            const right = shown.getBoundingClientRect().right
            return [shown, ...shown.querySelectorAll("*")]
                .filter((part) => part.scrollWidth > part.clientWidth && getComputedStyle(part).display !== "inline"
                    || [...part.getClientRects()].some((box) => box.right > right + 1))
                .map((part) => part.outerHTML)
        }""")
    assert too_wide == dict.fromkeys(texts, [])
