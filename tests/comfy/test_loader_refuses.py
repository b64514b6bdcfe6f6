"""What KleinKitLoader refuses: one sentence that names the file, before any weight is read."""

import contextlib
import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
from files import flux2_vae, klein, qwen3, write
from loader import load, record_reads, use_models

NINE = dict(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288)


@pytest.fixture
def installed(comfy, models, monkeypatch, tmp_path):
    """An installation of a Klein 4B, both text encoders and three VAEs, all of them holes; its folder."""
    base = tmp_path / "models"
    use_models(monkeypatch, base)
    write(base / "diffusion_models/flux-2-klein-4b.safetensors", klein())
    write(base / "diffusion_models/flux-2-klein-9b.safetensors", klein(**NINE))
    write(base / "text_encoders/qwen_3_4b.safetensors", qwen3())
    write(base / "text_encoders/qwen_3_8b.safetensors", qwen3(hidden=4096, intermediate=12288))
    for name, channels in (("flux2-vae", 32), ("ae", 16), ("sdxl_vae", 4)):
        write(base / f"vae/{name}.safetensors", flux2_vae(channels))
    return base


@pytest.fixture
def refused(installed, run_node, monkeypatch):
    """`refused(…)`: the sentence with which the node refuses these inputs, having read no tensor and loaded nothing."""

    def refused(diffusion_model="flux-2-klein-4b.safetensors", **inputs):
        from comfy import model_management

        reads, loaded = record_reads(monkeypatch), list(model_management.current_loaded_models)
        with pytest.raises(ValueError) as error:
            load(run_node, diffusion_model, **inputs)
        assert not reads
        assert model_management.current_loaded_models == loaded
        sentence = str(error.value)
        assert sentence.startswith("Klein Loader: ") and sentence.endswith(".") and "\n" not in sentence
        assert sentence.count(". ") <= 1
        return sentence

    return refused


@pytest.mark.parametrize(
    "inputs, words",
    [
        (
            dict(text_encoder="qwen_3_8b.safetensors"),
            [
                "Expected `text_encoder` to be a Qwen3 of width 2560",
                "flux-2-klein-4b.safetensors (FLUX.2 [klein] 4B",
                "qwen_3_8b.safetensors is Qwen3 of width 4096",
                "these fit: qwen_3_4b.safetensors",
            ],
        ),
        (
            dict(diffusion_model="flux-2-klein-9b.safetensors", text_encoder="qwen_3_4b.safetensors"),
            [
                "width 4096",
                "FLUX.2 [klein] 9B",
                "qwen_3_4b.safetensors is Qwen3 of width 2560",
                "these fit: qwen_3_8b.safetensors",
            ],
        ),
        (
            dict(vae="ae.safetensors"),
            ["Expected `vae` to be FLUX.2's VAE", "ae.safetensors is FLUX.1's", "these fit: flux2-vae.safetensors"],
        ),
        (dict(vae="sdxl_vae.safetensors"), ["sdxl_vae.safetensors is Stable Diffusion 1's or SDXL's VAE"]),
    ],
)
def test_pair_that_does_not_fit(refused, inputs, words):
    sentence = refused(**inputs)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    "folder, name, official",
    [
        ("text_encoders", "text_encoder", "qwen_3_4b.safetensors"),
        ("vae", "vae", "flux2-vae.safetensors"),
    ],
)
def test_nothing_installed_that_fits(refused, installed, folder, name, official):
    (installed / folder / official).unlink()
    sentence = refused()
    assert f"Expected `{name}` to be" in sentence
    assert "none is installed" in sentence
    assert f"put {official} into models/{folder}" in sentence


def test_damaged_file_is_named_when_none_fits(refused, installed):
    (installed / "text_encoders/qwen_3_4b.safetensors").write_bytes(b"")
    assert "none is installed (qwen_3_4b.safetensors is empty" in refused()


