"""How work is measured on a device: its time, its memory, how often the host waits, and what the device could do at best."""

import gc
import platform
import shutil
import statistics
import subprocess
import time
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..tests.helpers.host_reads import host_reads

WAITS = "called a synchronizing CUDA operation"
SIDE = {"cuda": 8192, "cpu": 512}


class Clock:
    """Marks in the stream of work. On a GPU they are events, for which the host does not wait; on a CPU the time of day."""

    def __init__(self, on_gpu):
        self.on_gpu, self.marks = on_gpu, []

    def mark(self, *_):
        """One more mark; samplers may call it back with what they like."""
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self):
        """From each mark to the next."""
        if self.on_gpu:
            torch.cuda.synchronize()
            return [first.elapsed_time(then) for first, then in zip(self.marks, self.marks[1:])]
        return [1e3 * (then - first) for first, then in zip(self.marks, self.marks[1:])]


class Device:
    """The GPU, or the CPU where there is no GPU.

    Attributes:
        device, dtype: torch's, to compute in.
        on_gpu: whether it is one.
    """

    def __init__(self):
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32

    def times(self, work):
        """The milliseconds between the marks that `work(mark)` makes."""
        clock = Clock(self.on_gpu)
        work(clock.mark)
        return clock.milliseconds()

    def peak(self, work):
        """By how many bytes memory grows at most during a piece of work; None on a CPU, which does not tell."""
        if not self.on_gpu:
            work()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before

    def waits(self, work):
        """How often the host waits for the device: by CUDA's own word, or by counting what would wait there."""
        if not self.on_gpu:
            return host_reads(work)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum(WAITS in str(one.message) for one in said)

    def matrix_peak(self):
        """Floating-point operations a second of one large product of matrices: nothing on this device is faster."""
        side = SIDE[self.device.type]
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))

        def work(mark):
            mark()
            for _ in range(10):
                a @ b
                mark()

        self.times(work)
        return 2e3 * side**3 / statistics.median(self.times(work))

    def free(self):
        """Bytes of memory that can be had; infinite on a CPU, where only small things are measured."""
        return torch.cuda.mem_get_info()[0] if self.on_gpu else float("inf")

    def forget(self):
        """Give back the memory of what nothing refers to any more."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def facts(self):
        """What the numbers depend on, for the record."""
        facts = {"system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
        if not self.on_gpu:
            return {"card": "none, a CPU", **facts}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "card": properties.name,
            "memory": properties.total_memory,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **facts,
        }


def driver():
    """NVIDIA's driver, or None where its tool does not tell."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return said[0] if said else None


def operations(work):
    """The floating-point operations of a piece of work, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
