"""What other nodes do with a loaded model works as on UNETLoader's, whether it came from a file or a folder."""

import os

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from files import write
from loader import link_models, load, use_models
from safetensors.torch import load_file
from sampling import comfy_run, conditioning, diffusers_transformer, embeddings, latent_noise

SOURCES = {"file": "flux-2-klein-nano-base.safetensors", "folder": "nano/model_index.json"}
SIGMAS = torch.tensor([1.0, 0.6, 0.0])


@pytest.fixture(scope="module")
def installed(comfy, models, tmp_path_factory):
    """An installation of the nano base model, as its file and as a diffusers folder of the same weights."""
    base = tmp_path_factory.mktemp("contracts") / "models"
    with pytest.MonkeyPatch.context() as patch:
        use_models(patch, base)
        link_models(models, base)
        folder = base / "diffusers/nano"
        diffusers_transformer(load_file(models["base"])).save_pretrained(folder / "transformer")
        (folder / "text_encoder").mkdir()
        os.link(models["text_encoder"], folder / "text_encoder/model.safetensors")
        with torch.device("meta"):
            vae = AutoencoderKLFlux2().state_dict()
        write(
            folder / "vae/diffusion_pytorch_model.safetensors",
            {name: ("F32", tensor.shape) for name, tensor in vae.items() if tensor.ndim},
        )
        (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": false}')
        yield base


@pytest.fixture(scope="module")
def run(comfy):
    """`run_node` for the whole module."""

    def run(node_id, **inputs):
        node = comfy.NODE_CLASS_MAPPINGS[node_id]
        return node.execute(**inputs).result if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(**inputs)

    return run


@pytest.fixture(scope="module")
def loaded(installed, run):
    return {source: load(run, name) for source, name in SOURCES.items()}


@pytest.fixture(params=SOURCES)
def ours(loaded, request):
    """Outputs of KleinKitLoader."""
    return loaded[request.param]


@pytest.fixture(scope="module")
def theirs(installed, run):
    [model] = run("UNETLoader", unet_name=SOURCES["file"], weight_dtype="default")
    return model


def sample(model):
    positive, negative = (conditioning(embeddings(192, seed)) for seed in (1, 2))
    return comfy_run(model, SIGMAS, latent_noise(32, 48), positive, negative, 3.0)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_samples_as_unet_loaders(ours, theirs):
    assert torch.equal(sample(ours[0]), sample(theirs))


def test_can_be_loaded_anew(ours):
    for part in ours[:3]:
        patcher = getattr(part, "patcher", part)
        # As ComfyUI makes its non-dynamic delegates (for cond hooks), and its clones for other GPUs.
        make, arguments = patcher.cached_patcher_init
        fresh = [make(*arguments, disable_dynamic=True)]
        if hasattr(patcher, "deepclone_multigpu"):
            fresh.append(patcher.deepclone_multigpu())
        for other in fresh:
            assert other.model is not patcher.model
            assert same_weights(other.model, patcher.model)


def test_rules_survive_being_loaded_anew(installed, run):
    model = load(run, "flux-2-klein-nano.safetensors")[0]
    clone = model.deepclone_multigpu() if hasattr(model, "deepclone_multigpu") else model.clone()
    assert torch.equal(sample(clone), sample(model))


LORAS = {
    "original": {
        "diffusion_model.double_blocks.0.img_attn.qkv": (384, 128),
        "diffusion_model.single_blocks.1.linear1": (1152, 128),
    },
    "diffusers": {
        "transformer.transformer_blocks.0.attn.to_k": (128, 128),
        "transformer.transformer_blocks.1.attn.add_v_proj": (128, 128),
        "transformer.single_transformer_blocks.1.attn.to_out": (128, 512),
    },
}


@pytest.mark.parametrize("names", LORAS)
def test_lora(installed, run, ours, theirs, names):
    random = torch.Generator().manual_seed(3)
    write(
        installed / f"loras/{names}.safetensors",
        {
            f"{layer}.lora_{side}.weight": torch.randn(shape, generator=random) / 5
            for layer, (rows, columns) in LORAS[names].items()
            for side, shape in (("B", (rows, 4)), ("A", (4, columns)))
        },
    )
    styled = [
        run("LoraLoaderModelOnly", model=model, lora_name=f"{names}.safetensors", strength_model=0.7)[0]
        for model in (ours[0], theirs)
    ]
    assert len(styled[0].patches) == len(styled[1].patches) == len(LORAS[names])
    assert torch.equal(sample(styled[0]), sample(styled[1]))
    assert not torch.equal(sample(styled[0]), sample(theirs))


def test_merge(run, ours, theirs):
    [other] = run("UNETLoader", unet_name="flux-2-klein-nano.safetensors", weight_dtype="default")
    merges = [sample(run("ModelMergeSimple", model1=model, model2=other, ratio=0.3)[0]) for model in (ours[0], theirs)]
    assert torch.equal(*merges)
    assert not torch.equal(merges[0], sample(theirs))


def saved(run, tmp_path, monkeypatch, node_id, **inputs):
    """The file that one of ComfyUI's nodes saves."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    run(node_id, filename_prefix="saved", **inputs)
    [file] = tmp_path.glob("saved_*.safetensors")
    return file


def test_model_save(installed, run, ours, theirs, tmp_path, monkeypatch):
    files = [
        saved(run, tmp_path / name, monkeypatch, "ModelSave", model=model)
        for name, model in (("ours", ours[0]), ("theirs", theirs))
    ]
    mine, other = map(load_file, files)
    assert mine.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in mine.items())
    target = installed / "diffusion_models/saved.safetensors"
    files[0].replace(target)
    model, *_, info = load(run, target.name)
    assert same_weights(model.model, theirs.model)
    assert info.startswith("saved.safetensors is FLUX.2 [klein]")


def test_all_in_one(installed, run, loaded, tmp_path, monkeypatch):
    model, clip, vae = load(run, SOURCES["folder"], trim_text_encoder=False)[:3]
    file = saved(run, tmp_path, monkeypatch, "CheckpointSave", model=model, clip=clip, vae=vae)
    file.replace(installed / "diffusion_models/all.safetensors")
    again = load(run, "all.safetensors")
    assert "Text encoder: all.safetensors (chosen by auto)" in again[5]
    assert "VAE: all.safetensors (chosen by auto), FLUX.2's VAE" in again[5]
    assert torch.equal(sample(again[0]), sample(model))
    tokens = clip.tokenize("a red circle")
    assert torch.equal(again[1].encode_from_tokens(tokens), clip.encode_from_tokens(tokens))
    assert same_weights(again[2].first_stage_model, vae.first_stage_model)
