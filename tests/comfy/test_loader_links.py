"""Symbolic links: a prompt follows what ComfyUI lists, a route does not leave ComfyUI's folders."""

import os

import pytest
from files import flux2_vae, klein, write
from loader import link_models, load, use_models

MODEL = "flux-2-klein-nano-base.safetensors"


@pytest.fixture
def installed(comfy, models, monkeypatch, tmp_path):
    """The nano family in a store elsewhere, linked into ComfyUI's folders file by file."""
    base, store = tmp_path / "models", tmp_path / "store"
    use_models(monkeypatch, base)
    link_models(models, store)
    for folder in store.iterdir():
        for file in folder.iterdir():
            os.symlink(file, base / folder.name / file.name)
    return base


def test_linked_files(installed, run_node):
    assert load(run_node, MODEL)[5].startswith(MODEL)


def test_linked_folder(installed, run_node):
    (installed.parent / "store/diffusion_models").rename(installed.parent / "mine")
    os.symlink(installed.parent / "mine", installed / "diffusion_models/mine")
    assert load(run_node, f"mine/{MODEL}")[3] == 50


def test_linked_diffusers_folder(installed, pack, tmp_path):
    folder = tmp_path / "store/klein"
    write(folder / "transformer/diffusion_pytorch_model.safetensors", klein())
    for part, name in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        write(folder / part / f"{name}.safetensors", {"x": ("F32", (1,))})
    (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    os.symlink(folder, installed / "diffusers/klein")
    assert pack("engine.installed").inspect_listed("diffusion model", "klein/model_index.json")
    with pytest.raises(ValueError, match="leads out of ComfyUI's model folders"):
        pack("previews.loader").suited({"diffusion_model": "klein/model_index.json"})


def test_a_route_does_not_follow_a_link_out_of_the_folders(installed, pack, tmp_path):
    suited = pack("previews.loader").suited
    with pytest.raises(ValueError, match="leads out of ComfyUI's model folders") as error:
        suited({"diffusion_model": MODEL})
    assert "store" not in str(error.value)
    (installed / "diffusion_models/real.safetensors").hardlink_to(tmp_path / "store/diffusion_models" / MODEL)
    os.symlink(installed / "diffusion_models/real.safetensors", installed / "diffusion_models/klein-base.safetensors")
    found = suited({"diffusion_model": "klein-base.safetensors"})
    assert (found["steps"], found["cfg"]) == (50, 4.0)


def test_a_broken_link_is_left_out_where_another_file_fits(installed, pack):
    """ComfyUI lists it all the same: a text encoder, a VAE, and half of TAEF2."""
    write(installed / "vae/my-flux2-vae.safetensors", flux2_vae())
    for name in ("text_encoders/qwen_3_4b", "vae/flux2-vae", "vae_approx/taef2_encoder", "vae_approx/taef2_decoder"):
        link = installed / f"{name}.safetensors"
        link.unlink(missing_ok=True)
        os.symlink(installed / "gone", link)
    engine = pack("engine.installed")
    assert "flux2-vae.safetensors" in engine.listed("VAE")
    _, encoder, vae, _ = engine.resolve(MODEL, "auto", "auto", True)
    assert (encoder.name, vae.name) == ("qwen_3_nano.safetensors", "my-flux2-vae.safetensors")
    with pytest.raises(ValueError, match=r"taef2_encoder\.safetensors in models/vae_approx is not a file, or a link to none\."):
        engine.taef2_file("encoder")
