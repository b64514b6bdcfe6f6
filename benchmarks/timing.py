"""Timing of two callables side by side in one process."""

import statistics
import time


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def side_by_side(name, ours, theirs, rounds=20, against="ComfyUI"):
    """Call both in turn, so that a busy machine slows both alike, and print one line.

    Args:
        name: what is measured.
        ours, theirs: called without arguments; each once before the clock runs.
        rounds: how often.
        against: whose `theirs` is.
    Returns:
        `(ours, theirs)`, the median seconds of a call.
    """
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs))
    print(f"{name}: KleinKit {ours * 1e3:.3f} ms, {against} {theirs * 1e3:.3f} ms, ratio {ours / theirs:.2f}", flush=True)
    return ours, theirs
