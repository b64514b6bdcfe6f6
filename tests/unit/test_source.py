"""What the pack's source may do: no pickle, no eval, no shell, no network, and text never becomes HTML."""

import ast
import re

import kleinkit_tasks as tasks
import pytest
from shipped import ROOT, shipped

SHIPPED = [ROOT / path for path in shipped()]
PYTHON = [path for path in SHIPPED if path.suffix == ".py"]
SCRIPTS = [path for path in SHIPPED if path.suffix == ".js"]

# What of the standard library neither runs programs, nor talks to others, nor makes objects out of bytes.
HARMLESS = {
    "bisect",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "decimal",
    "enum",
    "functools",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "os",
    "pathlib",
    "re",
    "stat",
    "struct",
    "time",
    "typing",
    "uuid",
    "weakref",
}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version", "folder_paths", "nodes", "server"}
IMPORTED_AS = {"PIL": "pillow"}
OF_OS = {"os.path", "os.stat", "os.fstat", "os.PathLike"}
NEVER = {"eval", "exec", "compile", "__import__", "breakpoint", "torch.load", "numpy.load", "np.load"}
WRITES = {"write_text", "write_bytes", "unlink", "rmdir", "rmtree", "mkdir", "rename", "symlink_to", "touch", "savefig", "save"}

HTML = r"innerHTML|outerHTML|insertAdjacentHTML|srcdoc|createContextualFragment|DOMParser|document\.write"
CODE = r"\beval\b|\bFunction\(|\bimport\(|importScripts|set(?:Timeout|Interval)\(\s*[\"'`]"
# `api.fetchApi` asks the server that the page came from.
NETWORK = r"(?<![\w.])fetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|https?://(?!www\.w3\.org/2000/svg\b)"


def packages():
    """What requirements.txt and ComfyUI's own name."""
    lists = (ROOT / "requirements.txt", tasks.find_comfyui() / "requirements.txt")
    text = "\n".join(path.read_text("utf-8") for path in lists)
    return {name.lower() for name in re.findall(r"^[A-Za-z0-9_-]+", text, re.MULTILINE)}


def name_of(node):
    """`a.b.c` of an expression of names and attributes."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def breaches(text):
    """What a Python source does that the pack must not do."""
    allowed = HARMLESS | COMFYUI | packages()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            modules = []
        for module in modules:
            top = module.split(".")[0]
            # aiohttp answers, and does not ask.
            if IMPORTED_AS.get(top, top) not in allowed or top in ("requests", "aiohttp") and module != "aiohttp.web":
                yield f"imports {module}"
        name = name_of(node)
        if name in NEVER or name.startswith("os.") and name.count(".") == 1 and name not in OF_OS:
            yield f"uses {name}"
        if isinstance(node, ast.Attribute) and node.attr in WRITES:
            yield f"writes with {node.attr}"
        if isinstance(node, ast.Call) and name_of(node.func).endswith("open") and "safe_open" not in name_of(node.func):
            modes = [argument.value for argument in node.args[1:] if isinstance(argument, ast.Constant)]
            if modes != ["rb"] or node.keywords:
                yield "opens a file for more than reading"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "unpickles"


def relative(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_the_list_of_what_ships_is_whole():
    assert {"__init__.py", "nodes/loader.py", "guidance/cfg.py", "scheduler/mu.py", "checkpoint/header.py"} <= set(
        relative(PYTHON)
    )
    assert SCRIPTS


@pytest.mark.parametrize("path", relative(PYTHON))
def test_no_pickle_no_eval_no_program_no_network_no_writing(path):
    assert list(breaches((ROOT / path).read_text("utf-8"))) == []


@pytest.mark.parametrize("path", relative(SCRIPTS))
def test_scripts_show_text_as_text_and_talk_to_their_server_only(path):
    assert re.findall(f"{HTML}|{CODE}|{NETWORK}", (ROOT / path).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from subprocess import run",
        "import urllib.request",
        "from aiohttp import ClientSession",
        "import aiohttp",
        "import requests",
        "import ctypes",
        "import os\nos.system('x')",
        "import os\nos.remove('x')",
        "eval('1')",
        "exec('1')",
        "open('x', 'w')",
        "open('x', mode='wb')",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x')",
        "load('x', allow_pickle=True)",
        "path.write_text('x')",
    ],
)
def test_such_a_source_would_be_found(text):
    assert list(breaches(text))


@pytest.mark.parametrize(
    "text",
    [
        "label.innerHTML = text",
        "eval(text)",
        "new Function(text)",
        "import(url)",
        "setTimeout('x()', 1)",
        "fetch('/prompt')",
        "new WebSocket(url)",
        "const url = 'https://example.com'",
    ],
)
def test_such_a_script_would_be_found(text):
    assert re.findall(f"{HTML}|{CODE}|{NETWORK}", text)
