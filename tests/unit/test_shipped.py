"""What users get from the Comfy Registry, and that nothing in it leads to what they do not get."""

import posixpath
import re
from urllib.parse import unquote

import pytest
from shipped import ROOT, listed, shipped

LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)", re.MULTILINE)
SHIPPED = shipped()
PAGES = [path for path in SHIPPED if path.endswith(".md")]
# What ComfyUI and its editor read.
WHOLE = ("web/", "workflows/", "subgraphs/", "locales/")
OF_A_CLONE = (
    ".",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "benchmarks/",
    "docs/",
    "harness/",
    "nano/",
    "remote/",
    "tests/",
    "tasks.py",
)


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures, without what is behind a `#`, and without those inside the page."""
    found = ("".join(groups).partition("#")[0] for groups in LINK.findall(text))
    return [unquote(target) for target in found if target]


def is_absolute(target: str) -> bool:
    return target.startswith(("https://", "mailto:"))


def test_all_that_comfyui_reads_ships():
    wanted = {path for path in listed() if path.startswith(WHOLE)}
    assert {path.partition("/")[0] + "/" for path in wanted} == set(WHOLE)
    assert wanted - set(SHIPPED) == set()
    assert any(path.startswith("web/docs/") for path in wanted)


def test_all_other_code_ships_and_nothing_of_a_clone_does():
    assert [path for path in SHIPPED if path.startswith(OF_A_CLONE)] == []
    left_out = set(listed()) - set(SHIPPED)
    assert [path for path in left_out if not path.startswith(OF_A_CLONE)] == []
    assert {"__init__.py", "requirements.txt", "pyproject.toml", "LICENSE", "README.md"} <= set(SHIPPED)


def test_a_pattern_that_leaves_out_help_pages_would_be_found(tmp_path):
    ignore = tmp_path / "ignore"
    ignore.write_text("docs/\n", "utf-8")
    assert [path for path in SHIPPED if path.startswith("web/docs/")]
    assert [path for path in shipped(ignore) if path.startswith("web/docs/")] == []


def base_of(page: str) -> str:
    """Where a page's links begin: the editor takes those of a help page in another language from the English one's folder."""
    return "web/docs" if page.startswith("web/docs/") else posixpath.dirname(page)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_ships(page):
    folders = {posixpath.dirname(path) for path in SHIPPED}
    for target in links((ROOT / page).read_text("utf-8")):
        path = posixpath.normpath(posixpath.join(base_of(page), target))
        assert is_absolute(target) or path in SHIPPED or path in folders, target


@pytest.mark.parametrize("page", sorted(path for path in listed() if path.endswith(".md") and path not in PAGES))
def test_links_of_a_clone_lead_to_its_files(page):
    for target in links((ROOT / page).read_text("utf-8")):
        assert is_absolute(target) or (ROOT / page).parent.joinpath(target).exists(), target


def test_such_links_are_seen():
    text = '![a](x.png "title") [b](docs/y.md#part) [c](#part) <img src="z.jpg">\n[d]: docs/w%20w.md\n'
    assert links(text) == ["x.png", "docs/y.md", "z.jpg", "docs/w w.md"]


def test_one_place_is_to_be_filled_in():
    """The repository's address is not known yet: nothing but the place that README names may hold a made-up one."""
    marked = {
        path for path in listed() if not path.startswith("tests/") and "FILL-IN" in (ROOT / path).read_bytes().decode("latin-1")
    }
    assert marked <= {"pyproject.toml", ".github/workflows/publish.yml"}
