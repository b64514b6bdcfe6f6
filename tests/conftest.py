"""Fixtures: the pack's pure parts as the package `kleinkit`, and the real ComfyUI in this process."""

import asyncio
import importlib
import importlib.util
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

# One thread is as fast as many on tiny models, and torch's waiting threads slow a busy machine tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no error, and a run can be repeated.
settings.register_profile("kleinkit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kleinkit")

ROOT = Path(__file__).resolve().parent.parent


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tasks = _load("kleinkit_tasks", ROOT / "tasks.py")
tasks.as_package()


COUNT = "count_"


# What takes longest starts first, so that no process waits long for the last one.
ORDER = ("browser", "server", "comfy", "reference", "unit")
# Each of these folders stays in one process, because its tests share a server.
TOGETHER = ("browser", "server")


def folder(nodeid):
    return nodeid.partition("/")[0]


class ByFile(LoadFileScheduling):
    """A file's tests run in one process, and those of a folder of `TOGETHER`."""

    def _split_scope(self, nodeid):
        return folder(nodeid) if folder(nodeid) in TOGETHER else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # Else the scopes with the most tests come first, of which many are quick.
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(folder(item.nodeid)))


def pytest_terminal_summary(terminalreporter):
    """Add up what tests recorded as counts: faults, outcomes that were checked after them, prompts, requests, …"""
    counts = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name.startswith(COUNT):
                counts[name.removeprefix(COUNT)] += value
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{name.replace('_', ' ')}: {count}")


def pytest_collection_finish():
    # pytest names our folders `comfy` and `server` as ComfyUI names two of its modules.
    for name in ("comfy", "server"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def comfyui():
    """The folder of the ComfyUI to test with."""
    path = tasks.find_comfyui()
    assert path, "These tests need ComfyUI: run `python3 tasks.py setup`, or set COMFYUI_PATH."
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory, comfyui):
    """The nano family on disk: `{role: path}`, in a base directory that ComfyUI uses in this process."""
    from kleinkit.nano.build import build

    return build(tmp_path_factory.mktemp("comfy") / "models", comfyui)


@pytest.fixture(scope="session")
def comfy(models, comfyui):
    """The real ComfyUI, in this process and on the CPU, with the pack loaded the way ComfyUI loads it."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(models["base"].parent.parent.parent)
    import utils.extra_config  # noqa: F401, I001  As main.py: before an old nodes.py makes comfy/utils.py win its name.
    import nodes
    from server import PromptServer

    PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    loaded = asyncio.run(nodes.load_custom_node(str(ROOT), module_parent="custom_nodes"))
    assert loaded, "ComfyUI did not load the pack."
    return nodes


@pytest.fixture(scope="session")
def pack(comfy):
    """The module that ComfyUI made of the pack, for its submodules: `pack("guidance.stack")`."""
    name = comfy.NODE_CLASS_MAPPINGS["KleinKitCFG"].__module__.rsplit(".nodes.", 1)[0]
    return lambda submodule: importlib.import_module(f"{name}.{submodule}")


@pytest.fixture(scope="session")
def family(tmp_path_factory, comfyui):
    """Make a base directory with the nano family, and with a pack: by default a node that can load it without ours."""
    from kleinkit.nano.build import build
    from templates import PACK

    def family(name, pack=PACK):
        base = tmp_path_factory.mktemp(name)
        build(base / "models", comfyui)
        shutil.copytree(pack, base / "custom_nodes" / pack.name, ignore=shutil.ignore_patterns("__pycache__"))
        return base

    return family


@pytest.fixture(scope="session")
def server(family, comfyui):
    """A ComfyUI server with the pack and the nano family; `kleinkit.harness.server` queues prompts on it."""
    from kleinkit.harness.server import running

    with running(comfyui, family("server")) as server:
        yield server


@pytest.fixture(scope="session")
def bare_server(family, comfyui):
    """As `server`, without the pack."""
    from kleinkit.harness.server import running

    with running(comfyui, family("bare"), pack=False) as server:
        yield server


@pytest.fixture(scope="session")
def run_node(comfy):
    """Run a node by its id, as ComfyUI's executor does: `run_node("KleinKitCFG", model=m, …)` returns its outputs."""

    def run(node_id, **inputs):
        node = comfy.NODE_CLASS_MAPPINGS[node_id]
        if hasattr(node, "PREPARE_CLASS_CLONE"):
            clone = node.PREPARE_CLASS_CLONE(None)
            result = clone.EXECUTE_NORMALIZED(**inputs)
            return result.result if hasattr(result, "result") else result
        return getattr(node(), node.FUNCTION)(**inputs)

    return run
