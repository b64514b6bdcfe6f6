"""Who may import whom: the table of folders, no arrow upward, no circle; and what a file of `nodes/` looks like."""

import ast
from collections.abc import Iterator

import pytest
from shipped import ROOT, listed, shipped

PURE = {"checkpoint", "guidance", "pictures", "report", "scheduler"}
# Of our own folders and files of the root, by the folder or file that imports; `checks` is everybody's.
MAY_IMPORT = {
    "__init__": {"compat", "nodes", "previews"},
    "checks": set(),
    "compat": set(),
    "checkpoint": set(),
    "scheduler": set(),
    "guidance": {"scheduler"},
    "pictures": set(),
    "report": set(),
    "engine": PURE,
    "previews": {"engine", *PURE},
    "nodes": {"engine", *PURE},
}
COMFYUI = {"comfy", "comfy_api", "comfy_api_nodes", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}
OF_COMFYUI = {
    "compat": {"comfyui_version"},
    "nodes": COMFYUI,
    "engine": COMFYUI,
    "previews": COMFYUI,
    "__init__": {"comfy_api"},
}
SHIPPED = [path for path in shipped() if path.endswith(".py")]
OURS = {path.split("/")[0].removesuffix(".py") for path in listed() if path.endswith(".py")}


def place(path: str) -> str:
    """The folder of a file, or the name of a file of the root."""
    return path.split("/")[0].removesuffix(".py")


def imported(path: str, text: str) -> Iterator[tuple[str, bool]]:
    """What a file imports, wherever in it: `(top-level name, whether it is of the pack)`."""
    folder = ["", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0], False
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1]
            assert base, f"{path} imports from outside the pack"
            for alias in node.names:
                full = [*base[1:], *(node.module or "").split("."), alias.name]
                yield next(filter(None, full)), True


def source(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def breaches(path: str, text: str) -> list[str]:
    """What a shipped file imports and must not."""
    at = place(path)
    fine = {at, "checks", *MAY_IMPORT[at]}
    found = []
    for name, ours in imported(path, text):
        if ours and name not in fine:
            found.append(f"imports {name}/ of the pack")
        elif not ours and name in COMFYUI | {"comfyui_version"} and name not in OF_COMFYUI.get(at, ()):
            found.append(f"imports {name} of ComfyUI")
        elif not ours and name in OURS - COMFYUI:
            found.append(f"imports {name} as if it were installed")
    return found


def test_the_table_knows_every_folder_that_ships():
    assert {place(path) for path in SHIPPED} == set(MAY_IMPORT)


def test_the_table_has_no_circle():
    below, left = set(), {name: others | ({"checks"} - {name}) for name, others in MAY_IMPORT.items()}
    while left:
        lowest = {name for name, others in left.items() if others <= below}
        assert lowest, f"a circle among {sorted(left)}"
        below |= lowest
        left = {name: others for name, others in left.items() if name not in lowest}


@pytest.mark.parametrize("path", SHIPPED)
def test_imports_follow_the_table(path):
    assert breaches(path, source(path)) == []


@pytest.mark.parametrize(
    "path, text",
    [
        ("guidance/x.py", "from ..engine.sampling import with_rule"),
        ("guidance/x.py", "from .. import engine"),
        ("guidance/x.py", "def f():\n    import comfy.samplers"),
        ("checkpoint/families/x.py", "from ...guidance.rule import Rule"),
        ("scheduler/x.py", "from ..guidance.rule import Rule"),
        ("engine/x.py", "from ..nodes.guidance import NODES"),
        ("engine/x.py", "from ..previews import routes"),
        ("nodes/x.py", "from ..nano.build import build"),
        ("previews/x.py", "from ..harness.server import get"),
        ("report/x.py", "import kleinkit_pack\nfrom guidance.cfg import combine"),
        ("checks.py", "from comfy import utils"),
    ],
)
def test_such_an_import_would_be_found(path, text):
    assert len(breaches(path, text)) == 1


@pytest.mark.parametrize("path", [path for path in listed() if path.startswith("harness/") and path.endswith(".py")])
def test_the_harness_does_not_import_nano_or_what_needs_comfyui(path):
    """It hands the tests and the demo a ComfyUI, and knows nano's files by their names only."""
    assert {name for name, ours in imported(path, source(path)) if ours} & {"nano", "nodes", "engine", "previews"} == set()


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.startswith("nodes/") and path != "nodes/__init__.py"])
def test_a_file_of_nodes_ends_in_its_nodes(path):
    body = ast.parse(source(path)).body
    *_, last = body
    assert isinstance(last, ast.Assign) and [ast.unparse(target) for target in last.targets] == ["NODES"]
    assert isinstance(last.value, ast.List)
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    nodes = [node.name for node in classes if "io.ComfyNode" in map(ast.unparse, node.bases)]
    assert [ast.unparse(item) for item in last.value.elts] == nodes == [node.name for node in classes]
