"""What a file is, from its header alone."""

import io
import json
import struct

import pytest
import torch
from files import flux2_vae, klein, qwen3, write
from kleinkit.checkpoint import header
from kleinkit.checkpoint.families import FLUX2_KLEIN
from kleinkit.checkpoint.header import CheckpointError, read_header
from kleinkit.checkpoint.inspection import FLUX2_VAE, MODEL, QWEN3, QWEN3_VL, TEXT_ENCODER, VAE, inspect
from kleinkit.checkpoint.pairing import check_model

KLEIN = FLUX2_KLEIN.name
NINE = dict(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288)


@pytest.fixture
def file(tmp_path):
    return lambda tensors, name="file.safetensors", **kwargs: write(tmp_path / name, tensors, **kwargs)


def test_reads_only_the_header_of_18_gb(file, monkeypatch):
    path, read = file(klein(**NINE)), []
    assert path.stat().st_size > 18e9

    class Counted(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(header, "open", lambda path, mode: io.BufferedReader(Counted(path, mode)), raising=False)
    found = inspect(path)
    assert found.parts[MODEL].size == "9B"
    with open(path, "rb") as start:
        (length,) = struct.unpack("<Q", start.read(8))
    assert length <= sum(read) <= length + 8 + io.DEFAULT_BUFFER_SIZE


@pytest.mark.parametrize("shape, size, text_width", [({}, "4B", 7680), (NINE, "9B", 12288)])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_klein(file, shape, size, text_width, prefix):
    part = inspect(file(klein(**shape, prefix=prefix))).parts[MODEL]
    found = (part.architecture, part.size, part.text_width, part.prefix, part.weights)
    assert found == (KLEIN, size, text_width, prefix, "bf16")


def test_all_in_one(file):
    tensors = {
        **klein(prefix="model.diffusion_model."),
        **qwen3(prefix="text_encoders.qwen3_4b.transformer.model."),
        **flux2_vae(prefix="vae."),
    }
    found = inspect(file(tensors))
    parts = found.parts
    assert {role: (part.architecture, part.prefix) for role, part in parts.items()} == {
        MODEL: (KLEIN, "model.diffusion_model."),
        TEXT_ENCODER: (QWEN3, "text_encoders.qwen3_4b.transformer."),
        VAE: (FLUX2_VAE, "vae."),
    }
    # The file is the sum of its parts: nothing is counted twice.
    all_bytes = sum(tensor.end - tensor.begin for tensor in found.tensors.values())
    assert sum(part.bytes for part in parts.values()) == all_bytes


VISUAL = ("BF16", (1024, 1536))


@pytest.mark.parametrize(
    "tensors, hidden, layers, architecture",
    [
        (qwen3(), 2560, 36, QWEN3),
        (qwen3(hidden=4096, intermediate=12288), 4096, 36, QWEN3),
        (qwen3(layers=27), 2560, 27, QWEN3),
        (qwen3(prefix="model.language_model.") | {"model.visual.patch_embed.proj.weight": VISUAL}, 2560, 36, QWEN3_VL),
        (qwen3() | {"visual.patch_embed.proj.weight": VISUAL}, 2560, 36, QWEN3_VL),
    ],
)
def test_text_encoder(file, tensors, hidden, layers, architecture):
    part = inspect(file(tensors)).parts[TEXT_ENCODER]
    assert (part.width, part.layers, part.architecture) == (hidden, (layers,), architecture)


QUANTISED = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    "change, metadata, weights",
    [
        ({}, {}, "bf16"),
        (
            {f"{QUANTISED}.weight": ("F8_E4M3", (9216, 3072)), f"{QUANTISED}.weight_scale": ("F32", ())},
            {"_quantization_metadata": json.dumps({"layers": {QUANTISED: {"format": "float8_e4m3fn"}}})},
            "float8_e4m3fn",
        ),
        (
            {
                f"{QUANTISED}.weight": ("U8", (9216, 1536)),
                f"{QUANTISED}.weight_scale": ("F8_E4M3", (9216, 192)),
                f"{QUANTISED}.weight_scale_2": ("F32", ()),
                f"{QUANTISED}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8),
            },
            {},
            "nvfp4",
        ),
    ],
)
def test_weights(file, change, metadata, weights):
    assert inspect(file(klein() | change, metadata=metadata)).parts[MODEL].weights == weights


def marked(form):
    text = list(json.dumps({"format": form}).encode())
    return {f"{QUANTISED}.comfy_quant": torch.tensor(text, dtype=torch.uint8)}


