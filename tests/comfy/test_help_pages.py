"""The help pages that ComfyUI's editor shows: one a node, and its table of inputs is the node's own."""

import re
from pathlib import Path

import pytest

ROW = re.compile(r"^\| `([\w.]+)` \| ([^|]+) \|", re.MULTILINE)
IMAGE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def nodes(comfy):
    return {name: node for name, node in comfy.NODE_CLASS_MAPPINGS.items() if name.startswith("KleinKit")}


@pytest.fixture(scope="module")
def schemas(nodes):
    return {name: dict(inputs(node.define_schema().inputs)) for name, node in nodes.items()}


@pytest.fixture(scope="module")
def folder(comfy, nodes):
    """Where the editor looks: `/extensions/<folder of the pack>/docs/<node id>.md`."""
    pack = nodes["KleinKitCFG"].RELATIVE_PYTHON_MODULE.split(".")[1]
    return Path(comfy.EXTENSION_WEB_DIRS[pack]) / "docs"


@pytest.fixture(scope="module")
def pages(folder):
    return {path.stem: path.read_text("utf-8") for path in folder.glob("*.md")}


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


def default(item):
    """A default as the pages write it: code, “empty”, or a dash for an input without one."""
    brings_inputs = any(hasattr(option, "key") for option in options(item))
    value = choices(item)[0] if brings_inputs else getattr(item, "default", None)
    if value is None:
        return "–"
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_every_node_has_a_page(nodes, pages):
    assert set(pages) == set(nodes)


def test_inputs_and_defaults(schemas, pages):
    sections = {name: page.partition("\n## Inputs\n")[2].partition("\n## ")[0] for name, page in pages.items()}
    tables = {name: dict(ROW.findall(section)) for name, section in sections.items()}
    assert tables == {name: {key: default(item) for key, item in schemas[name].items()} for name in pages}


def test_every_choice_is_explained(schemas, pages):
    # The files of a loader are choices too.
    missing = [
        (name, key, choice)
        for name, page in pages.items()
        for key, item in schemas[name].items()
        for choice in choices(item)
        if "." not in choice and f"`{choice}`" not in page
    ]
    assert missing == []


def test_images_exist(folder, pages):
    images = {image for page in pages.values() for image in IMAGE.findall(page)}
    assert images == {path.name for path in folder.glob("*.png")}


def test_links_lead_out_of_the_editor(pages):
    # The editor does not resolve links between pages, only those of images.
    assert [link for page in pages.values() for link in LINK.findall(page) if not link.startswith("https://")] == []
