"""How often the host asks the device for numbers, and so waits for it."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# The first, and where nothing is recorded for gradients the others, which otherwise call it.
SCALARS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
)


class ScalarReads(TorchDispatchMode):
    """Counts a number that the host waits for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in SCALARS
        return function(*args, **kwargs or {})


class ListReads(TorchFunctionMode):
    """Counts `tolist`, which waits as well, but for many numbers at once and under no operator of its own."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.Tensor.tolist
        return function(*args, **kwargs or {})


def host_reads(call):
    """How often a call without arguments makes the host wait, on whatever device."""
    with ListReads() as lists, ScalarReads() as scalars:
        call()
    return scalars.count + lists.count