W4A8 = {
    "txt_in.weight": ("I8", (3072, 3840)),
    "txt_in.weight_codebook": ("F32", (16,)),
    "txt_in.weight_s_rel": ("F8_E4M3", (3072, 480)),
    "txt_in.weight_s_channel": ("F32", (3072,)),
}


def test_format_newer_than_this_comfyui(file):
    tensors = klein() | {key.replace("txt_in", QUANTISED): entry for key, entry in W4A8.items()} | W4A8
    found = inspect(file(tensors | marked("asym_w4a8_int8"))).parts[MODEL]
    assert (found.weights, found.text_width) == ("asym_w4a8_int8", 7680)
    # A format that is in nobody's table is called by its own name, and its width is not guessed.
    mark = {"txt_in.comfy_quant": next(iter(marked("w2_new").values()))}
    found = inspect(file(tensors | mark | marked("w2_new"))).parts[MODEL]
    assert (found.weights, found.text_width) == ("the unknown format w2_new", 0)
    # ComfyUI's table comes first.
    found = inspect(file(tensors | mark | marked("w2_new")), values={"w2_new": 4}.get).parts[MODEL]
    assert (found.weights, found.text_width) == ("w2_new", 4 * 3840)


def test_integers_of_no_known_format(file):
    tensors = {key: ("I8", entry[1]) if key.endswith("weight") else entry for key, entry in klein().items()}
    beside = {key.replace("weight", "new_scale"): ("F32", (1,)) for key in tensors if key.endswith("weight")}
    found = inspect(file(tensors | beside)).parts[MODEL]
    assert (found.weights, found.text_width) == ("an unknown format of int8", 0)


def stored(weight, **beside):
    """A Klein whose linear layers are stored in one way: `(dtype, columns of a weight → columns, or a shape)` each."""
    tensors = klein()
    for key, (_, (rows, *columns)) in klein().items():
        if columns:
            layer = key.removesuffix("weight")
            tensors[key] = (weight[0], (rows, weight[1](*columns)))
            tensors |= {layer + name: (dtype, shape(rows, *columns)) for name, (dtype, shape) in beside.items()}
    return tensors


