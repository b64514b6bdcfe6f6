"""FLUX 3 Image Klein: what it is, what it was trained for and what belongs to it, from headers of the published size."""

import hashlib
import io
import json
import math

import pytest
import torch
from files import flux2_vae, flux3_klein, klein, qwen3, qwen3_vl, write
from kleinkit.checkpoint import header, pairing
from kleinkit.checkpoint.diffusers_folder import inspect_folder
from kleinkit.checkpoint.families import FLUX3_KLEIN
from kleinkit.checkpoint.header import CheckpointError
from kleinkit.checkpoint.info import paragraph
from kleinkit.checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, inspect
from kleinkit.checkpoint.klein import layout, original_weight
from kleinkit.checkpoint.variant import variant_of

DEPTH = 5, 5, 5, 28
# md5 of "name:shape,name,…" of black-forest-labs' files, as DiffSynth-Studio 2.1.12 has it (`model_hash`), by (distilled,
# diffusers' names).
PUBLISHED = {
    (True, False): "cb8e9c6df08faa5cf99c11be4d34d26b",
    (True, True): "d98fcf51c088ad9910399b0d7fdfe692",
    (False, False): "3a12023223002ebc2f30c85d3d1257ea",
    (False, True): "fb4609249d89aeb716222378f92005ce",
}


def in_diffusers_names(tensors, distilled):
    """The same tensors under diffusers' names. Where all of them are, the published hash says."""
    names = layout(FLUX3_KLEIN, DEPTH, distilled=distilled)
    return {names[key][1][0]: entry for key, entry in tensors.items()}


def published(distilled=True, diffusers=False, **kwargs):
    tensors = flux3_klein(distilled=distilled, **kwargs)
    return in_diffusers_names(tensors, distilled) if diffusers else tensors


@pytest.fixture
def look(tmp_path):
    return lambda tensors, name="file.safetensors", **kwargs: inspect(write(tmp_path / name, tensors, **kwargs))


