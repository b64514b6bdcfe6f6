"""The header of a safetensors file: what its tensors are called, their dtypes, shapes and places. No weight is read."""

import json
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

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
# ComfyUI marks a quantised layer with a tensor of bytes beside its weight: JSON such as {"format": "nvfp4"}.
MARK = ".comfy_quant"
# Or it lists the formats of all layers in the metadata.
QUANTISATION = "_quantization_metadata"
LARGEST_MARK = 4096
LONGEST_FORMAT = 40
# What stands for the format where a mark cannot be read.
UNREADABLE = "of a damaged mark"
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


class Unreadable(CheckpointError):
    """The system did not let us read a file. It may the next time, although the file stays as it is."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry in the header: its dtype by the format's name, its shape, and where its bytes begin and end,
    counted from the end of the header."""

    dtype: str
    shape: tuple
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header.

    path: the file.
    tensors: `{name: Tensor}`.
    metadata: the strings that whoever wrote the file added.
    formats: `{layer: format}` of the layers that ComfyUI marked as quantised, by the name in the mark.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    formats: dict[str, str]


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file.

    The format: a little-endian u64 n, n bytes of JSON, the tensors' bytes without gaps. Of the tensors only a few of
    ComfyUI's marks are read, some 30 bytes each.

    Args:
        path: the file.
    Returns:
        `Header`.
    Raises:
        CheckpointError: the file cannot be opened (`Unreadable`), or breaks the format.
    """
    path = Path(path)
    with opened(path, "safetensors") as (file, size):
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not start:
            raise bad(path, "is empty")
        if len(start) < 8:
            raise bad(path, "is not a safetensors file: it is too short")
        if length < 2:
            # A download that has got its room on the disk, and nothing else, is all zeros.
            raise bad(path, "is not a safetensors file: its header is empty; download it again")
        if start[:2] in PICKLES and length > LARGEST_HEADER:
            raise bad(path, f"is not a safetensors file but {PICKLES[start[:2]]}, whatever its name says")
        if 8 + length > size:
            raise bad(
                path,
                f"is truncated or not a safetensors file: its header claims {length} bytes, "
                f"the file has {size}; download it again",
            )
        if length > LARGEST_HEADER:
            raise bad(path, f"has a header of {length} bytes, and KleinKit reads at most {LARGEST_HEADER}")
        tensors, metadata = _parse(path, file.read(length), size - 8 - length)
        formats = _marked(tensors, lambda tensor: _read(file, 8 + length + tensor.begin, tensor.end - tensor.begin))
    return Header(path, tensors, metadata, formats)


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file that is open for reading, and its size in bytes, for a `with` block.

    Args:
        path: the file.
        kind: what it should be, for messages.
    Raises:
        CheckpointError: the file cannot be opened or read (`Unreadable`), or is not a regular file.
    """
    try:
        # A pipe or a device would block when opened.
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise bad(path, f"is a folder, not a {kind} file")
        if not stat.S_ISREG(status.st_mode):
            raise bad(path, "is not a regular file")
        with open(path, "rb") as file:
            yield file, status.st_size
    except FileNotFoundError:
        raise bad(path, "does not exist", Unreadable) from None
    except PermissionError:
        raise bad(path, "cannot be opened: permission denied", Unreadable) from None
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror}", Unreadable) from error


def bad(path: Path, problem: str, kind: type[CheckpointError] = CheckpointError) -> CheckpointError:
    """The error for a file: what is wrong with it, between its name and its path."""
    return kind(f"{path.name} {problem} ({path}).")


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _parse(path: Path, text: bytes, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`(tensors, metadata)` of a header's JSON, for a file with `size` bytes behind the header."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise bad(path, "is damaged: its header is not JSON") from None
    if not isinstance(entries, dict):
        raise bad(path, "is damaged: its header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad(path, "is damaged: its metadata are not strings")
    tensors = {}
    for name, entry in entries.items():
        tensors[name] = _tensor(entry)
        if tensors[name] is None:
            raise bad(path, f"is damaged: the header's entry for {name[:80]!r} is not a tensor")
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise bad(path, f"is damaged: the bytes of {name[:80]!r} overlap another tensor's, or leave a gap")
        position = tensor.end
    if position > size:
        missing = position - size
        raise bad(path, f"is truncated: {missing} bytes are missing at its end; download it again")
    if position < size:
        raise bad(path, f"is damaged: {size - position} bytes at its end belong to no tensor")
    return tensors, metadata


def _marked(tensors: dict[str, Tensor], read: Callable[[Tensor], bytes]) -> dict[str, str]:
    """`{layer: format}` by ComfyUI's marks. Layers that are stored alike have the same format: one mark of each is read."""
    layers = {name.removesuffix(MARK): {} for name in tensors if name.endswith(MARK)}
    for name, tensor in tensors.items() if layers else ():
        layer, _, side = name.rpartition(".")
        if layer in layers:
            layers[layer][side] = (tensor.dtype, len(tensor.shape))
    formats, found = {}, {}
    for layer, sides in layers.items():
        alike = frozenset(sides.items())
        if alike not in found:
            mark = tensors[layer + MARK]
            found[alike] = _format(read(mark)) if mark.end - mark.begin <= LARGEST_MARK else None
        formats[layer] = found[alike] or UNREADABLE
    return formats


def _format(mark: bytes) -> str | None:
    """The format that a mark of ComfyUI names, or None: ComfyUI says what is wrong with a damaged one."""
    try:
        name = json.loads(mark)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name[:LONGEST_FORMAT] if isinstance(name, str) else None


def _are_sizes(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _tensor(entry: object) -> Tensor | None:
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
