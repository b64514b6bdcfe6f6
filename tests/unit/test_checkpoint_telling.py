"""What tells a file from a similar one: the word klein, the length of a name, the scales of fp8."""

import files
import pytest
from files import klein, write
from kleinkit.checkpoint import pairing
from kleinkit.checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, inspect
from kleinkit.checkpoint.variant import decide, variant_of

LAYER = "double_blocks.0.img_attn.qkv"


@pytest.fixture
def look(tmp_path):
    return lambda name, tensors: inspect(write(tmp_path / name, tensors))


@pytest.mark.parametrize("word, variant", [("base", "base"), ("undistilled", "base"), ("distilled", "distilled"), ("kv", "KV")])
def test_a_word_counts_beside_klein_and_not_without(word, variant):
    """A name without klein is any model's: what its other words mean there is not known."""
    for note in ({}, {"is_distilled": "true"}, {"is_distilled": "false"}):
        assert decide(f"my-klein-{word}.safetensors", note).name == variant
        assert f"name says {'that it is not distilled' if word == 'undistilled' else word.replace('kv', 'KV')}" in (
            decide(f"my-klein-{word}.safetensors", note).reason
        )
    assert decide(f"my-model-{word}.safetensors", {"is_distilled": "true"}).distilled
    assert not decide(f"my-model-{word}.safetensors", {"is_distilled": "false"}).distilled
    assert decide(f"my-model-{word}.safetensors", {"is_distilled": "true"}).reason == "its metadata say so"
    alone = decide(f"my-model-{word}.safetensors", {})
    assert not alone.distilled and not alone.kv and alone.reason.startswith("a guess: neither its name")


def test_klein_alone_is_a_guess_at_distilled():
    for name in ("klein", "MyKlein_v2", "kleinart"):
        assert decide(f"{name}.safetensors", {}).distilled


def test_the_shorter_name_comes_first_whatever_the_alphabet_says(look):
    model = look("m.safetensors", klein())
    found = [look(f"{name}.safetensors", files.qwen3(layers=27)) for name in ("aaa", "zz", "y", "b")]
    found.sort(key=lambda checkpoint: pairing.rank(model, checkpoint))
    assert [checkpoint.name for checkpoint in found] == [f"{name}.safetensors" for name in ("b", "y", "zz", "aaa")]


@pytest.mark.parametrize("dtype, name", [("F8_E4M3", "fp8_e4m3fn"), ("F8_E5M2", "fp8_e5m2")])
@pytest.mark.parametrize(
    "scale", [None, f"{LAYER}.weight_scale", f"{LAYER}.scale_weight", "scaled_fp8", "model.diffusion_model.scaled_fp8"]
)
def test_fp8_is_scaled_where_there_are_scales(look, dtype, name, scale):
    prefix = "model.diffusion_model." if scale and scale.startswith("model.") else ""
    tensors = klein(dtype=dtype, prefix=prefix) | ({scale: ("F32", (1,))} if scale else {})
    assert look("m.safetensors", tensors).parts[MODEL].weights == ("fp8 scaled" if scale else name)


@pytest.mark.parametrize("dtype, name", [("BF16", "bf16"), ("F16", "fp16"), ("F32", "fp32")])
def test_scales_beside_other_weights_say_nothing_of_fp8(look, dtype, name):
    tensors = klein(dtype=dtype) | {f"{LAYER}.weight_scale": ("F32", (1,))}
    assert look("m.safetensors", tensors).parts[MODEL].weights == name


@pytest.mark.parametrize("name", ["klein-de-distilled", "klein_dedistilled", "KleinUndistilled", "klein-non-distilled-v2"])
def test_what_is_undone_is_base(name):
    assert decide(f"{name}.safetensors", {}).reason == "its name says that it is not distilled"
    assert not decide(f"{name}.safetensors", {"is_distilled": "true"}).distilled


def test_words_of_a_folder_count_for_nothing():
    for name in ("klein-base/finetune.safetensors", "klein-base\\finetune.safetensors"):
        assert decide(name, {}).reason.startswith("a guess: neither its name")
    for name in ("distilled/my-klein-base.safetensors", "distilled\\my-klein-base.safetensors"):
        assert decide(name, {}).reason == "its name says base"


def test_where_name_and_metadata_differ_the_name_counts_and_both_are_said():
    def reason(word, says):
        return decide(f"klein-{word}.safetensors", {"is_distilled": says} if says else {}).reason

    assert reason("distilled", "false") == "its name says distilled, though its metadata say base"
    assert reason("distilled", "true") == reason("distilled", None) == "its name says distilled"
    assert reason("base", "true") == "its name says base, though its metadata say distilled"
    assert reason("base", "false") == reason("base", None) == "its name says base"


def test_a_diffusers_folder_decides():
    for says in (True, False):
        found = decide("klein-base/model_index.json", {"is_distilled": str(not says)}, folder_says=says)
        assert found.distilled is says and found.reason == "its model_index.json says so"


def test_of_flux2_the_user_decides_or_else_its_name(look):
    found = look("flux-2-klein-base-4b.safetensors", klein())
    assert variant_of(found, "auto", None) == decide(found.name, {}) and variant_of(found, "auto", None).name == "base"
    assert variant_of(found, "auto", True).distilled
    for wanted in ("base", "distilled"):
        variant = variant_of(found, wanted, wanted == "base")
        assert (variant.name, variant.reason) == (wanted, "as `variant` says")


def test_what_to_install_goes_by_the_size_in_the_models_name():
    four, nine = "qwen_3_4b.safetensors", "qwen_3_8b.safetensors"
    for name, wanted in (("flux-2-klein-4b", [four]), ("myKlein9Bv2", [nine]), ("my-klein", [four, nine])):
        text = pairing.none_installed(TEXT_ENCODER, f"{name}.safetensors")
        assert [file for file in (four, nine) if file in text] == wanted and "models/text_encoders" in text
    assert "flux2-vae.safetensors into models/vae" in pairing.none_installed(VAE, "flux-2-klein-4b.safetensors")


def test_a_name_is_likelier_the_more_it_shares_with_the_published_ones(look):
    model = look("m.safetensors", klein())
    encoders = [pairing.likeness(model, TEXT_ENCODER, f"{name}.safetensors") for name in ("qwen_3_4b", "qwen3", "t5")]
    # Of qwen, 3, 4 and b all and their three pairs; two and one pair; none.
    assert encoders == [7, 3, 0]
    nine = look("nine.safetensors", klein(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288))
    four, eight = (pairing.likeness(nine, TEXT_ENCODER, f"{name}.safetensors") for name in ("qwen_3_4b", "qwen_3_8b"))
    assert eight > four
    vaes = [pairing.likeness(model, VAE, f"{name}.safetensors") for name in ("my-flux2-vae", "a-vae", "qwen_3_4b")]
    assert vaes[0] > vaes[1] > vaes[2]
