"""Klein Loader with GGUF files: listed where ComfyUI-GGUF is, loaded by its nodes, and else one sentence."""

import re

import gguf_nodes
import pytest
import torch
from files import klein, qwen3, write
from gguf_files import llama_name, read_gguf_weights, write_gguf
from loader import check_that_a_merge_gets_all_layers, link_models, load, use_models
from releases import may_lack
from safetensors.torch import load_file
from sampling import comfy_run, conditioning, embeddings, latent_noise

BASE, DISTILLED = "flux-2-klein-base-4b-Q8_0.gguf", "flux-2-klein-4b-Q4_0.gguf"
ENCODER = "Qwen3-8B-Q8_0.gguf"
NANO_ENCODER = "qwen_3_nano.safetensors"


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    """A folder of models: the nano family in GGUF beside its own text encoder and VAE."""
    base = tmp_path_factory.mktemp("gguf") / "models"
    link_models(models, base, "text_encoder")
    link_models(models, base, "vae")
    for name, role in ((BASE, "base"), (DISTILLED, "distilled")):
        form = name.rpartition("-")[2].removesuffix(".gguf")
        write_gguf(base / "diffusion_models" / name, load_file(models[role]), form)
    return base


@pytest.fixture
def without(comfy, files, monkeypatch):
    use_models(monkeypatch, files)
    return files


@pytest.fixture
def installed(without, monkeypatch):
    gguf_nodes.install(monkeypatch)
    return without


@pytest.fixture
def qwen(installed):
    """A Qwen3 as wide as the 8B's, which has an output head, in GGUF, and a Klein in safetensors that takes it."""
    random = torch.Generator().manual_seed(0)
    shapes = qwen3(**gguf_nodes.SHAPE)
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    tensors = {
        llama_name(name): torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=random) / shape[1] ** 0.5
        for name, (_, shape) in shapes.items()
    }
    encoder = write_gguf(installed / "text_encoders" / ENCODER, tensors, architecture="qwen3")
    tiny = klein(hidden=128, double_blocks=1, single_blocks=1, text_width=12288, dtype="F32")
    plain = write(installed / "diffusion_models/flux-2-klein-9b.safetensors", tiny)
    yield plain.name
    encoder.unlink()
    plain.unlink()


def options(comfy, name):
    schema = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"].define_schema()
    return next(entry.options for entry in schema.inputs if entry.id == name)


def sample(model, cfg):
    positive, negative = (conditioning(embeddings(192, seed)) for seed in (1, 2))
    return comfy_run(model, torch.tensor([1.0, 0.6, 0.0]), latent_noise(32, 32), positive, negative, cfg)


def reference(path):
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(read_gguf_weights(path))


def test_without_the_pack_the_sentence_says_what_to_install(without, comfy, run_node):
    node = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"]
    assert not any(name.endswith(".gguf") for name in (*options(comfy, "diffusion_model"), *options(comfy, "text_encoder")))
    words = "is a GGUF file: install the pack ComfyUI-GGUF, with which Klein Loader loads it."
    assert node.validate_inputs(diffusion_model=BASE, text_encoder="auto") == f"'{BASE}' {words}"
    encoder = f"Expected `text_encoder` to be one of auto, {NANO_ENCODER}, but '{ENCODER}' {words}"
    assert node.validate_inputs(diffusion_model=BASE, text_encoder=ENCODER) == f"'{BASE}' {words} {encoder}"
    assert node.validate_inputs(text_encoder=ENCODER) == encoder
    for inputs in (dict(diffusion_model=BASE), dict(diffusion_model=BASE, text_encoder=ENCODER)):
        with pytest.raises(ValueError, match=f"^Klein Loader: '{BASE}' {words}"):
            load(run_node, **inputs)


def test_with_the_pack_they_are_listed(installed, comfy, qwen):
    node = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"]
    assert {BASE, DISTILLED} <= set(options(comfy, "diffusion_model")) and ENCODER in options(comfy, "text_encoder")
    assert node.validate_inputs(diffusion_model=BASE, text_encoder=ENCODER) is True
    assert "'x.gguf' is not a file that ComfyUI-GGUF lists." in node.validate_inputs(diffusion_model="x.gguf")
    assert "'x.gguf' is not a file that ComfyUI-GGUF lists." in node.validate_inputs(text_encoder="x.gguf")


