"""Which files Python opens: an audit hook, which cannot be taken out again, and which counts only while it is asked to."""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

_counts = []


def _listen(event, args):
    if event == "open" and _counts and isinstance(args[0], (str, bytes, Path)):
        path = Path(args[0].decode() if isinstance(args[0], bytes) else args[0])
        for base, count in _counts:
            if path.is_relative_to(base):
                count[str(path.relative_to(base))] += 1


sys.addaudithook(_listen)


@contextmanager
def opened(base):
    """`Counter` of the files below a folder that are opened inside. Safetensors opens weights by itself: not counted."""
    entry = (base, Counter())
    _counts.append(entry)
    try:
        yield entry[1]
    finally:
        _counts.remove(entry)
