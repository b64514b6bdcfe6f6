"""A Klein of random weights inside ComfyUI, for tests and benchmarks."""

import importlib

import torch

from .build import transformer


def random_klein(seed=0, dtype=torch.float32, **shape):
    """A `ModelPatcher` of random weights of Klein's architecture, as ComfyUI's own loader makes it.

    Args:
        seed, shape: of `transformer`.
        dtype: to compute in.
    """
    weights = {key: torch.from_numpy(array) for key, array in transformer(seed, **shape).items()}
    return importlib.import_module("comfy.sd").load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})
