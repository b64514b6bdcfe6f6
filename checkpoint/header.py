"""The header of a safetensors file: what its tensors are called, their dtypes, shapes and places. No tensor is read."""

import json
import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

# Bits of one element, by the format's dtype names (github.com/huggingface/safetensors, `Dtype`).
BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
# The format allows 100 MB. The largest header among the models that ComfyUI loads is under 2 MB.
LARGEST_HEADER = 16 * 1024**2
PICKLES = {
    b"PK": "a zip archive (a PyTorch pickle)",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"GG": "a GGUF file",
}


class CheckpointError(ValueError):
    """A model file is damaged, is of the wrong kind, or does not fit the others. The message names the file."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header: its dtype by the format's name, its shape, and its bytes after the header."""

    dtype: str
    shape: tuple
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header: `tensors` by name, and `metadata`, the strings that whoever wrote the file added."""

    path: Path
    tensors: dict
    metadata: dict


def read_header(path):
    """Read and check the header of a safetensors file.

    The format: a little-endian u64 n, n bytes of JSON, the tensors' bytes without gaps.

    Args:
        path: the file.
    Returns:
        `Header`.
    Raises:
        CheckpointError: the file cannot be opened, or breaks the format.
    """
    path = Path(path)

    def bad(problem):
        return CheckpointError(f"{path.name} {problem} ({path}).")

    try:
        # A pipe or a device would block when opened.
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise bad("is a folder, not a safetensors file")
        if not stat.S_ISREG(status.st_mode):
            raise bad("is not a regular file")
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if length < 2:
                raise bad(
                    "is empty"
                    if not start
                    else "is not a safetensors file: it is too short"
                    if len(start) < 8
                    else "is not a safetensors file: its header is empty"
                )
            if start[:2] in PICKLES and length > LARGEST_HEADER:
                raise bad(f"is not a safetensors file but {PICKLES[start[:2]]}, whatever its name says")
            size = status.st_size - 8 - length
            if size < 0:
                raise bad(
                    f"is truncated or not a safetensors file: its header claims {length} bytes, "
                    f"the file has {status.st_size}; download it again"
                )
            if length > LARGEST_HEADER:
                raise bad(f"has a header of {length} bytes, and KleinKit reads at most {LARGEST_HEADER}")
            text = file.read(length)
    except FileNotFoundError:
        raise bad("does not exist") from None
    except PermissionError:
        raise bad("cannot be opened: permission denied") from None
    except OSError as error:
        raise bad(f"cannot be read: {error.strerror}") from error

    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise bad("is damaged: its header is not JSON") from None
    if not isinstance(entries, dict):
        raise bad("is damaged: its header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad("is damaged: its metadata are not strings")
    tensors = {}
    for name, entry in entries.items():
        tensors[name] = _tensor(entry)
        if tensors[name] is None:
            raise bad(f"is damaged: the header's entry for {name[:80]!r} is not a tensor")
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise bad(f"is damaged: the bytes of {name[:80]!r} overlap another tensor's, or leave a gap")
        position = tensor.end
    if position > size:
        raise bad(f"is truncated: it should be {8 + length + position} bytes long and has {status.st_size}; download it again")
    if position < size:
        raise bad(f"is damaged: {size - position} bytes at its end belong to no tensor")
    return Header(path, tensors, metadata)


def _are_sizes(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _tensor(entry):
    """`Tensor` of one JSON entry, or None if it is not one."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        return None
    if not (_are_sizes(shape) and _are_sizes(offsets)):
        return None
    # More than 64 dimensions, or sizes beyond 64 bits, would make the product below slow.
    if len(offsets) != 2 or len(shape) > 64 or any(n >= 2**63 for n in (*shape, *offsets)):
        return None
    begin, end = offsets
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        return None
    return Tensor(dtype, tuple(shape), begin, end)
