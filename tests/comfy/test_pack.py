"""The pack in the real ComfyUI."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_loads(comfy):
    assert any(name.startswith("KleinKit") for name in comfy.NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("version", ["0.3.10", "0.16.2", "0.16"])
def test_a_comfyui_that_is_too_old_gets_one_line(comfy, monkeypatch, tmp_path, caplog, version):
    # Of the pack it has nothing but this: whatever else was imported would be missed.
    for name in ("__init__.py", "compat.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr("comfyui_version.__version__", version)
    known = dict(comfy.NODE_CLASS_MAPPINGS), dict(comfy.EXTENSION_WEB_DIRS)
    modules = set(sys.modules)
    try:
        assert asyncio.run(comfy.load_custom_node(str(tmp_path), module_parent="custom_nodes"))
    finally:
        for name in set(sys.modules) - modules:
            del sys.modules[name]
    assert known == (comfy.NODE_CLASS_MAPPINGS, comfy.EXTENSION_WEB_DIRS)
    [record] = caplog.records
    assert record.getMessage().startswith(f"KleinKit needs ComfyUI 0.16.3 or newer, and this is {version}: it adds no nodes.")


def test_a_comfyui_of_unknown_version_is_taken_to_be_new(pack):
    assert pack("compat").is_new_enough(None)
