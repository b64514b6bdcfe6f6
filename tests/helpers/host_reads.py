"""How often the host asks the device for numbers or brings it some, and so waits for it."""

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


# What can bring numbers from the host to a device. The first two do so without a word to a dispatch mode.
BRINGING = torch.tensor, torch.as_tensor, torch.Tensor.new_tensor, torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.copy_


class Waiting(TorchFunctionMode):
    """Collects the functions that bring what is on the host to another device, and wait until it is there."""

    def __init__(self):
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out, kwargs = function(*args, **kwargs or {}), kwargs or {}
        from_host = any(one.device.type == "cpu" for one in args if torch.is_tensor(one)) or function in BRINGING[:3]
        if function in BRINGING and from_host and out.device.type != "cpu" and not kwargs.get("non_blocking"):
            self.found.append(function.__name__)
        return out


def waits_to_bring(call):
    """What a call brings from the host to another device, and waits for: names of functions.

    On the device "meta", whose tensors have no values, a call that reads one fails.
    """
    with Waiting() as waiting:
        call()
    return waiting.found
