"""ComfyUI in this process, for benchmarks and the study."""

import importlib
import os
import sys

import torch


def enter(base=None):
    """Make ComfyUI (`COMFYUI_PATH`) importable, on the GPU if there is one.

    Args:
        base: its base directory, if not its own.
    """
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    args = importlib.import_module("comfy.cli_args").args
    args.base_directory = base and str(base)
    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())
    # As main.py does, before an old nodes.py makes comfy/utils.py win its name.
    importlib.import_module("utils.extra_config")
