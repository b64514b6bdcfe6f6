"""What was read of files, kept while they stay as they are: an unchanged file is read once."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .header import CheckpointError, Unreadable

# Of each only names, dtypes and shapes are kept: about 0.2 MB for a model of a thousand tensors.
MOST_KEPT = 512


def file_state(path: str | Path) -> tuple[str, int, int]:
    """What tells that a file has changed: the path behind all links, its size in bytes, its time in nanoseconds.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)
    return os.path.realpath(path), status.st_size, status.st_mtime_ns


def keep(read: Callable) -> Callable:
    """Decorator for a function of files: it reads once for each state of the files, and then answers from memory.

    Of a damaged file the sentence is kept. A file that the system does not let us read is tried anew.
    """

    @functools.wraps(read)
    def kept(*files: str | Path, **settings: Any) -> Any:
        try:
            states = tuple(map(file_state, files))
        except OSError:
            return read(*files, **settings)
        found, problem = outcome(read, tuple(map(Path, files)), states, tuple(sorted(settings.items())))
        if problem:
            raise CheckpointError(problem)
        return found

    return kept


@functools.lru_cache(MOST_KEPT)
def outcome(read: Callable, files: tuple, states: tuple, settings: tuple) -> tuple[Any, str | None]:
    """`(what was read, None)`, or `(None, what is wrong with the file)`; `states` are there for the cache alone."""
    try:
        return read(*files, **dict(settings)), None
    except Unreadable:
        raise
    except CheckpointError as error:
        return None, str(error)
