"""The GGUF header reader against the gguf package's own, and against files that lie."""

import struct
import tracemalloc

import gguf
import pytest
import torch
from files import klein, qwen3
from gguf_files import llama_name, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kleinkit.checkpoint.families import FLUX2_KLEIN
from kleinkit.checkpoint.gguf import LARGEST_HEADER, TYPES, read_gguf
from kleinkit.checkpoint.header import CheckpointError
from kleinkit.checkpoint.inspection import MODEL, TEXT_ENCODER, inspect
from kleinkit.checkpoint.pairing import check_model
from kleinkit.checkpoint.variant import decide


def test_types_are_those_of_the_format():
    assert {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == TYPES


def text_file(path, form="Q8_0", architecture="qwen3", **shape):
    tiny = dict(hidden=64, layers=28, intermediate=64, heads=1, kv_heads=1, vocabulary=32) | shape
    tensors = {llama_name(name): torch.ones(size) for name, (_, size) in qwen3(**tiny).items()}
    return write_gguf(path, tensors, form, architecture)


def tiny_klein(prefix=""):
    shapes = klein(hidden=128, double_blocks=1, single_blocks=2, text_width=192, prefix=prefix)
    return {name: torch.ones(size) for name, (_, size) in shapes.items()}


@pytest.mark.parametrize("form", ["BF16", "Q8_0", "Q4_0", "Q5_1", "F16"])
def test_as_the_formats_own_reader(tmp_path, form):
    path = write_gguf(tmp_path / "klein.gguf", tiny_klein(), form, note="x" * 5000)
    theirs = gguf.GGUFReader(path)
    header = read_gguf(path)
    begin = min(tensor.data_offset for tensor in theirs.tensors)
    assert [(name, t.dtype, t.shape, t.begin, t.end - t.begin) for name, t in header.tensors.items()] == [
        (t.name, t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data_offset - begin, t.n_bytes)
        for t in theirs.tensors
    ]
    assert header.metadata["general.architecture"] == "flux"
    # A text that nobody reads is not kept.
    assert header.metadata["note"] == ""


def test_what_lies_between_is_passed_over(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "qwen3")
    writer.add_custom_alignment(128)
    writer.add_array("tokens", ["a", "", "ñ" * 500] * 1000)
    writer.add_array("scores", [0.5, 1.5] * 1000)
    whole = [f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)]
    for kind in (*whole, "float32", "float64", "bool"):
        getattr(writer, f"add_{kind}")(f"value.{kind}", 1)
    tensor = torch.ones(3, 5).numpy()
    writer.add_tensor("a", tensor)
    writer.add_tensor("b", tensor)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    places = {name: (tensor.begin, tensor.end) for name, tensor in read_gguf(tmp_path / "odd.gguf").tensors.items()}
    assert places == {"a": (0, 60), "b": (128, 188)}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_klein_is_known_by_its_tensors(tmp_path, prefix):
    checkpoint = inspect(write_gguf(tmp_path / "any.gguf", tiny_klein(prefix), "Q4_0", architecture=""))
    part = checkpoint.parts[MODEL]
    assert (check_model(checkpoint).name, part.layers, part.width) == ("FLUX.2 [klein]", (1, 2), 128)
    assert (part.text_width, part.weights, part.prefix) == (192, "Q4_0", prefix)


def test_diffusers_names_are_refused(tmp_path):
    signs = {FLUX2_KLEIN.outside[layer][1] + ".weight": torch.ones(128, 128) for layer in FLUX2_KLEIN.signs}
    with pytest.raises(CheckpointError, match=r"d\.gguf has diffusers' names of tensors"):
        check_model(inspect(write_gguf(tmp_path / "d.gguf", signs)))


def test_text_encoder_has_its_original_names(tmp_path):
    original = qwen3(hidden=64, layers=28, intermediate=64, heads=1, kv_heads=1, vocabulary=32)
    checkpoint = inspect(text_file(tmp_path / "q.gguf"))
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        name: shape for name, (_, shape) in original.items()
    }
    assert checkpoint.what(TEXT_ENCODER) == "Qwen3 of width 64 and 28 layers"
    assert (
        inspect(text_file(tmp_path / "vl.gguf", architecture="qwen3vl")).what(TEXT_ENCODER).startswith("Qwen3-VL of width 64")
    )


def test_another_models_text_encoder_is_named(tmp_path):
    # Gemma 3's 4B is as wide as Qwen3's, and has the same norms.
    other = inspect(text_file(tmp_path / "g.gguf", architecture="gemma3"))
    assert not other.parts and other.what(TEXT_ENCODER) == "a GGUF file of 'gemma3'"


@pytest.mark.parametrize(
    "name, distilled, reason",
    [
        ("flux-2-klein-4b-Q4_K_M.gguf", True, "official"),
        ("sub/flux-2-klein-base-9b-UD-IQ2_XXS.gguf", False, "official"),
        ("FLUX.2-klein-9B-BF16.gguf", True, "official"),
        ("flux-2-klein-4b.gguf", True, "official"),
        ("my-klein-base_q8_0.gguf", False, "says base"),
        ("myklein-q5_k.gguf", True, "a guess"),
    ],
)
def test_variant_by_name(name, distilled, reason):
    found = decide(name, {})
    assert found.distilled is distilled and reason in found.reason


def text(value):
    return struct.pack("<Q", len(value)) + value


