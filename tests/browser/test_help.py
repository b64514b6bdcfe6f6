"""The help pages in the panel of ComfyUI's editor: they fit it, and their pictures are there in every language."""

import pytest
from kleinkit.harness.editor import add_node, chromium, open_editor
from playwright.sync_api import expect

# The heading before the inputs: the page is there, and in this language.
LANGUAGES = {"en": "When to use it", "ja": "使いどころ", "zh": "何时使用"}
# One with a list in a list, and one with code, formulae and two pictures.
PAGES = ("KleinKitCFG", "KleinKitSkipLayerGuidance", "KleinKitSlerpCFG")
# What the panel, 296 pixels wide, leaves to a page.
NARROWEST = 242
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def page(server):
    with chromium() as browser:
        page, _ = open_editor(browser, server)
        yield page


@pytest.fixture(params=LANGUAGES)
def language(page, request):
    page.evaluate("(language) => app.extensionManager.setting.set('Comfy.Locale', language)", request.param)
    # The panel asks for a page once, in the language that is there by then.
    page.wait_for_function(
        "(en) => (document.querySelector('[data-testid=queue-button]').innerText === 'Run') === en", arg=request.param == "en"
    )
    yield request.param
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")


@pytest.fixture
def help_of(page, language):
    """Open Node Info of a new node: `help_of("KleinKitCFG")` returns its page, as narrow as the panel can be."""

    def show(kind):
        page.evaluate("app.graph.clear()")
        page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", add_node(page, kind))
        if not page.locator(".node-help-content").count():
            page.get_by_test_id("info-button").click()
        shown = page.locator(".node-help-content")
        shown.evaluate("(shown, width) => { shown.style.width = `${width}px` }", NARROWEST)
        expect(shown.get_by_role("heading", name=LANGUAGES[language], exact=True)).to_be_visible()
        return shown

    return show


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_fits_the_panel(help_of, kind):
    shown = help_of(kind)
    pictures = shown.locator("img")
    for picture in pictures.all():
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("(picture) => picture.naturalWidth") > NARROWEST
    assert pictures.count() > 0
    # Neither the page nor a table or a block of code in it can be moved sideways.
    too_wide = shown.evaluate("""(shown) => {
        const right = shown.getBoundingClientRect().right
        return [shown, ...shown.querySelectorAll("*")]
            .filter((part) => part.scrollWidth > part.clientWidth && getComputedStyle(part).display !== "inline"
                || [...part.getClientRects()].some((box) => box.right > right + 1))
            .map((part) => part.outerHTML)
    }""")
    assert too_wide == []