@pytest.mark.parametrize(
    "tensors",
    [
        stored(("U8", lambda columns: columns), weight_scale=("F32", lambda rows, columns: (rows, 1))),
        stored(("U8", lambda columns: columns // 2), weight_scale=("F8_E8M0", lambda rows, columns: (rows, columns // 32))),
        stored(("I8", lambda columns: columns // 2), weight_scale=("F32", lambda rows, columns: (rows, columns // 64))),
    ],
    ids=("bytes with a scale a row", "four bits with scales of eight", "four bits with a scale a group"),
)
def test_integers_beside_scales_of_no_known_format(file, tensors):
    found = inspect(file(tensors))
    assert found.parts[MODEL].weights.startswith("an unknown format of") and found.parts[MODEL].text_width == 0
    with pytest.raises(CheckpointError, match=r"a quantisation that is unknown here \(an unknown format of"):
        check_model(found)


def test_the_text_input_alone_in_an_unknown_format(file):
    layers = {"img_in": {"format": "float8_e4m3fn"}, "txt_in": {"format": "w2_new"}}
    found = inspect(file(klein(), metadata={"_quantization_metadata": json.dumps({"layers": layers})}))
    with pytest.raises(CheckpointError, match=r"unknown here \(the unknown format w2_new\)"):
        check_model(found)


@pytest.mark.parametrize("text", (b"{", b'{"format": 5}', b"{}"))
def test_a_mark_that_cannot_be_read_is_no_format(file, text):
    mark = {"txt_in.weight": ("I8", (3072, 3840)), "txt_in.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}
    part = inspect(file(klein() | mark)).parts[MODEL]
    assert (part.weights, part.text_width) == ("the unknown format of a damaged mark", 0)


@pytest.mark.parametrize(
    "layer, stored_as",
    [
        # Nunchaku's and bitsandbytes' ways.
        (QUANTISED, {".qweight": ("I8", (9216, 1536)), ".wscales": ("BF16", (48, 9216))}),
        ("double_stream_modulation_img.lin", {".qweight": ("I8", (18432, 1536)), ".wzeros": ("BF16", (48, 18432))}),
        ("txt_in", {".weight": ("U8", (11796480, 1)), ".weight.absmax": ("U8", (9216,)), ".weight.quant_map": ("F32", (16,))}),
    ],
)
def test_what_another_engine_quantised_is_not_called_damaged(file, layer, stored_as):
    tensors = {key: entry for key, entry in klein().items() if key != f"{layer}.weight"}
    with pytest.raises(CheckpointError, match="is quantised in a way that ComfyUI does not load") as error:
        check_model(inspect(file(tensors | {layer + name: entry for name, entry in stored_as.items()})))
    assert layer in str(error.value) and "take a file that is made for ComfyUI" in str(error.value)


def test_old_scaled_fp8(file):
    tensors = klein(dtype="F8_E4M3") | {"scaled_fp8": ("F8_E4M3", (2,)), f"{QUANTISED}.scale_weight": ("F32", ())}
    assert inspect(file(tensors)).parts[MODEL].weights == "fp8 scaled"


def test_packed_text_width(file):
    packed = klein() | {"txt_in.weight": ("U8", (3072, 3840))}
    assert inspect(file(packed)).parts[MODEL].text_width == 7680
    # All that comfy/quant_ops.py has beside a weight of nvfp4.
    beside = {
        "txt_in.weight_scale": ("F8_E4M3", (3072, 480)),
        "txt_in.weight_scale_2": ("F32", ()),
        "txt_in.input_scale": ("F32", ()),
        "txt_in.pre_quant_scale": ("BF16", (7680,)),
    }
    assert inspect(file(packed | beside)).parts[MODEL].text_width == 7680


@pytest.mark.parametrize(
    "tensors, role, words",
    [
        ({"double_blocks.0.img_mod.lin.weight": ("BF16", (18432, 3072))}, MODEL, "FLUX.1"),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": ("F16", (320, 4, 3, 3)),
                "model.diffusion_model.label_emb.0.0.weight": ("F16", (1280, 2816)),
            },
            MODEL,
            "SDXL",
        ),
        ({"transformer_blocks.0.img_mod.1.weight": ("BF16", (18432, 3072))}, MODEL, "Qwen-Image"),
        (klein() | {"guidance_in.in_layer.weight": ("BF16", (3072, 256))}, MODEL, "FLUX.2 [dev]"),
        (qwen3() | {"model.layers.0.self_attn.k_proj.bias": ("BF16", (512,))}, TEXT_ENCODER, "Qwen2.5"),
        # Gemma 3 and 4 have a 4B that is as wide as Qwen3's, with as many layers or more.
        *[
            (qwen3(prefix=prefix) | {f"{prefix}layers.0.{name}": ("BF16", (2560,))}, TEXT_ENCODER, other)
            for prefix in ("model.", "model.language_model.")
            for name, other in (("post_feedforward_layernorm.weight", "Gemma"), ("linear_attn.A_log", "Qwen3.5"))
        ],
        ({"encoder.block.0.layer.0.SelfAttention.k.weight": ("F16", (4096, 4096))}, TEXT_ENCODER, "T5"),
        (flux2_vae(16), VAE, "FLUX.1's"),
        (flux2_vae(4), VAE, "SDXL's"),
        ({"x.alpha": ("F16", ()), "x.lora_A.weight": ("F16", (4, 4))}, MODEL, "a LoRA"),
        *[
            ({f"x.{name}": ("F16", (4, 4))}, MODEL, "a LoRA")
            for name in ("lora.down.weight", "lokr_w1", "hada_w1_a", "oft_blocks", "processor.to_q_lora.up.weight")
        ],
        (qwen3(), MODEL, "Qwen3"),
        (klein(**NINE), TEXT_ENCODER, "FLUX.2 [klein] 9B"),
        ({"x": ("F16", (4, 4))}, MODEL, "nothing that KleinKit knows"),
    ],
)
def test_says_what_else_it_is(file, tensors, role, words):
    assert words in inspect(file(tensors)).what(role)


def test_shards(tmp_path):
    tensors = klein()
    first = dict(list(tensors.items())[:40])
    second = {key: entry for key, entry in tensors.items() if key not in first}
    files = [write(tmp_path / "a.safetensors", first), write(tmp_path / "b.safetensors", second)]
    assert inspect(*files).parts[MODEL].size == "4B"
    with pytest.raises(CheckpointError, match=r"b\.safetensors holds .* a second time"):
        inspect(files[0], write(tmp_path / "b.safetensors", tensors))


def test_damaged_quantisation_metadata(file):
    with pytest.raises(CheckpointError, match=r"file\.safetensors is damaged: its quantisation metadata"):
        inspect(file(klein(), metadata={"_quantization_metadata": "{"}))


def test_header_is_what_safetensors_reads(tmp_path, models):
    from safetensors import safe_open

    found = read_header(models["base"])
    with safe_open(models["base"], "np") as file:
        assert found.metadata == file.metadata()
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
    assert {key: tensor.shape for key, tensor in found.tensors.items()} == shapes
