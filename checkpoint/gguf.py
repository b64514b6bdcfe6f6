"""The header of a GGUF file: what its tensors are called, their quantisations, shapes and places. No weight is read.

The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from .header import Header, Tensor, bad, opened

ENDING = ".gguf"
VERSIONS = 2, 3
# The vocabularies of language models lie in it. The largest known are about 15 MB.
LARGEST_HEADER = 32 * 1024**2
MOST_ENTRIES = 100_000
LONGEST_TEXT = 4096
MOST_DIMENSIONS = 4
ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
# Bytes of a value of the metadata, by the number of its type.
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32, STRING, ARRAY = 4, 8, 9
# By the number of a tensor's type (ggml.h, `ggml_type`): its name, how many numbers make a block, and the bytes of one.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
# llama.cpp's names of a Qwen3's tensors, and those of the original files.
TEXT_MODELS = {"qwen3": "model.", "qwen3vl": "model.language_model."}
OUTSIDE = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Problem(Exception):
    """What is wrong with a file, as it follows its name in a sentence."""


def read_gguf(path: str | Path) -> Header:
    """Read and check the header of a GGUF file.

    Args:
        path: the file.
    Returns:
        `Header`: shapes as torch has them, GGUF's dimensions reversed; a Qwen3's tensors by their original names; of the
        metadata the texts of at most 4096 bytes.
    Raises:
        CheckpointError: the file cannot be opened (`Unreadable`), or breaks the format.
    """
    path = Path(path)
    with opened(path, "GGUF") as (file, size):
        try:
            return Header(path, *_parse(file, size), {})
        except Problem as problem:
            raise bad(path, str(problem)) from None


def _parse(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`(tensors, metadata)` of a file of `size` bytes."""
    left = LARGEST_HEADER

    def take(count: int, keep: bool = True) -> bytes:
        nonlocal left
        left -= count
        if left < 0:
            raise Problem(f"has a header of more than {LARGEST_HEADER} bytes, or is damaged")
        if not keep:
            file.seek(count, 1)
            return b""
        taken = file.read(count)
        if len(taken) < count:
            raise Problem("is truncated or not a GGUF file: it ends within its header; download it again")
        return taken

    def numbers(form: str) -> tuple:
        return struct.unpack("<" + form, take(struct.calcsize("<" + form)))

    def text(keep: bool = True) -> str:
        [length] = numbers("Q")
        keep = keep and length <= LONGEST_TEXT
        return take(length, keep).decode("utf-8", "replace")

    if take(4) != b"GGUF":
        raise Problem("is not a GGUF file, whatever its name says")
    version, tensors, values = numbers("IQQ")
    if version not in VERSIONS:
        raise Problem(f"is a GGUF file of version {version}, and KleinKit reads 2 and 3")
    if max(tensors, values) > MOST_ENTRIES:
        raise Problem(f"is damaged: its header claims {tensors} tensors and {values} values")
    metadata, alignment = {}, 32
    for _ in range(values):
        name, [kind] = text(), numbers("I")
        if kind == STRING:
            metadata[name] = text()
        elif (name, kind) == (ALIGNMENT, UINT32):
            [alignment] = numbers("I")
        elif kind == ARRAY:
            kind, count = numbers("IQ")
            if kind == STRING:
                for _ in range(count):
                    text(keep=False)
            else:
                take(count * _bytes_of(kind), keep=False)
        else:
            take(_bytes_of(kind), keep=False)
    entries = []
    for _ in range(tensors):
        name, [dimensions] = text(), numbers("I")
        if dimensions > MOST_DIMENSIONS:
            raise Problem(f"is damaged: {name[:80]!r} has {dimensions} dimensions")
        *shape, kind, offset = numbers(f"{dimensions}QIQ")
        entries.append((name, _tensor(name, kind, shape, offset)))
    if not 0 < alignment <= LARGEST_HEADER:
        raise Problem(f"is damaged: its tensors are aligned to {alignment} bytes")
    room = size - (file.tell() + -file.tell() % alignment)
    found, original = {}, _original_names(metadata.get(ARCHITECTURE, ""))
    for name, tensor in entries:
        if tensor.end > room:
            raise Problem(f"is truncated: {tensor.end - room} bytes of {name[:80]!r} are missing at its end; download it again")
        if original(name) in found:
            raise Problem(f"is damaged: it holds {name[:80]!r} a second time")
        found[original(name)] = tensor
    return found, metadata


def _bytes_of(kind: int) -> int:
    if kind not in BYTES:
        raise Problem(f"is damaged: its metadata have a value of the unknown type {kind}")
    return BYTES[kind]


def _tensor(name: str, kind: int, dimensions: Sequence[int], offset: int) -> Tensor:
    """`Tensor` of an entry: its first dimension is the one whose numbers lie side by side, in blocks."""
    if kind not in TYPES:
        raise Problem(f"holds {name[:80]!r} in the quantisation {kind} of GGUF, which is unknown here; update KleinKit")
    dtype, block, size = TYPES[kind]
    if any(count >= 2**63 for count in dimensions) or math.prod(dimensions[:1]) % block:
        raise Problem(f"is damaged: {name[:80]!r} of the shape {list(reversed(dimensions))} cannot be {dtype}")
    return Tensor(dtype, tuple(reversed(dimensions)), offset, offset + math.prod(dimensions) // block * size)


def _original_names(architecture: str) -> Callable[[str], str]:
    """What turns the name of a tensor in a GGUF file into the original one, where llama.cpp's names differ from it."""
    prefix = TEXT_MODELS.get(architecture)

    def original(name: str) -> str:
        place, _, rest = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", place)
        if layer and layer[2] in INSIDE:
            return f"{prefix}layers.{layer[1]}.{INSIDE[layer[2]]}.{rest}"
        return f"{prefix}{OUTSIDE[place]}.{rest}" if place in OUTSIDE else name

    return original if prefix else str
