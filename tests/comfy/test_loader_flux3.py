"""FLUX 3 Image Klein in a ComfyUI that does not know it: told whole, refused in one sentence; and what loads it in a newer one.

The last step of loading needs ComfyUI 0.41. What stands in for it here are models that this ComfyUI knows: FLUX.2's nano
family for the diffusion model, and Krea 2's Qwen3-VL-4B for the text encoder, which is the same model.
"""

import dataclasses
import json
from importlib.util import find_spec

import pytest
import torch
from files import flux2_vae, flux3_klein, klein, qwen3, qwen3_vl, write
from loader import check_that_a_merge_gets_all_layers, link_models, load, record_reads, use_models
from releases import may_lack

MODEL = "flux3-image-klein-bf16.safetensors"
BASE = "flux3-image-klein-base-bf16.safetensors"
ENCODER = "qwen3vl_4b_bf16.safetensors"


@pytest.fixture
def installed(comfy, models, monkeypatch, tmp_path):
    """Both FLUX 3 Kleins, a FLUX.2 Klein 4B, their text encoders and their VAE, all of them holes; its folder."""
    base = tmp_path / "models"
    use_models(monkeypatch, base)
    write(base / "diffusion_models" / MODEL, flux3_klein())
    write(base / "diffusion_models" / BASE, flux3_klein(distilled=False))
    write(base / "diffusion_models/flux-2-klein-4b.safetensors", klein())
    write(base / "text_encoders" / ENCODER, qwen3_vl())
    write(base / "text_encoders/qwen_3_4b.safetensors", qwen3())
    write(base / "text_encoders/cut.safetensors", qwen3(layers=32))
    write(base / "vae/flux2-vae.safetensors", flux2_vae())
    return base


@pytest.fixture
def refused(installed, run_node, monkeypatch):
    """`refused(…)`: the sentence with which the node refuses these inputs, having read no tensor and loaded nothing."""

    def refused(name, **inputs):
        from comfy import model_management

        reads, loaded = record_reads(monkeypatch), list(model_management.current_loaded_models)
        with pytest.raises(ValueError) as error:
            load(run_node, name, **inputs)
        assert not reads and model_management.current_loaded_models == loaded
        return str(error.value)

    return refused


@pytest.fixture
def too_old():
    import comfy.sd

    if hasattr(comfy.sd.CLIPType, "FLUX3"):
        pytest.fail("This ComfyUI knows FLUX 3: the whole of loading can be tested, and docs/reliability.md says what is not.")


@pytest.mark.parametrize("name, variant", [(MODEL, "distilled"), (BASE, "base")])
def test_one_sentence_where_comfyui_is_too_old(refused, too_old, name, variant):
    assert refused(name) == (
        f"Klein Loader: {name} is FLUX 3 Image Klein 5.5B, {variant}: ComfyUI 0.41.0 or newer loads it, and this one is older; "
        "update ComfyUI, or take a FLUX.2 [klein], which works here."
    )


def test_the_same_sentence_where_no_encoder_is_installed(refused, installed, too_old):
    for file in (*installed.glob("text_encoders/*"), *installed.glob("vae/*")):
        file.unlink()
    assert "ComfyUI 0.41.0 or newer loads it" in refused(MODEL)


def test_what_can_never_be_loaded_is_said_first(refused, installed):
    assert "base for certain, not distilled" in refused(BASE, variant="distilled")
    write(installed / "diffusion_models/action.safetensors", flux3_klein() | {"emb_in.video.weight": ("BF16", (3072, 128))})
    assert "action.safetensors is FLUX 3 Video or Action" in refused("action.safetensors")
    write(installed / "diffusion_models/sg.safetensors", flux3_klein(dtype="F8_E4M3"), metadata={"quantization": "fp8r"})
    assert "sg.safetensors is FLUX 3 Image Klein quantised for sglang" in refused("sg.safetensors")


def test_files_that_ours_does_not_list_are_named(comfy):
    answer = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"].validate_inputs("flux3-image-klein-Q4_K_M.gguf")
    assert "is a GGUF file" in answer
    answer = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"].validate_inputs(MODEL)
    assert f"{MODEL}' is not a safetensors file in models/diffusion_models" in answer
    assert "No Qwen3-VL is installed: put qwen3vl_4b_bf16.safetensors into models/text_encoders" in answer


def chosen(pack, name, text_encoder="auto", trim=True):
    installed = pack("engine.installed")
    encoder, vae = installed.partners(installed.klein_listed(name)[0], text_encoder, "auto", trim)
    return encoder.name, vae.name


def test_auto_pairs_each_klein_with_its_encoder(installed, pack):
    assert chosen(pack, MODEL) == chosen(pack, BASE) == (ENCODER, "flux2-vae.safetensors")
    assert chosen(pack, "flux-2-klein-4b.safetensors") == ("qwen_3_4b.safetensors", "flux2-vae.safetensors")


