"""The header reader: what breaks the format is refused in a sentence that names the file, and nothing else escapes."""

import json
import os
import pickle
import struct
import tracemalloc

import pytest
from files import klein
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kleinkit.checkpoint.header import LARGEST_HEADER, CheckpointError, read_header
from kleinkit.checkpoint.inspection import inspect

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


BAD = {
    "zero bytes": (b"", "is empty"),
    "seven bytes": (b"1234567", "too short"),
    "empty header": (struct.pack("<Q", 0), "its header is empty"),
    "length beyond the file": (struct.pack("<Q", 1000) + b"{}", "truncated or not a safetensors file"),
    "length one beyond the file": (struct.pack("<Q", 3) + b"{}", "truncated or not a safetensors file"),
    "length of 2^64 - 1": (b"\xff" * 8 + b"{}", "truncated or not a safetensors file"),
    "pickle": (pickle.dumps({"a": [1.0] * 100}, protocol=2), "a pickle"),
    "zip": (b"PK\x03\x04" + b"\x01" * 100, "a zip archive"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + b"\x00" * 100, "a GGUF file"),
    "not JSON": (packed(b"not json"), "not JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not JSON"),
    "nested too deep": (packed(b"[" * 100_000), "not JSON"),
    "a list": (packed([1, 2]), "not a JSON object"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "metadata"),
    "metadata a list": (packed({"__metadata__": []}), "metadata"),
    "tensor a number": (packed({"a": 1}), "'a' is not a tensor"),
    "unknown dtype": (packed({"a": {**TENSOR, "dtype": "F7"}}, bytes(8)), "'a' is not a tensor"),
    "shape of a boolean": (packed({"a": {**TENSOR, "shape": [True, 2]}}, bytes(8)), "'a' is not a tensor"),
    "negative shape": (packed({"a": {**TENSOR, "shape": [-2]}}, bytes(8)), "'a' is not a tensor"),
    "shape does not fill its bytes": (packed({"a": {**TENSOR, "shape": [3]}}, bytes(8)), "'a' is not a tensor"),
    "offsets backwards": (packed({"a": {**TENSOR, "data_offsets": [8, 0]}}, bytes(8)), "'a' is not a tensor"),
    "three offsets": (packed({"a": {**TENSOR, "data_offsets": [0, 8, 8]}}, bytes(8)), "'a' is not a tensor"),
    "overlap": (packed({"a": TENSOR, "b": TENSOR}, bytes(8)), "overlap"),
    "gap": (packed({"a": {**TENSOR, "data_offsets": [8, 16]}}, bytes(16)), "overlap another tensor's, or leave a gap"),
    "tensor outside the file": (packed({"a": TENSOR}, bytes(7)), "truncated: 1 bytes are missing"),
    "bytes left over": (packed({"a": TENSOR}, bytes(9)), "belong to no tensor"),
}


@pytest.mark.parametrize("content, words", BAD.values(), ids=BAD)
def test_bad_file(tmp_path, content, words):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert words in str(error.value)
    assert "bad.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        read_header(tmp_path / "gone.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.safetensors is a folder"):
        read_header(tmp_path / "folder.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path / "pipe.safetensors")


def test_header_of_the_smallest_and_of_the_largest_size(tmp_path):
    path = tmp_path / "big.safetensors"
    path.write_bytes(packed(b"{}"))
    assert read_header(path).tensors == {}
    path.write_bytes(packed(b'{"__metadata__": {"a": ' + b'"' + b"x" * (LARGEST_HEADER - 27) + b'"}}'))
    assert len(read_header(path).metadata["a"]) == LARGEST_HEADER - 27
    for worst in (b"[" + b"0," * (LARGEST_HEADER // 2 - 1) + b"0]", b"{" * LARGEST_HEADER, b"9" * LARGEST_HEADER):
        path.write_bytes(packed(worst))
        with pytest.raises(CheckpointError):
            read_header(path)
    path.write_bytes(packed(b"{}" + b" " * LARGEST_HEADER))
    with pytest.raises(CheckpointError, match="KleinKit reads at most"):
        read_header(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=10,
)
names = st.text(max_size=20) | st.sampled_from(
    [
        *klein(double_blocks=1, single_blocks=1),
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "decoder.conv_in.weight",
        "bn.running_mean",
        "__metadata__",
        "_quantization_metadata",
    ]
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4"]) | json_values,
        "shape": st.lists(st.integers(-1, 2**70), max_size=5) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@st.composite
def whole_files(draw):
    """A valid file, so that the fuzz also reaches what comes after the reader."""
    header, end = {}, 0
    for name in draw(st.lists(names, unique=True, max_size=12)):
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header.pop("__metadata__", None)
    metadata = draw(st.dictionaries(names, st.text(max_size=30), max_size=2))
    return packed({"__metadata__": metadata, **header}, bytes(end))


@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(packed, st.binary(max_size=100), st.binary(max_size=20)),
        st.builds(packed, json_values, st.binary(max_size=20)),
        st.builds(packed, st.dictionaries(names, entries | json_values, max_size=6), st.binary(max_size=64)),
        whole_files(),
    )
)
def test_fuzz(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        inspect(path)
    except CheckpointError as error:
        assert "fuzz.safetensors" in str(error)
    finally:
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()
