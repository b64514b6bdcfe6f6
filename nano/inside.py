"""ComfyUI in this process, for benchmarks."""

import importlib
import os
import sys

import torch

from .build import transformer


def enter(base=None):
    """Make ComfyUI (`COMFYUI_PATH`) importable, on the GPU if there is one.

    Args:
        base: its base directory, if not its own.
    """
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    args = importlib.import_module("comfy.cli_args").args
    args.base_directory = base and str(base)
    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())


def random_klein(seed=0, dtype=torch.float32, **shape):
    """A `ModelPatcher` of random weights of Klein's architecture, as ComfyUI's own loader makes it.

    Args:
        seed, shape: of `build.transformer`.
        dtype: to compute in.
    """
    weights = {key: torch.from_numpy(array) for key, array in transformer(seed, **shape).items()}
    return importlib.import_module("comfy.sd").load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})