@pytest.mark.parametrize(
    "name, suited, words",
    [
        (BASE, (50, 4.0), ["2+4 blocks of width 128, Q8_0", "Variant: base, by its official name"]),
        (DISTILLED, (4, 1.0), ["Q4_0", "Variant: distilled, by its official name", "A cfg above 1 counts as 1."]),
    ],
)
def test_recognised_paired_and_loaded_by_the_packs_node(installed, run_node, name, suited, words):
    model, clip, _, *numbers, info = load(run_node, name)
    assert tuple(numbers) == suited
    for part in (*words, f"Text encoder: {NANO_ENCODER} (chosen by auto), Qwen3 of width 64"):
        assert part in info
    assert gguf_nodes.calls == [("UnetLoaderGGUF", name)]
    [[embedding, _]] = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    assert embedding.shape[-1] == 192
    plain = reference(installed / "diffusion_models" / name)
    guarded = sample(model, 4.0)
    assert torch.equal(guarded, sample(plain, 1.0 if name == DISTILLED else 4.0))
    assert not torch.equal(guarded, sample(plain, 4.0 if name == DISTILLED else 1.0))


def test_weight_dtype_is_said_to_do_nothing(installed, run_node):
    words = "Its weights stay as they are: `weight_dtype` fp8_e5m2 does nothing to a GGUF file."
    assert words in load(run_node, BASE, weight_dtype="fp8_e5m2")[5] and words not in load(run_node, BASE)[5]


def test_another_device_gets_weights_of_its_own(installed, run_node):
    model = load(run_node, BASE)[0]
    load_again, files = model.cached_patcher_init
    other = load_again(*files, disable_dynamic=True)
    assert other.model is not model.model and torch.equal(sample(other, 4.0), sample(model, 4.0))


def test_text_encoder_is_trimmed_and_equal(installed, run_node, qwen):
    """Behind a Klein in safetensors, chosen by auto."""
    [whole] = gguf_nodes.CLIPLoaderGGUF().load_clip(ENCODER, "flux2")
    clip, info = (load(run_node, qwen)[number] for number in (1, 5))
    assert gguf_nodes.calls[-1] == ("CLIPLoaderGGUF", ENCODER, "flux2")
    assert f"Text encoder: {ENCODER} (chosen by auto), Qwen3 of width 4096, Q8_0, 27 of its 29 layers." in info
    tokens = {"qwen3_8b": [[(number * 37 % 500, 1.0) for number in range(40)]]}
    assert torch.equal(clip.encode_from_tokens(tokens), whole.encode_from_tokens(tokens))
    kept, all_of_it = ({name.partition("model.")[2] for name in of.patcher.model_state_dict()} for of in (clip, whole))
    unused = re.compile(r"layers\.(27|28)\.|norm\.|lm_head\.")
    assert kept == {name for name in all_of_it if not unused.match(name)}
    # An older ComfyUI builds none for the 8B, and leaves the file's where it is.
    may_lack("0.20", "lm_head.weight" in all_of_it)
    assert clip.patcher.model_size() < whole.patcher.model_size()
    check_that_a_merge_gets_all_layers(clip, whole)
    with pytest.raises(ValueError, match="a trimmed text encoder cannot generate text"):
        clip.generate({})
    untrimmed, info = (load(run_node, qwen, trim_text_encoder=False)[number] for number in (1, 5))
    assert "all 29 layers" in info and untrimmed.patcher.model_size() == whole.patcher.model_size()


def test_text_encoder_of_another_width_is_refused(installed, run_node, qwen):
    with pytest.raises(ValueError, match=f"{ENCODER} is Qwen3 of width 4096 and 29 layers; these fit: {NANO_ENCODER}"):
        load(run_node, BASE, text_encoder=ENCODER)
    assert gguf_nodes.calls == []


def test_another_model_and_a_damaged_file_are_refused(installed, run_node):
    folder = installed / "diffusion_models"
    weights = {"double_blocks.0.img_mod.lin.weight": torch.ones(32, 32)}
    write_gguf(folder / "other.gguf", weights)
    with pytest.raises(ValueError, match=r"other\.gguf is FLUX\.1"):
        load(run_node, "other.gguf")
    (folder / "other.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ValueError, match=r"other\.gguf is a GGUF file of version 0"):
        load(run_node, "other.gguf")
    (folder / "other.gguf").unlink()


def test_previews_know_a_gguf(installed, pack):
    suited = pack("previews.loader").suited({"diffusion_model": DISTILLED})
    assert (suited["steps"], suited["distilled"], suited["double_layers"]) == (4, True, 2)