def test_reason_of_the_file_that_would_fit_comes_first(refused, installed):
    (installed / "text_encoders/a_t5xxl.safetensors").write_bytes(b"")
    for name in ("b_qwen_3_8b", "b_qwen_3_8b_fp4mixed"):
        (installed / f"text_encoders/{name}.safetensors").write_bytes(b"1234567")
    harmed = installed / "text_encoders/qwen_3_4b.safetensors"
    os.truncate(harmed, 100)
    assert "none is installed (qwen_3_4b.safetensors is truncated" in refused()
    # By its width the next one would fit, whatever it is called.
    harmed.unlink()
    write(installed / "text_encoders/z.safetensors", qwen3(layers=20))
    assert "none is installed (z.safetensors has 20 layers" in refused()
    # A header that cannot be read leaves only the name, and that need not say what the file was.
    os.truncate(installed / "text_encoders/z.safetensors", 10**6)
    for name in ("b_qwen_3_8b", "b_qwen_3_8b_fp4mixed"):
        (installed / f"text_encoders/{name}.safetensors").unlink()
    assert "; z.safetensors is truncated" in refused()
    # Each reason is a part of the sentence, and ends none.
    assert ".;" not in refused() and ".)" not in refused()


def test_encoder_and_vae_that_do_not_fit_are_named_together(refused):
    sentence = refused(text_encoder="qwen_3_8b.safetensors", vae="ae.safetensors")
    assert "qwen_3_8b.safetensors is Qwen3 of width 4096" in sentence and "ae.safetensors is FLUX.1's" in sentence


def test_everything_missing_is_named_in_one_answer(comfy, installed):
    validate = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"].validate_inputs
    for file in (*installed.glob("text_encoders/*"), *installed.glob("vae/*")):
        file.unlink()
    answer = validate(diffusion_model="flux2Klein_9bBase.safetensors")
    for words in (
        "'flux2Klein_9bBase.safetensors' is not a safetensors file in models/diffusion_models",
        "put qwen_3_8b.safetensors into models/text_encoders",
        "put flux2-vae.safetensors into models/vae",
    ):
        assert answer.count(words) == 1
    assert validate(diffusion_model="flux-2-klein-4b.safetensors") is True


def test_text_input_in_an_unknown_quantisation(refused, installed):
    tensors = klein() | {"txt_in.weight": ("I8", (3072, 3840)), "txt_in.new_scale": ("F32", (3072, 1))}
    write(installed / "diffusion_models/new.safetensors", tensors)
    assert "new.safetensors cannot be loaded by this ComfyUI" in refused("new.safetensors")


