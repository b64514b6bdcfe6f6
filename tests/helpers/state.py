"""What hangs on a model, to compare before and after a run."""

import gc
from contextlib import contextmanager

import torch

OF_A_PATCHER = (
    "model_options",
    "patches",
    "object_patches",
    "wrappers",
    "callbacks",
    "attachments",
    "injections",
    "hook_patches",
)


def shape_of(value):
    """A value's structure down to the identity of its leaves."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [shape_of(item) for item in value]
    return id(value)


def state_of(patcher):
    """All that is patched on a `ModelPatcher`, and what its model is made of."""
    parts = [(name, type(module), len(module._forward_pre_hooks)) for name, module in patcher.model.named_modules()]
    return shape_of({name: getattr(patcher, name) for name in OF_A_PATCHER}), parts


@contextmanager
def no_tensor_kept():
    """Check that no tensor that is made inside is still there at the end."""
    # What is there already is out of the garbage collector's sight, which also makes it a hundred times faster.
    gc.freeze()
    try:
        yield
        gc.collect()
        assert not [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    finally:
        gc.unfreeze()