def test_a_cut_copy_is_taken_only_by_name(installed, pack):
    assert chosen(pack, MODEL, "cut.safetensors")[0] == "cut.safetensors"
    (installed / "text_encoders" / ENCODER).unlink()
    with pytest.raises(ValueError, match=r"none is installed; put qwen3vl_4b_bf16\.safetensors into models/text_encoders"):
        chosen(pack, MODEL)


def test_the_encoder_of_the_other_klein(installed, pack):
    with pytest.raises(ValueError, match=r"qwen_3_4b\.safetensors is Qwen3 .* another rope θ \(1,000,000, not 5,000,000\)"):
        chosen(pack, MODEL, "qwen_3_4b.safetensors")
    nine = klein(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288)
    write(installed / "diffusion_models/nine.safetensors", nine)
    with pytest.raises(ValueError, match=r"a Qwen3 of width 4096 .* qwen3vl_4b_bf16\.safetensors is Qwen3-VL of width 2560"):
        chosen(pack, "nine.safetensors", ENCODER)


@pytest.mark.parametrize("name", ["auto", ENCODER])
def test_flux2_does_not_take_flux3s_encoder(installed, pack, name):
    for other in ("qwen_3_4b.safetensors", "cut.safetensors"):
        (installed / "text_encoders" / other).unlink()
    given = "none is installed" if name == "auto" else r"qwen3vl_4b_bf16\.safetensors is Qwen3-VL .* another rope θ"
    with pytest.raises(ValueError, match=rf"a Qwen3 of width 2560 .* {given}.*; put qwen_3_4b\.safetensors"):
        chosen(pack, "flux-2-klein-4b.safetensors", name)


def test_a_folder_with_a_modular_index_is_listed(installed, pack):
    write(installed / "diffusers/f3/transformer/diffusion_pytorch_model.safetensors", flux3_klein())
    (installed / "diffusers/f3/modular_model_index.json").write_text(json.dumps({"_class_name": "Flux3ModularPipeline"}))
    assert "f3/modular_model_index.json" in pack("engine.installed").listed("diffusion model")
    assert chosen(pack, "f3/modular_model_index.json")[0] == ENCODER
    # With both indexes it is one model.
    (installed / "diffusers/f3/model_index.json").write_text(json.dumps({"_class_name": "Flux3ModularPipeline"}))
    assert [name for name in pack("engine.installed").listed("diffusion model") if "f3" in name] == ["f3/model_index.json"]


@pytest.mark.parametrize("name, steps, cfg", [(MODEL, 16, 1.0), (BASE, 50, 3.5)])
def test_the_previews_know_it(installed, pack, name, steps, cfg):
    assert pack("previews.loader").suited({"diffusion_model": name}) == {
        "steps": steps,
        "cfg": cfg,
        "distilled": name == MODEL,
        "double_layers": 0,
        "single_layers": 28,
        "shift": "flux3",
    }


# What a newer ComfyUI does in the end, with models that this one knows.

VOCABULARY, TOKENS = 500, 40
TINY = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": VOCABULARY}
TAPS = [4, 8, 12, 16, 20, 24, 28, 32]
TINY_TOWER = {"hidden_size": 64, "intermediate_size": 64, "depth": 1, "deepstack_visual_indexes": [0]}


def tiny(tensors):
    """Random weights for a table of shapes, float16."""
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.ones(shape, dtype=torch.float16)
        if len(shape) == 1
        else (torch.randn(shape, generator=random) / shape[1] ** 0.5).half()
        for name, (_, shape) in tensors.items()
    }


@pytest.fixture(scope="module")
def tiny_encoders(tmp_path_factory):
    """A folder of models with a tiny Qwen3-VL of 4B's width and depth, and one that is cut and has no vision part."""
    base = tmp_path_factory.mktemp("tiny") / "models"
    sizes = dict(heads=1, kv_heads=1, intermediate=64, vocabulary=VOCABULARY)
    write(base / "text_encoders" / ENCODER, tiny(qwen3_vl(vision=TINY_TOWER["hidden_size"], **sizes)))
    write(base / "text_encoders/cut.safetensors", tiny(qwen3(layers=32, **sizes)))
    return base


@pytest.fixture
def encoders(comfy, tiny_encoders, monkeypatch):
    """ComfyUI's classes of Qwen3 and Qwen3-VL of 4B are as tiny as the files, and it finds these; whether it has them."""
    if may_lack("0.30", find_spec("comfy.text_encoders.qwen3vl")):
        return False
    from comfy.text_encoders import llama, qwen3vl

    for holder, name in ((llama, "Qwen3_4BConfig"), (qwen3vl, "Qwen3VL_4BConfig")):
        config = dataclasses.make_dataclass(
            name, [(key, int, dataclasses.field(default=value)) for key, value in TINY.items()], bases=(getattr(holder, name),)
        )
        monkeypatch.setattr(holder, name, config)
    monkeypatch.setitem(qwen3vl.QWEN3VL_CONFIGS, "qwen3vl_4b", qwen3vl.Qwen3VL_4BConfig)
    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", TINY_TOWER)
    use_models(monkeypatch, tiny_encoders)
    return True


