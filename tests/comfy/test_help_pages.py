"""The help pages that ComfyUI's editor shows beside the graph: one for each node and language, made for a narrow panel."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

LOCALES = Path(__file__).resolve().parents[2] / "locales"
# What comes after the picture, in this order. The last two may be missing: a tool has no formula, and no paper.
SECTIONS = {
    "en": (
        ("When to use it",),
        ("Settings to start from",),
        ("Cost",),
        ("Inputs",),
        ("Formula", "How it works", "JSON"),
        ("Sources",),
    ),
    "ja": (("使いどころ",), ("最初の設定",), ("コスト",), ("入力",), ("式", "しくみ", "JSON"), ("出典",)),
    "zh": (("何时使用",), ("起始设置",), ("开销",), ("输入",), ("公式", "工作原理", "JSON"), ("来源",)),
}
NEEDED = 4
EMPTY = {"en": "empty", "ja": "空", "zh": "空"}
# `- `id` **name** (default): …`; English has no name beside the id, in which the editor shows it.
ROW = re.compile(r"^- `([\w.]+)`(?: \*\*([^*]+)\*\*)?(?: ?[(（](.+?)[)）])?[:：]", re.MULTILINE)
IMAGE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
KANA = re.compile("[ぁ-ヿ]")
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
# How many letters of code fit into one line of the panel: in a paragraph, in a list, and in a list in a list.
PANEL_LETTERS = (27, 23, 20)
INDENT = re.compile(r"(  )*(- )?")
PICTURE_BYTES, ALL_BYTES = 40_000, 600_000
COLUMNS = 2
LANGUAGES = tuple(SECTIONS)


@pytest.fixture(scope="module")
def nodes(comfy):
    return {name: node for name, node in comfy.NODE_CLASS_MAPPINGS.items() if name.startswith("KleinKit")}


@pytest.fixture(scope="module")
def schemas(nodes):
    return {name: dict(inputs(node.define_schema().inputs)) for name, node in nodes.items()}


@pytest.fixture(scope="module")
def folder(comfy, nodes):
    """Where the editor looks: `/extensions/<folder of the pack>/docs/`, for pictures too, whatever the language."""
    pack = nodes["KleinKitCFG"].RELATIVE_PYTHON_MODULE.split(".")[1]
    return Path(comfy.EXTENSION_WEB_DIRS[pack]) / "docs"


@pytest.fixture(scope="module")
def everything(folder):
    """`{language: {node id: text}}`: `<node id>/<language>.md`, and `<node id>.md` for all other languages."""
    pages = {"en": {path.stem: path.read_text("utf-8") for path in folder.glob("*.md")}}
    for path in folder.glob("*/*.md"):
        pages.setdefault(path.stem, {})[path.parent.name] = path.read_text("utf-8")
    return pages


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture
def pages(everything, language):
    return everything[language]


@pytest.fixture
def texts(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


def options(item):
    return getattr(item, "options", None) or ()


def inputs(items, prefix=""):
    """Every input of a schema with its API key, those that a choice brings included: `schedule`, `schedule.start`, …"""
    for item in items:
        yield prefix + item.id, item
        for option in options(item):
            yield from inputs(getattr(option, "inputs", ()), f"{prefix}{item.id}.")


def choices(item):
    return [getattr(option, "key", option) for option in options(item)]


def default(item, language):
    """A default as the pages write it: code, “empty”, or nothing for an input without one."""
    brings_inputs = any(hasattr(option, "key") for option in options(item))
    value = choices(item)[0] if brings_inputs else getattr(item, "default", None)
    if value is None:
        return ""
    if value == "":
        return EMPTY[language]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def parts(page):
    """`(what stands before the first section, [(heading, text), …])`."""
    first, *sections = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    return first, list(zip(sections[::2], sections[1::2], strict=True))


def section(page, heading):
    return dict(parts(page)[1])[heading]


def test_every_node_has_a_page_in_every_language(nodes, everything):
    assert {language: set(pages) for language, pages in everything.items()} == dict.fromkeys(LANGUAGES, set(nodes))


def test_titles_are_the_nodes_own(pages, texts):
    assert {name: page.partition("\n")[0] for name, page in pages.items()} == {
        name: f"# {texts[name]['display_name']}" for name in pages
    }


def test_a_page_begins_with_what_the_node_does_to_a_picture(pages):
    for name, page in pages.items():
        _, says, picture, *_ = re.split(r"\n\n+", parts(page)[0])
        assert says[0] not in "#!`|-" and IMAGE.match(picture), name


def test_sections_are_in_order(pages, language):
    order = {heading: place for place, headings in enumerate(SECTIONS[language]) for heading in headings}
    for name, page in pages.items():
        places = [order[heading] for heading, _ in parts(page)[1]]
        assert places == sorted(set(places)) and places[:NEEDED] == list(range(NEEDED)), name


def test_inputs_defaults_and_names(schemas, pages, language, texts):
    [heading] = SECTIONS[language][3]
    for name, page in pages.items():
        rows = {key: (called, value) for key, called, value in ROW.findall(section(page, heading))}
        assert rows == {
            key: (
                "" if language == "en" else texts[name]["inputs"][key.replace(".", "_")]["name"],
                default(item, language),
            )
            for key, item in schemas[name].items()
        }, name


def test_every_choice_is_explained(schemas, pages):
    # The files of a loader are choices too, and `default` is the file's own dtype.
    missing = [
        (name, key, choice)
        for name, page in pages.items()
        for key, item in schemas[name].items()
        for choice in choices(item)
        if "." not in choice and f"`{choice}`" not in page
    ]
    assert missing == []


def test_languages_say_the_same(everything):
    for name, page in everything["en"].items():
        for language in LANGUAGES[1:]:
            other = everything[language][name]
            for part in (CODE, IMAGE, LINK):
                assert set(part.findall(other)) == set(part.findall(page)), (name, language)


def test_pages_are_in_their_language(everything):
    for name in everything["en"]:
        assert not KANA.search(everything["en"][name] + everything["zh"][name]), name
        for heading, text in parts(everything["ja"][name])[1]:
            assert KANA.search(heading + text) or heading in SECTIONS["ja"][-1], (name, heading)


def test_no_line_is_broken_within_a_paragraph_of_cjk(everything):
    # Markdown makes a blank of a line break.
    for language in LANGUAGES[1:]:
        for name, page in everything[language].items():
            lines = page.split("\n")
            broken = [one for one, two in zip(lines, lines[1:]) if one and two and not re.match(" *- |#", two)]
            assert broken == [], (name, language)


def test_nothing_is_wider_than_the_panel(pages):
    for name, page in pages.items():
        # Code in a block does not wrap. CJK letters wrap everywhere, others at a blank and behind a hyphen.
        assert "```" not in page, name
        for line in MARKUP.sub(r"\1", page).split("\n"):
            assert not line.startswith("|") or line.count("|") <= COLUMNS + 1, (name, line)
            fits = PANEL_LETTERS[len(INDENT.match(line)[0]) // 2]
            words = [word for part in re.findall(r"[!-~]+", line.replace("`", " ")) for word in re.split("-", part)]
            assert [word for word in words if len(word) > fits] == [], name


def test_pictures_exist_and_are_small(folder, everything):
    used = {image for pages in everything.values() for page in pages.values() for image in IMAGE.findall(page)}
    pictures = {path.name: path for path in folder.glob("*.png")}
    assert used == set(pictures)
    assert {name: path.stat().st_size for name, path in pictures.items() if path.stat().st_size > PICTURE_BYTES} == {}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= ALL_BYTES
    for path in pictures.values():
        with Image.open(path) as picture:
            picture.verify()


def test_links_lead_out_of_the_editor(pages):
    # The editor does not resolve links between pages, only those of images.
    assert [link for page in pages.values() for link in LINK.findall(page) if not link.startswith("https://")] == []