def packed(tensors=b"", values=b"", counts=(0, 0), version=3, data=b""):
    start = b"GGUF" + struct.pack("<IQQ", version, *counts) + values + tensors
    return start + bytes(-len(start) % 32) + data


def entry(name=b"a", shape=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def value(kind, content=b"", name=b"x"):
    return text(name) + struct.pack("<I", kind) + content


BAD = {
    "empty": (b"", "ends within its header"),
    "short": (b"GGUF\x03", "ends within its header"),
    "another format": (struct.pack("<Q", 2) + b"{}" + bytes(64), "is not a GGUF file"),
    "version 1": (packed(version=1), "of version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "of version 50331648"),
    "counts without end": (packed(counts=(2**63, 0)), "claims 9223372036854775808 tensors"),
    "values without end": (packed(counts=(0, 2**64 - 1)), "18446744073709551615 values"),
    "tensors that are not there": (packed(counts=(5, 0)), "ends within its header"),
    "a text without end": (packed(values=struct.pack("<Q", 2**63), counts=(0, 1)), f"more than {LARGEST_HEADER} bytes"),
    "an unknown value": (packed(values=value(13), counts=(0, 1)), "unknown type 13"),
    "nested arrays": (packed(values=value(9, struct.pack("<IQ", 9, 2)), counts=(0, 1)), "unknown type 9"),
    "an array without end": (packed(values=value(9, struct.pack("<IQ", 12, 2**62)), counts=(0, 1)), "more than"),
    "texts without end": (packed(values=value(9, struct.pack("<IQ", 8, 2**62)), counts=(0, 1)), "ends within its header"),
    "aligned to nothing": (
        packed(values=value(4, bytes(4), b"general.alignment"), counts=(0, 1)),
        "its tensors are aligned to 0 bytes",
    ),
    "dimensions": (packed(entry(shape=(1,) * 5), counts=(1, 0)), "'a' has 5 dimensions"),
    "dimensions without end": (packed(text(b"a") + b"\xff" * 40, counts=(1, 0)), "'a' has 4294967295 dimensions"),
    "unknown quantisation": (packed(entry(kind=99), counts=(1, 0)), "'a' in the quantisation 99"),
    "half a block": (packed(entry(kind=8, shape=(33,)), counts=(1, 0)), "'a' of the shape [33] cannot be Q8_0"),
    "a size beyond numbers": (packed(entry(shape=(2**63,)), counts=(1, 0)), "cannot be F32"),
    "beyond the file": (packed(entry(), counts=(1, 0), data=bytes(127)), "truncated: 1 bytes of 'a' are missing"),
    "far beyond the file": (packed(entry(offset=2**64 - 32), counts=(1, 0), data=bytes(128)), "truncated"),
    "twice": (packed(entry() * 2, counts=(2, 0), data=bytes(128)), "'a' a second time"),
}


@pytest.mark.parametrize("content, words", BAD.values(), ids=BAD)
def test_bad_file(tmp_path, content, words):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_gguf(path)
    assert words in str(error.value) and "bad.gguf" in str(error.value) and "\n" not in str(error.value)


def test_header_of_the_largest_size(tmp_path):
    path = tmp_path / "big.gguf"

    def header(more):
        """One row of bytes, which ends so many bytes behind the limit."""
        around = len(b"GGUF" + bytes(20) + value(9, bytes(12)))
        row = value(9, struct.pack("<IQ", 0, LARGEST_HEADER + more - around))
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + row)
        return read_gguf(path)

    assert header(0).tensors == {}
    with pytest.raises(CheckpointError, match=f"a header of more than {LARGEST_HEADER} bytes"):
        header(1)


def test_two_names_of_one_tensor(tmp_path):
    original = entry(b"model.layers.0.input_layernorm.weight") + entry(b"blk.0.attn_norm.weight")
    named = value(8, text(b"qwen3"), b"general.architecture")
    path = tmp_path / "twice.gguf"
    path.write_bytes(packed(original, named, (2, 1), data=bytes(128)))
    with pytest.raises(CheckpointError, match="a second time"):
        read_gguf(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.gguf does not exist"):
        read_gguf(tmp_path / "gone.gguf")
    with pytest.raises(CheckpointError, match="is a folder, not a GGUF file"):
        read_gguf(tmp_path)


names = st.sampled_from(
    [*(name.encode() for name in klein(double_blocks=1, single_blocks=1)), b"blk.0.attn_q_norm.weight", b"\xff"]
)
numbers = st.integers(0, 8) | st.integers(0, 2**64 - 1)
entries = st.builds(entry, names, st.lists(numbers, max_size=5), st.integers(0, 45), numbers)
values = st.builds(value, st.integers(0, 14), st.binary(max_size=30), names) | st.builds(
    lambda name: value(8, text(name), b"general.architecture"), st.sampled_from([b"qwen3", b"flux", b"\xff"])
)
counts = st.integers(0, 4) | st.integers(0, 2**64 - 1)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=100)
    | st.builds(lambda tail: b"GGUF\x03\x00\x00\x00" + tail, st.binary(max_size=100))
    | st.builds(
        lambda tensors, kept, counts, data: packed(
            b"".join(tensors), b"".join(kept), counts or (len(tensors), len(kept)), data=data
        ),
        st.lists(entries, max_size=4),
        st.lists(values, max_size=3),
        st.none() | st.tuples(counts, counts),
        st.binary(max_size=64),
    )
)
def test_fuzz(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        inspect(path)
    except CheckpointError as error:
        assert "fuzz.gguf" in str(error)
    finally:
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()