@pytest.fixture
def native(pack, encoders):
    """`native(name, trim, **changes)`: the CLIP of a text encoder, of a FLUX 3 whose type is Krea 2's here; None without."""
    if not encoders:
        return None

    def native(name=ENCODER, trim=True, **changes):
        family = pack("checkpoint.families").FLUX3_KLEIN
        checkpoint = pack("engine.installed").inspect_listed("text encoder", name)[0]["text encoder"]
        changed = dataclasses.replace(family, **{"clip_type": "krea2"} | changes)
        return pack("engine.native").load_text_encoder(checkpoint, changed, trim)

    return native


def hidden_states(clip):
    """What FLUX 3 reads: the hidden states after layers 4, 8, …, 32, [1, 8, 40, 2560]."""
    tokens = torch.arange(TOKENS)[None] * 37 % VOCABULARY
    transformer = clip.cond_stage_model.qwen3vl_4b.transformer
    with torch.no_grad():
        _, states = transformer(tokens, intermediate_output=TAPS, final_layer_norm_intermediate=False, dtype=torch.float32)
    return states


def layers(clip):
    return clip.cond_stage_model.qwen3vl_4b.transformer.model.layers


def test_32_layers_give_the_hidden_states_of_36(native, run_node, monkeypatch):
    if native is None:
        return
    reads = record_reads(monkeypatch)
    ours = native()
    assert not [key for key in reads[ENCODER] if any(f"layers.{dead}." in key for dead in (32, 33, 34, 35))]
    assert "model.language_model.layers.31.mlp.up_proj.weight" in reads[ENCODER]
    [theirs] = run_node("CLIPLoader", clip_name=ENCODER, type="krea2")
    assert (len(layers(ours)), len(layers(theirs))) == (32, 36)
    states = hidden_states(ours)
    assert states.shape == (1, 8, TOKENS, 2560) and states.std() > 0
    assert torch.equal(states, hidden_states(theirs))
    # The last of them is the one that a final norm would change.
    ours.cond_stage_model.qwen3vl_4b.transformer.model.norm = theirs.cond_stage_model.qwen3vl_4b.transformer.model.norm
    assert not torch.equal(hidden_states(ours)[:, -1], states[:, -1])


def test_trimmed_it_refuses_what_needs_all_layers(native):
    if native is None:
        return
    ours = native()
    for clip in (ours, ours.clone()):
        with pytest.raises(ValueError, match=r"a trimmed text encoder cannot generate text, .* turn `trim_text_encoder` off"):
            clip.generate({"qwen3vl_4b": [[(1, 1.0)]]})
        with pytest.raises(ValueError, match=r"a trimmed text encoder cannot be saved"):
            clip.get_sd()
        check_that_a_merge_gets_all_layers(clip, native(trim=False))
    # ComfyUI loads it anew, for example for another device.
    make, arguments = ours.patcher.cached_patcher_init
    assert len(make(*arguments).model.qwen3vl_4b.transformer.model.layers) == 32


@pytest.mark.parametrize("changes", [dict(trim=False), dict(encoder_config="another_name")])
def test_whole_where_that_is_wanted_or_the_class_does_not_take_less(native, run_node, changes):
    if native is None:
        return
    ours = native(**changes)
    assert len(layers(ours)) == 36
    [theirs] = run_node("CLIPLoader", clip_name=ENCODER, type="krea2")
    mine, weights = ours.cond_stage_model.state_dict(), theirs.cond_stage_model.state_dict()
    assert mine.keys() == weights.keys()
    assert all(torch.equal(weights[key], mine[key]) for key in weights if "visual" not in key)


def test_an_encoder_that_comfyui_takes_for_another_is_refused(native):
    """A cut copy has nothing that ComfyUI knows a Qwen3-VL by: it builds a Qwen3, whose numbers are wrong."""
    if native is None:
        return
    with pytest.raises(ValueError, match=r"cut\.safetensors was taken for another .* \(rope θ 1,000,000, not 5,000,000\)"):
        native("cut.safetensors")


def test_the_model_comes_from_unet_loader(comfy, models, monkeypatch, tmp_path, pack, run_node):
    use_models(monkeypatch, tmp_path / "models")
    link_models(models, tmp_path / "models", "base")
    name = models["base"].name
    checkpoint = pack("engine.installed").inspect_listed("diffusion model", name)[0]["diffusion model"]
    ours = pack("engine.native").load_model(checkpoint, "default", {})
    [theirs] = run_node("UNETLoader", unet_name=name, weight_dtype="default")
    weights = theirs.model.diffusion_model.state_dict()
    assert weights and all(torch.equal(weights[key], value) for key, value in ours.model.diffusion_model.state_dict().items())


def test_nodes_of_either_kind_are_called(comfy, pack):
    call = pack("engine.native").call
    assert call("EmptyFlux2LatentImage", width=64, height=32, batch_size=1)["samples"].shape[-2:] == (2, 4)
    assert call("EmptyLatentImage", width=64, height=32, batch_size=1)["samples"].shape[-2:] == (4, 8)
