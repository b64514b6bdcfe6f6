"""What KleinKitLoader outputs for the nano family, and when it counts as changed."""

import os

import pytest
import torch
from files import qwen3, write
from loader import link_models, load, use_models
from sampling import comfy_run, conditioning, embeddings, latent_noise

BASE, DISTILLED, KV = (f"flux-2-klein-{name}.safetensors" for name in ("nano-base", "nano", "9b-kv"))


@pytest.fixture
def installed(comfy, models, monkeypatch, tmp_path):
    """An installation of the nano family, and of its distilled model under the name of a KV one."""
    base = tmp_path / "models"
    use_models(monkeypatch, base)
    link_models(models, base)
    os.link(models["distilled"], base / "diffusion_models" / KV)
    return base


@pytest.mark.parametrize(
    "name, variant, expected",
    [
        (BASE, "auto", (50, 4.0)),
        (DISTILLED, "auto", (4, 1.0)),
        (KV, "auto", (4, 1.0)),
        (BASE, "distilled", (4, 1.0)),
        (DISTILLED, "base", (50, 4.0)),
    ],
)
def test_steps_and_cfg_of_the_variant(installed, run_node, name, variant, expected):
    assert load(run_node, name, variant=variant)[3:5] == expected


@pytest.mark.parametrize(
    "name, variant, words",
    [
        (BASE, "auto", "Variant: base, its name says base; 50 steps and cfg 4."),
        (DISTILLED, "auto", "Variant: distilled, its metadata say so; 4 steps and cfg 1."),
        (DISTILLED, "base", "Variant: base, as `variant` says; 50 steps and cfg 4."),
        (KV, "auto", "For edits put ComfyUI's FluxKVCache node behind the model."),
        (BASE, "auto", "Text encoder: qwen_3_nano.safetensors (chosen by auto), Qwen3 of width 64, fp16, 27 of its 36 "),
    ],
)
def test_info(installed, run_node, caplog, name, variant, words):
    caplog.set_level("INFO")
    info = load(run_node, name, variant=variant)[5]
    assert words in info and "\n" not in info
    assert f"Klein Loader: {info}" in caplog.messages


def test_info_names_the_vae(installed, run_node, models):
    name, kind = (models["vae"].name, "FLUX.2's VAE") if "vae" in models else ("taef2", "TAEF2")
    assert f"VAE: {name} (chosen by auto), {kind}, fp16." in load(run_node, BASE)[5]


def sample(model, cfg):
    positive, negative = (conditioning(embeddings(192, seed)) for seed in (1, 2))
    return comfy_run(model, torch.tensor([1.0, 0.6, 0.0]), latent_noise(32, 32), positive, negative, cfg)


def test_distilled_model_ignores_cfg(installed, run_node):
    model = load(run_node, DISTILLED)[0]
    assert torch.equal(sample(model, 4.0), sample(model, 1.0))


@pytest.mark.parametrize("inputs", [dict(distilled_cfg="allow"), dict(variant="base")])
def test_cfg_is_applied(installed, run_node, inputs):
    model = load(run_node, DISTILLED, **inputs)[0]
    [plain] = run_node("UNETLoader", unet_name=DISTILLED, weight_dtype="default")
    assert torch.equal(sample(model, 4.0), sample(plain, 4.0))
    assert not torch.equal(sample(model, 4.0), sample(model, 1.0))


def test_prompt_to_picture_size(installed, run_node):
    _, clip, vae, *_ = load(run_node, BASE)
    [[embedding, _]] = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    assert embedding.shape == (1, 512, 192)
    assert vae.decode(torch.zeros(1, 128, 4, 4)).shape == (1, 64, 64, 3)


class TestFingerprint:
    """Whether ComfyUI is to load anew: by the size and the time of the files."""

    @pytest.fixture
    def fingerprint(self, comfy, installed):
        node = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"]
        return lambda: node.fingerprint_inputs(diffusion_model=BASE, text_encoder="auto", vae="auto")

    def test_same_files(self, fingerprint):
        assert fingerprint() == fingerprint()

    @pytest.mark.parametrize("role", ["base", "text_encoder", "vae"])
    def test_changed_file(self, fingerprint, installed, models, role):
        file = models.get(role) or models["vae_decoder"]
        before, path = fingerprint(), installed / file.parent.name / file.name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        assert fingerprint() != before

    def test_auto_takes_another_file(self, fingerprint, installed):
        before = fingerprint()
        write(installed / "text_encoders/qwen.safetensors", qwen3(hidden=64, heads=1, kv_heads=1, intermediate=128))
        assert fingerprint() != before

    def test_file_that_is_not_used(self, fingerprint, installed):
        before = fingerprint()
        write(installed / "text_encoders/qwen_3_4b.safetensors", qwen3())
        assert fingerprint() == before

    def test_missing_file(self, fingerprint, installed):
        before = fingerprint()
        (installed / "diffusion_models" / BASE).unlink()
        assert fingerprint() != before and fingerprint() == fingerprint()