@pytest.mark.parametrize("distilled, diffusers", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(distilled, diffusers):
    shapes = {key: shape for key, (_, shape) in published(distilled, diffusers).items()}
    parts = sorted(part for key, shape in shapes.items() for part in (f"{key}:{'_'.join(map(str, shape))}", key))
    assert hashlib.md5(",".join(parts).encode()).hexdigest() == PUBLISHED[distilled, diffusers]
    assert sum(map(math.prod, shapes.values())) == (5_548_681_984 if distilled else 5_538_458_368)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("distilled, diffusers", PUBLISHED)
def test_told_by_its_tensors(look, distilled, diffusers, prefix):
    """The names and notes that would say the opposite for FLUX.2 count for nothing."""
    tensors = {prefix + key: entry for key, entry in published(distilled, diffusers).items()}
    name = "flux3-image-klein-base.safetensors" if distilled else "flux3-image-klein-distilled.safetensors"
    found = look(tensors, name, metadata={"is_distilled": str(not distilled).lower(), "model": "flux-3-image-klein"})
    part = found.parts[MODEL]
    assert (part.architecture, part.size, part.layers, part.width) == ("FLUX 3 Image Klein", "5.5B", DEPTH, 3072)
    assert (part.text_width, part.prefix, part.weights, part.diffusers_keys) == (20480, prefix, "bf16", diffusers)
    assert pairing.check_model(found) is FLUX3_KLEIN
    variant = variant_of(found, "auto", None)
    assert (variant.name, variant.steps, variant.cfg) == (("distilled", 16, 1.0) if distilled else ("base", 50, 3.5))
    assert f"its tensors say so: {'it has' if distilled else 'it lacks'} ref_time_in" in variant.reason


def test_reads_only_the_header_of_11_gb(tmp_path, monkeypatch):
    path, read = write(tmp_path / "model.safetensors", flux3_klein()), []
    assert path.stat().st_size > 11e9

    class Counted(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(header, "open", lambda path, mode: io.BufferedReader(Counted(path, mode)), raising=False)
    assert inspect(path).parts[MODEL].size == "5.5B"
    assert 0 < sum(read) < 64 * 1024


QUANTISATIONS = {
    # format: (dtype of a weight, columns of `size` numbers, what lies beside it, what a user reads)
    "float8_e4m3fn": ("F8_E4M3", lambda size: size, {"weight_scale": ("F32", ())}, "fp8 scaled"),
    "nvfp4": ("U8", lambda size: size // 2, {"weight_scale_2": ("F32", ())}, "nvfp4"),
    "int8_tensorwise": ("I8", lambda size: size, {"weight_scale": ("F32", (1, 1))}, "int8"),
    "convrot_w4a4": ("I8", lambda size: size // 2, {"weight_scale": ("F32", (3072,))}, "convrot_w4a4"),
}


def quantised(form, fused, marked=True):
    """A distilled one whose linear layers are quantised, the text input as well; q, k, v may be one."""
    dtype, columns, beside, _ = QUANTISATIONS[form]
    mark = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    tensors = {}
    for key, (kind, shape) in flux3_klein().items():
        layer = key.removesuffix(".weight")
        if len(shape) == 1 or layer.startswith(("emb_in.", "final_layer.")):
            tensors[key] = kind, shape
            continue
        if fused and layer.endswith(("k_proj", "v_proj")):
            continue
        if fused and layer.endswith("q_proj"):
            layer, shape = layer.replace("q_proj", "qkv_proj"), (3 * shape[0], shape[1])
        tensors[layer + ".weight"] = dtype, (shape[0], columns(shape[1]))
        tensors |= {f"{layer}.{name}": entry for name, entry in beside.items()}
        if marked:
            tensors[layer + ".comfy_quant"] = mark
    return tensors


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("form", QUANTISATIONS)
def test_quantised(look, form, fused, marked):
    found = look(quantised(form, fused, marked))
    pairing.check_model(found)
    assert found.parts[MODEL].text_width == 20480 and found.parts[MODEL].quantised
    assert found.parts[MODEL].weights == QUANTISATIONS[form][-1]
    assert variant_of(found, "auto", None).name == "distilled"


def test_a_format_that_nobody_knows_hides_no_published_model(look):
    mark = torch.tensor(list(json.dumps({"format": "w2_new"}).encode()), dtype=torch.uint8)
    packed = {key: mark for key in quantised("int8_tensorwise", True) if key.endswith(".comfy_quant")}
    found = look(quantised("int8_tensorwise", True) | packed | {"txt_in.weight": ("I8", (3072, 5120))})
    pairing.check_model(found)
    assert (found.parts[MODEL].weights, found.parts[MODEL].text_width) == ("the unknown format w2_new", 20480)


def test_what_is_not_quantised_has_q_k_and_v(look):
    tensors = flux3_klein()
    del tensors["single_blocks.3.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"damaged or cut down: it has no single_blocks\.3\.k_proj\.weight"):
        pairing.check_model(look(tensors))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(joint=27), "it has 27 single_blocks, not 28"),
        (dict(layers=4), "it has 4 content_mode_blocks.image, not 5"),
        (dict(text_width=20481), "its text input is 20481 wide, not 8 × a hidden size"),
    ],
)
def test_cut_down(look, change, words):
    with pytest.raises(CheckpointError) as error:
        pairing.check_model(look(flux3_klein(**change)))
    assert "file.safetensors is damaged" in str(error.value) and words in str(error.value)


def test_half_of_the_target_time_is_damage(look):
    tensors = flux3_klein()
    del tensors["ref_time_in.out_layer.weight"]
    with pytest.raises(CheckpointError, match=r"it has no ref_time_in\.out_layer\.weight"):
        pairing.check_model(look(tensors))


def test_tensors_that_diffusers_drops(look):
    tensors = published(diffusers=True)
    pairing.check_model(look(tensors | {"repa_projectors.0.weight": ("BF16", (8, 8))}))
    with pytest.raises(CheckpointError, match=r"a tensor 'x\.weight' that is not FLUX 3 Image Klein's"):
        pairing.check_model(look(tensors | {"x.weight": ("BF16", (8, 8))}))


@pytest.mark.parametrize(
    "key",
    ["emb_in.video.weight", "emb_in.action_one.weight", "vector_in.in_layer.weight", "late_blocks.0.x"],
)
def test_bigger_siblings_are_named(look, key):
    found = look(flux3_klein() | {key: ("BF16", (3072, 128))}, "flux3-action.safetensors")
    with pytest.raises(CheckpointError) as error:
        pairing.check_model(found)
    assert str(error.value) == (
        "Expected `diffusion_model` to be a FLUX 3 Image Klein, "
        "but flux3-action.safetensors is FLUX 3 Video or Action (a diffusion model)."
    )


def test_a_sibling_without_pictures_is_named(look):
    tensors = {key: entry for key, entry in flux3_klein().items() if not key.startswith("emb_in.")}
    found = look(tensors | {"emb_in.video.weight": ("BF16", (3072, 128))})
    assert found.what(MODEL) == "FLUX 3 Video or Action (a diffusion model)"


@pytest.mark.parametrize("form, marked", [("fp8r", "float8_e4m3fn"), ("nvfp4", "nvfp4")])
def test_packages_for_sglang_are_named(look, form, marked):
    with pytest.raises(CheckpointError, match=r"FLUX 3 Image Klein quantised for sglang, which ComfyUI does not load"):
        pairing.check_model(look(quantised(marked, False, marked=False), metadata={"quantization": form}))
    # The same word beside ComfyUI's own marks says nothing of sglang.
    pairing.check_model(look(quantised(marked, False), metadata={"quantization": form}))


@pytest.mark.parametrize("distilled, wanted", [(False, "distilled"), (True, "base")])
def test_variant_cannot_contradict_the_file(look, distilled, wanted):
    found = look(flux3_klein(distilled=distilled), "mine.safetensors")
    is_one = "distilled" if distilled else "base"
    with pytest.raises(CheckpointError) as error:
        variant_of(found, wanted, None)
    assert str(error.value) == (
        f"Expected `variant` to be auto, but mine.safetensors is {is_one} for certain, not {wanted}; "
        f"its tensors say so: it {'has' if distilled else 'lacks'} ref_time_in, which only a distilled one has."
    )
    assert variant_of(found, is_one, None) == variant_of(found, "auto", None)


@pytest.mark.parametrize(
    "encoder, fits, named",
    [
        (qwen3_vl(), True, True),
        (qwen3_vl(layers=32), True, True),
        (qwen3_vl(layers=31), False, False),
        (qwen3_vl(hidden=4096), False, False),
        (qwen3(), False, False),
        (qwen3(layers=27), False, False),
        # Nothing but the number of layers tells this one from a Qwen3.
        (qwen3(layers=32), False, True),
    ],
)
def test_text_encoder_fits(look, encoder, fits, named):
    model, encoder = look(flux3_klein()), look(encoder, "t.safetensors")
    assert pairing.fits(model, TEXT_ENCODER, encoder) is fits
    assert pairing.fits(model, TEXT_ENCODER, encoder, named=True) is named


def test_it_takes_the_vae_of_flux2(look):
    model = look(flux3_klein())
    assert [pairing.fits(model, VAE, look(flux2_vae(channels), "v.safetensors")) for channels in (32, 16)] == [True, False]


def misfit(model, encoder):
    return str(pairing.misfit(model, TEXT_ENCODER, encoder, ["qwen3vl_4b_bf16.safetensors"]))


def test_an_encoder_of_the_other_klein_is_refused_with_the_reason(look):
    flux3 = look(flux3_klein(), "flux3.safetensors")
    for layers in (36, 27):
        assert misfit(flux3, look(qwen3(layers=layers), "qwen_3_4b.safetensors")) == (
            "Expected `text_encoder` to be a Qwen3-VL of width 2560 and at least 32 layers for flux3.safetensors "
            f"(FLUX 3 Image Klein 5.5B, text input 20480 wide), but qwen_3_4b.safetensors is Qwen3 of width 2560 and {layers} "
            "layers, which has the same shapes but another rope θ (1,000,000, not 5,000,000), so the pictures would be wrong; "
            "these fit: qwen3vl_4b_bf16.safetensors."
        )
    nine = look(klein(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288), "nine.safetensors")
    vl = look(qwen3_vl(), "qwen3vl_4b_bf16.safetensors")
    assert not pairing.fits(nine, TEXT_ENCODER, vl)
    four = look(klein(), "four.safetensors")
    assert not pairing.fits(four, TEXT_ENCODER, vl) and not pairing.fits(four, TEXT_ENCODER, vl, named=True)
    assert not pairing.matches(four, TEXT_ENCODER, vl)
    assert str(pairing.misfit(four, TEXT_ENCODER, vl, ["qwen_3_4b.safetensors"])) == (
        "Expected `text_encoder` to be a Qwen3 of width 2560 and at least 27 layers for four.safetensors (FLUX.2 [klein] 4B, "
        "text input 7680 wide), but qwen3vl_4b_bf16.safetensors is Qwen3-VL of width 2560 and 36 layers, which has the same "
        "shapes but another rope θ (5,000,000, not 1,000,000), so the pictures would be wrong; these fit: "
        "qwen_3_4b.safetensors."
    )
    # One that is too short for FLUX 3 may be chosen for FLUX.2, as before.
    short = look(qwen3_vl(layers=28), "short.safetensors")
    assert pairing.fits(four, TEXT_ENCODER, short, named=True) and not pairing.fits(four, TEXT_ENCODER, short)


def test_the_prompt_upsampler_is_named(look):
    upsampler = {
        "model.language_model.layers.0.linear_attn.A_log": ("F32", (32,)),
        "model.language_model.layers.0.input_layernorm.weight": ("BF16", (4096,)),
    }
    sentence = misfit(look(flux3_klein()), look(upsampler, "qwen3.5_9b_flux3_prompt_upsampler_bf16.safetensors"))
    assert "is Qwen3.5 of width 4096" in sentence and "prompt upsampler" in sentence and "TextGenerate" in sentence


def test_what_to_install():
    for name in ("flux3-image-klein-base-bf16", "flux-3-image-klein", "myFlux3Klein_v2"):
        assert "No Qwen3-VL is installed: put qwen3vl_4b_bf16.safetensors into" in pairing.none_installed(
            TEXT_ENCODER, f"{name}.safetensors"
        )
    assert "No Qwen3 is installed" in pairing.none_installed(TEXT_ENCODER, "flux-2-klein-4b.safetensors")


def test_order_of_preference(look):
    model = look(flux3_klein())
    names = ["aa", "qwen3vl_4b_int8_convrot", "qwen3vl_4b_bf16"]
    found = [look(qwen3_vl(layers=32), f"{name}.safetensors") for name in names]
    found.sort(key=lambda checkpoint: pairing.rank(model, checkpoint))
    assert [pairing.stem_of(checkpoint.name) for checkpoint in found] == names[::-1]


def told(look, distilled, encoder, trim=True):
    model = look(flux3_klein(distilled=distilled), "flux3.safetensors")
    return paragraph(
        model,
        look(encoder, "t.safetensors"),
        look(flux2_vae(), "v.safetensors"),
        variant_of(model, "auto", None),
        trim=trim,
        ignore_cfg=True,
        chosen=(),
    )


def test_info(look):
    base, distilled = told(look, False, qwen3_vl()), told(look, True, qwen3(layers=32))
    assert "flux3.safetensors is FLUX 3 Image Klein 5.5B, bf16, 11.08 GB." in base
    assert "; 50 steps and cfg 3.5. Black Forest Labs' README says cfg 4." in base
    assert "Qwen3-VL of width 2560, bf16, 32 of its 36 layers. VAE: v.safetensors" in base
    assert "Qwen3 of width 2560, bf16, all 32 layers." in distilled
    assert "; 16 steps and cfg 1. A cfg above 1 counts as 1." in distilled
    assert "It counts as a Qwen3-VL because you chose it: its tensors do not tell." in distilled


def test_final_modulation_changes_halves():
    weight, key = torch.arange(6.0)[:, None], "final_layer.image.adaLN_modulation.1.weight"
    assert original_weight(FLUX3_KLEIN, key, [weight]).flatten().tolist() == [3, 4, 5, 0, 1, 2]
    assert original_weight(FLUX3_KLEIN, "txt_in.weight", [weight]) is weight


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        write(tmp_path / "klein/transformer/diffusion_pytorch_model.safetensors", published(diffusers=True))
        return tmp_path / "klein"

    @pytest.mark.parametrize("name", ["modular_model_index.json", "model_index.json"])
    @pytest.mark.parametrize("pipeline", ["Flux3ModularPipeline", "Flux3DistilledModularPipeline", "SomebodysPipeline"])
    def test_told_by_pipeline_or_transformer(self, folder, name, pipeline):
        (folder / name).write_text(json.dumps({"_class_name": pipeline}))
        (folder / "transformer/config.json").write_text(json.dumps({"_class_name": "Flux3Transformer2DModel"}))
        write(folder / "text_encoder/model.safetensors", qwen3_vl())
        write(folder / "vae/diffusion_pytorch_model.safetensors", flux2_vae())
        found = inspect_folder(folder)
        assert found.parts.keys() == {MODEL, TEXT_ENCODER, VAE}
        assert pairing.check_model(found.parts[MODEL]) is FLUX3_KLEIN
        assert variant_of(found.parts[MODEL], "auto", None).name == "distilled"

    def test_a_modular_pipeline_may_be_a_transformer_alone(self, folder):
        (folder / "modular_model_index.json").write_text('{"_class_name": "Flux3ModularPipeline"}')
        assert inspect_folder(folder).parts.keys() == {MODEL}

    def test_of_another_model(self, folder):
        (folder / "modular_model_index.json").write_text('{"_class_name": "WanModularPipeline"}')
        with pytest.raises(CheckpointError, match="for 'WanModularPipeline', not for"):
            inspect_folder(folder)

    @pytest.mark.parametrize("name", [[], {}, None, 3])
    def test_a_class_that_is_no_name(self, folder, name):
        (folder / "model_index.json").write_text('{"_class_name": "SomebodysPipeline"}')
        (folder / "transformer/config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(CheckpointError, match="for 'SomebodysPipeline', not for"):
            inspect_folder(folder)