OTHERS = {
    "flux1": ({"double_blocks.0.img_mod.lin.weight": ("BF16", (18432, 3072))}, "FLUX.1"),
    "sdxl": ({"model.diffusion_model.label_emb.0.0.weight": ("F16", (1280, 2816))}, "SDXL"),
    "dev": (klein() | {"guidance_in.in_layer.weight": ("BF16", (3072, 256))}, "FLUX.2 [dev]"),
    "qwen_3_4b": (qwen3(), "Qwen3 of width 2560"),
    "flux2-vae": (flux2_vae(), "FLUX.2's VAE"),
    "lora": ({"diffusion_model.img_in.lora_A.weight": ("F32", (8, 128))}, "a LoRA"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_not_a_klein(refused, installed, name):
    tensors, what = OTHERS[name]
    write(installed / f"diffusion_models/{name}.safetensors", tensors)
    sentence = refused(f"{name}.safetensors")
    assert f"Expected `diffusion_model` to be a FLUX.2 [klein], but {name}.safetensors is {what}" in sentence


@pytest.mark.parametrize("role, folder", [("text_encoder", "text_encoders"), ("vae", "vae")])
def test_klein_in_another_input(refused, installed, role, folder):
    write(installed / folder / "klein.safetensors", klein())
    sentence = refused(**{role: "klein.safetensors"})
    assert f"Expected `{role}` to be" in sentence and "klein.safetensors is FLUX.2 [klein] 4B" in sentence


def two_tensors(offsets):
    header = b"".join(
        [
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ',
            b'"b": {"dtype": "F32", "shape": [2], "data_offsets": ',
            offsets,
            b"}}",
        ]
    )
    return struct.pack("<Q", len(header)) + header


BAD = {
    "truncated": (lambda whole: whole[:-1], "is truncated"),
    "length": (lambda whole: struct.pack("<Q", 2**40) + whole[8:], "its header claims 1099511627776 bytes"),
    "json": (lambda whole: whole[:8] + b"x" + whole[9:], "its header is not JSON"),
    "overlap": (lambda _: two_tensors(b"[4, 12]") + bytes(12), "overlap"),
    "outside": (lambda _: two_tensors(b"[8, 16]") + bytes(8), "truncated"),
    "pickle": (lambda _: pickle.dumps(list(range(1000)), protocol=4), "a pickle"),
    "empty": (lambda _: b"", "is empty"),
    "room for a download": (lambda whole: bytes(len(whole)), "its header is empty; download it again"),
}


@pytest.mark.parametrize(
    "role, folder, small",
    [
        ("diffusion_model", "diffusion_models", klein(hidden=128, double_blocks=1, single_blocks=1)),
        ("text_encoder", "text_encoders", {"model.layers.0.input_layernorm.weight": ("F32", (64,))}),
        ("vae", "vae", {"decoder.conv_in.weight": ("F32", (8, 32, 3, 3))}),
    ],
)
@pytest.mark.parametrize("damage", BAD)
def test_bad_file(refused, installed, role, folder, small, damage):
    harm, words = BAD[damage]
    file = write(installed / folder / "bad.safetensors", small)
    file.write_bytes(harm(file.read_bytes()))
    sentence = refused(**{role: "bad.safetensors"})
    assert "bad.safetensors" in sentence and words in sentence


@pytest.mark.parametrize("role, folder", [("diffusion_model", "diffusion_models"), ("vae", "vae")])
def test_folder_in_place_of_a_file(refused, installed, role, folder):
    (installed / folder / "folder.safetensors").mkdir()
    sentence = refused(**{role: "folder.safetensors"})
    assert f"'folder.safetensors' is not a safetensors file in models/{folder}" in sentence


@pytest.fixture
def open_to_all(monkeypatch):
    """A folder of models that any user may look into, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        use_models(monkeypatch, Path(base))
        yield Path(base)


@contextlib.contextmanager
def unprivileged():
    """For root, who may read everything: be somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_permission_denied(refused, open_to_all):
    write(open_to_all / "diffusion_models/mine.safetensors", klein()).chmod(0)
    with unprivileged():
        sentence = refused("mine.safetensors")
    assert "mine.safetensors cannot be opened: permission denied" in sentence


def test_a_part_of_a_folder_that_is_closed(refused, open_to_all):
    folder = open_to_all / "diffusers/klein"
    write(folder / "transformer/diffusion_pytorch_model.safetensors", klein())
    (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    (folder / "transformer").chmod(0)
    with unprivileged():
        sentence = refused("klein/model_index.json")
    (folder / "transformer").chmod(0o755)
    assert "diffusion_pytorch_model.safetensors cannot be opened: permission denied" in sentence


@pytest.mark.parametrize("name", ["../elsewhere/secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors"])
def test_path_out_of_the_models_folders(refused, installed, name):
    write(installed.parent / "elsewhere/secret.safetensors", klein())
    assert "is not a safetensors file in models/diffusion_models" in refused(name)


def test_link_to_nothing(refused, installed):
    os.symlink(installed / "gone.safetensors", installed / "vae/link.safetensors")
    assert "link.safetensors in models/vae is not a file, or a link to none" in refused(vae="link.safetensors")


@pytest.fixture
def folder(installed):
    """A diffusers folder of holes, its text encoder in two shards."""
    folder, tensors = installed / "diffusers/klein", list(qwen3().items())
    shards = {f"model-0000{i + 1}-of-00002.safetensors": dict(tensors[i * 200 :][:200]) for i in (0, 1)}
    for shard, entries in shards.items():
        write(folder / "text_encoder" / shard, entries)
    index = {"weight_map": {key: shard for shard, entries in shards.items() for key in entries}}
    (folder / "text_encoder/model.safetensors.index.json").write_text(json.dumps(index))
    write(folder / "transformer/diffusion_pytorch_model.safetensors", klein())
    write(folder / "vae/diffusion_pytorch_model.safetensors", flux2_vae())
    (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": true}')
    return folder


@pytest.mark.parametrize(
    "missing",
    [
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_missing_shard(refused, folder, missing):
    (folder / missing).unlink()
    assert f"{Path(missing).name} does not exist" in refused("klein/model_index.json")


def test_damaged_layer_counts_when_it_is_not_trimmed(refused, installed):
    tensors = qwen3()
    del tensors["model.layers.30.mlp.up_proj.weight"]
    write(installed / "text_encoders/cut.safetensors", tensors)
    sentence = refused(text_encoder="cut.safetensors", trim_text_encoder=False)
    assert "cut.safetensors is damaged: it has no model.layers.30.mlp.up_proj.weight" in sentence
