"""Variants, pairs, and the names of tensors."""

import json

import files
import pytest
from files import flux2_vae, flux3_klein, klein, write
from kleinkit.checkpoint import pairing, qwen3
from kleinkit.checkpoint.diffusers_folder import inspect_folder
from kleinkit.checkpoint.families import FLUX2_KLEIN, FLUX3_KLEIN
from kleinkit.checkpoint.header import CheckpointError
from kleinkit.checkpoint.info import paragraph
from kleinkit.checkpoint.inspection import TEXT_ENCODER, VAE, inspect, inspect_taef2
from kleinkit.checkpoint.klein import layout
from kleinkit.checkpoint.variant import Variant, decide

NINE = dict(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288)


@pytest.fixture
def look(tmp_path):
    return lambda name, tensors, **kwargs: inspect(write(tmp_path / name, tensors, **kwargs))


@pytest.mark.parametrize(
    "name, metadata, folder_says, expected",
    [
        # The published names: https://huggingface.co/Comfy-Org and black-forest-labs.
        *[
            (f"flux-2-klein-{base}{size}{form}.safetensors", {}, None, "base" if base else "distilled")
            for base in ("", "base-")
            for size in ("4b", "9b")
            for form in ("", "-fp8", "-nvfp4")
        ],
        *[(f"flux-2-klein-9b-kv{form}.safetensors", {}, None, "KV") for form in ("", "-fp8")],
        ("sub/FLUX-2-klein-base-4B.safetensors", {}, None, "base"),
        ("my-klein-base-v2.safetensors", {}, None, "base"),
        ("my_klein_kv.safetensors", {}, None, "KV"),
        ("my-klein-v2.safetensors", {}, None, "distilled"),
        ("my-klein-v2.safetensors", {"is_distilled": "false"}, None, "base"),
        ("finetune.safetensors", {"is_distilled": "true"}, None, "distilled"),
        ("finetune.safetensors", {}, None, "base"),
        ("database-klein.safetensors", {}, None, "distilled"),
        ("flux-2-klein-4b", {}, False, "base"),
        ("flux-2-klein-base-4b", {}, True, "distilled"),
    ],
)
def test_variant(name, metadata, folder_says, expected):
    variant = decide(name, metadata, folder_says=folder_says)
    assert variant.name == expected
    assert (variant.steps, variant.cfg) == ((50, 4.0) if expected == "base" else (4, 1.0))


NAMES = {
    "base": """flux2Klein_base4b klein9Bbase flux2Klein_9bBase flux2_klein_base4b klein9bbase kleinbasev2 klein4base
        FLUX2KLEINBASE4B FLUX2_KLEIN_9BBASEv2 kleinBaseV2_fp8 kleinbasefp8 BaseKlein4B baseklein9b klein4bBaseFp8 klein_BASE
        klein_4b_Base_nvfp4 my.klein.base.v1 kleinBaseModel klein-base-merge undistilled-klein KleinUndistilled
        klein_de-distilled_9b kleinNonDistilled flux-2-klein-base-9b.sft flux-2-klein-base-4b-fp8.safetensors
        sub\\flux2Klein_9bBase.safetensors distilled/klein_9b_base.sft FLUX.2-klein-base-4B/transformer
        FLUX.2-klein-base-9B/model_index.json klein9bbasescaled kleinbasefinetune flux2klein9bbasepruned klein4bbaseema
        kleinbasefull klein_undistil klein-no-distill kleinNoDistil klein_without_distillation klein9bbaseloramerged
        klein9bbasegguf klein9bbaseq8 klein4bbaseq4km flux2klein9bbasee4m3fn klein9bbasecomfyui klein9bbaseaio
        klein4bbaseunet klein9bbasensfw klein9bbasecheckpoint svdq-int4_r32-flux.2-klein-base-9b
        FLUX.2-klein-base-4B/transformer/diffusion_pytorch_model.safetensors
        sub\\FLUX.2-klein-base-9B\\transformer\\diffusion_pytorch_model-00001-of-00002.safetensors""",
    "distilled": """database-klein databaseKlein klein-baseline klein-based-merge Klein9b_firebase klein-distilled
        kleinDistilled4B klein_base-distilled_lora flux-2-klein-4b.sft FLUX-2-KLEIN-9B.SFT
        flux-2-klein-9b-nvfp4.safetensors base/klein-v2 FLUX.2-klein-4B/transformer
        FLUX.2-klein-9B/model_index.json klein_basil klein_distil_from_base kleinbasedistillation kleinfirebasescaled
        FLUX.2-klein-4B/transformer/diffusion_pytorch_model.safetensors klein9bbaseball""",
    "KV": "flux-2-klein-9b-kv.sft flux-2-klein-9b-kv-fp8 flux2klein9bkv Flux2Klein9BKV klein_KV_v2 kleinKvFp8 klein9b_KVcache",
}


@pytest.mark.parametrize("variant, name", [(variant, name) for variant, names in NAMES.items() for name in names.split()])
def test_names_of_model_sites(variant, name):
    assert decide(name, {}).name == variant


def test_a_name_without_klein_leaves_it_to_the_metadata():
    assert decide("my-base-v2.safetensors", {"is_distilled": "true"}).name == "distilled"
    assert decide("my-distilled-v2.safetensors", {"is_distilled": "false"}).name == "base"


@pytest.mark.parametrize("name", ["flux-2-klein-4b.sft", "flux-2-klein-base-9b-fp8.SFT", "FLUX.2-klein-9B/transformer"])
def test_official_names(name):
    assert decide(name, {}).reason == "by its official name"


def test_a_guess_says_so():
    assert "guess" in decide("my-klein-v2.safetensors", {}).reason
    assert "guess" in decide("finetune.safetensors", {}).reason
    assert "guess" not in decide("flux-2-klein-4b.safetensors", {}).reason
    assert "metadata say distilled" in decide("my-klein-base.safetensors", {"is_distilled": "true"}).reason


@pytest.mark.parametrize(
    "shape, encoder, does",
    [
        ({}, dict(hidden=2560), True),
        ({}, dict(hidden=4096), False),
        ({}, dict(hidden=2560, layers=26), False),
        ({}, dict(hidden=2560, layers=27), True),
        (NINE, dict(hidden=2560), False),
        (NINE, dict(hidden=4096), True),
    ],
)
def test_text_encoder_fits(look, shape, encoder, does):
    model, text_encoder = look("m.safetensors", klein(**shape)), look("t.safetensors", files.qwen3(**encoder))
    assert pairing.fits(model, TEXT_ENCODER, text_encoder) is does


@pytest.mark.parametrize("channels, does", [(32, True), (16, False), (4, False)])
def test_vae_fits(look, channels, does):
    assert pairing.fits(look("m.safetensors", klein()), VAE, look("v.safetensors", flux2_vae(channels))) is does


def test_order_of_preference(look):
    model = look("m.safetensors", klein())
    visual = {"visual.patch_embed.proj.weight": ("BF16", (1024, 1536))}
    names = ["aaa", "aa", "qwen_3_4b_fp8mixed", "qwen_3_4b", "a-vl"]
    found = [look(f"{name}.safetensors", files.qwen3(layers=27) | (visual if "vl" in name else {})) for name in names]
    found.sort(key=lambda checkpoint: pairing.rank(model, checkpoint))
    assert [checkpoint.name.removesuffix(".safetensors") for checkpoint in found] == [
        "qwen_3_4b",
        "qwen_3_4b_fp8mixed",
        "aa",
        "aaa",
        "a-vl",
    ]


def test_misfit_says_what_to_do(look):
    model = look("flux-2-klein-9b.safetensors", klein(**NINE))
    four = look("qwen_3_4b.safetensors", files.qwen3())
    error = str(pairing.misfit(model, TEXT_ENCODER, four, ["qwen_3_8b.safetensors"]))
    for part in (
        "flux-2-klein-9b.safetensors",
        "4096",
        "qwen_3_4b.safetensors is Qwen3 of width 2560",
        "these fit: qwen_3_8b.safetensors",
    ):
        assert part in error
    assert "rope" not in error
    assert "put qwen_3_8b.safetensors into models/text_encoders" in str(pairing.misfit(model, TEXT_ENCODER, None, []))
    error = str(pairing.misfit(model, VAE, look("ae.safetensors", flux2_vae(16)), []))
    assert "ae.safetensors is FLUX.1's" in error and "put flux2-vae.safetensors into models/vae" in error
    damaged = CheckpointError("x.safetensors is truncated")
    assert str(damaged) in str(pairing.misfit(model, VAE, None, [], [damaged]))
    odd = look("odd.safetensors", klein(text_width=3 * 1000))
    assert str(pairing.misfit(odd, TEXT_ENCODER, None, [])).endswith("put one that fits into models/text_encoders.")


def test_model_is_checked_whole(look):
    pairing.check_model(look("good.safetensors", klein()))
    with pytest.raises(CheckpointError, match=r"flux1\.safetensors is FLUX\.1"):
        pairing.check_model(look("flux1.safetensors", {"double_blocks.0.img_mod.lin.weight": ("BF16", (18432, 3072))}))
    tensors = klein()
    del tensors["double_blocks.3.txt_mlp.2.weight"]
    with pytest.raises(CheckpointError, match=r"cut\.safetensors .* has no double_blocks\.3\.txt_mlp\.2\.weight"):
        pairing.check_model(look("cut.safetensors", tensors))
    odd = {"single_blocks.7.linear1.weight": ("BF16", (100, 3072))}
    with pytest.raises(CheckpointError, match=r"7\.linear1\.weight has the shape \[100, 3072\], not 27648 rows"):
        pairing.check_model(look("odd.safetensors", klein() | odd))
    with pytest.raises(CheckpointError, match=r"7681 wide"):
        pairing.check_model(look("wide.safetensors", klein(text_width=7681)))


@pytest.mark.parametrize(
    "family, blocks, published", [(FLUX2_KLEIN, (5, 20), klein), (FLUX3_KLEIN, (5, 5, 5, 28), flux3_klein)]
)
def test_which_rows_go_by_the_hidden_size(family, blocks, published):
    known = {key: rows for key, (rows, _) in layout(family, blocks, distilled=True).items()}
    shapes = {key: shape for key, (_, shape) in published(hidden=3072).items()}
    assert known == {key: rows // 3072 if rest and rows % 3072 == 0 else None for key, (rows, *rest) in shapes.items()}


def test_quantised_rows_are_not_packed(look):
    packed = {
        "double_blocks.0.img_attn.qkv.weight": ("U8", (9216, 1536)),
        "double_blocks.0.img_attn.qkv.weight_scale_2": ("F32", ()),
    }
    pairing.check_model(look("fp4.safetensors", klein() | packed))


@pytest.mark.parametrize(
    "layers, trim, expected",
    [
        (36, True, {"num_hidden_layers": 27, "final_norm": False, "lm_head": False}),
        (36, False, {"num_hidden_layers": 36}),
        (27, False, {"num_hidden_layers": 27, "final_norm": False, "lm_head": False}),
    ],
)
def test_text_encoder_config(look, layers, trim, expected):
    shape = {
        "hidden_size": 2560,
        "vocab_size": 151936,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    assert qwen3.config(look("t.safetensors", files.qwen3(layers=layers)), trim=trim) == shape | expected


def test_trimmed_keys():
    keys = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.26.mlp.up_proj.weight",
        "model.layers.27.mlp.up_proj.weight",
        "model.layers.35.mlp.up_proj.weight",
        "model.norm.weight",
        "model.lm_head.weight",
    ]
    assert [qwen3.plain_key(key, "", trim=True) for key in keys] == keys[:3] + [None] * 4
    assert [qwen3.plain_key(key, "", trim=False) for key in keys] == keys
    assert qwen3.plain_key("lm_head.weight", "", trim=True) is None
    assert qwen3.plain_key("lm_head.weight", "", trim=False) == "model.lm_head.weight"
    assert qwen3.plain_key("te.model.language_model.layers.3.x", "te.", trim=True) == "model.layers.3.x"
    assert qwen3.plain_key("te.model.visual.x", "te.", trim=False) is None
    assert qwen3.plain_key("other.model.layers.3.x", "te.", trim=False) is None


def test_text_encoder_that_lacks_tensors(look):
    tensors = files.qwen3()
    del tensors["model.layers.20.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"t\.safetensors is damaged: .* no model\.layers\.20\.mlp\.up_proj"):
        qwen3.config(look("t.safetensors", tensors), trim=True)
    with pytest.raises(CheckpointError, match=r"t\.safetensors is damaged"):
        pairing.fits(look("m.safetensors", klein()), TEXT_ENCODER, look("t.safetensors", tensors))
    tensors = files.qwen3()
    del tensors["model.layers.30.mlp.up_proj.weight"]
    qwen3.config(look("t.safetensors", tensors), trim=True)
    with pytest.raises(CheckpointError, match=r"no model\.layers\.30\.mlp\.up_proj"):
        qwen3.config(look("t.safetensors", tensors), trim=False)
    with pytest.raises(CheckpointError, match=r"s\.safetensors has 26 layers, and Klein reads up to layer 27"):
        qwen3.config(look("s.safetensors", files.qwen3(layers=26)), trim=True)


def test_taef2(models, look, tmp_path):
    taef2, model = inspect_taef2(models["vae_encoder"], models["vae_decoder"]), look("m.safetensors", klein())
    assert taef2.parts[VAE].architecture == "TAEF2"
    longest = look("a-vae-of-a-longer-name.safetensors", flux2_vae())
    assert pairing.rank(model, longest) < pairing.rank(model, taef2)
    other = write(tmp_path / "taesd_decoder.safetensors", {"1.weight": ("F16", (64, 4, 3, 3))})
    with pytest.raises(CheckpointError, match=r"taesd_decoder\.safetensors is not TAEF2's"):
        inspect_taef2(models["vae_encoder"], other)


def test_info_is_one_paragraph(look):
    info = paragraph(
        look("flux-2-klein-9b-kv.safetensors", klein(**NINE)),
        look("qwen_3_8b.safetensors", files.qwen3(hidden=4096)),
        look("flux2-vae.safetensors", flux2_vae()),
        Variant(True, "by its official name", kv=True),
        trim=True,
        ignore_cfg=True,
        chosen={TEXT_ENCODER},
        weight_dtype="fp8_e4m3fn",
    )
    assert "\n" not in info and "GGUF" not in info
    for part in (
        "flux-2-klein-9b-kv.safetensors is FLUX.2 [klein] 9B",
        "KV, by its official name",
        "4 steps and cfg 1",
        "FluxKVCache",
        "A cfg above 1 counts as 1",
        "qwen_3_8b.safetensors (chosen by auto)",
        "27 of its 36 layers",
        "flux2-vae.safetensors, FLUX.2's VAE",
    ):
        assert part in info


class TestFolder:
    """The JSON files of a diffusers folder; its tensors are tested against diffusers itself."""

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "klein"
        for name, tensors in (
            ("transformer/diffusion_pytorch_model", {"x_embedder.weight": ("F32", (4, 4))}),
            ("text_encoder/model", files.qwen3()),
            ("vae/diffusion_pytorch_model", flux2_vae()),
        ):
            write(folder / f"{name}.safetensors", tensors)
        self.index(folder, {"_class_name": "Flux2KleinPipeline", "is_distilled": True})
        return folder

    @staticmethod
    def index(folder, content):
        (folder / "model_index.json").write_text(content if isinstance(content, str) else json.dumps(content))

    @pytest.mark.parametrize(
        "content, says",
        [
            ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, True),
            ({"_class_name": "Flux2KleinPipeline", "is_distilled": False}, False),
            ({"_class_name": "Flux2KleinPipeline"}, None),
            ({"_class_name": "Flux2KleinKVPipeline"}, True),
        ],
    )
    def test_is_distilled(self, folder, content, says):
        self.index(folder, content)
        assert inspect_folder(folder).is_distilled is says

    @pytest.mark.parametrize(
        "content, words",
        [
            ({"_class_name": "StableDiffusionXLPipeline"}, "for 'StableDiffusionXLPipeline', not for FLUX.2"),
            ({}, "for 'None'"),
            ("{", "model_index.json is damaged"),
            ("[]", "model_index.json is damaged"),
            ("[" * 100_000, "is damaged"),
        ],
    )
    def test_bad_index(self, folder, content, words):
        self.index(folder, content)
        with pytest.raises(CheckpointError) as error:
            inspect_folder(folder)
        assert words in str(error.value)

    def test_a_folder_in_place_of_an_index(self, folder):
        (folder / "model_index.json").unlink()
        (folder / "model_index.json").mkdir()
        with pytest.raises(CheckpointError, match=r"^model_index\.json cannot be read: Is a directory"):
            inspect_folder(folder)

    @pytest.mark.parametrize(
        "shard, words",
        [
            ("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors does not exist"),
            ("../vae/diffusion_pytorch_model.safetensors", "not a file beside it"),
            ("/etc/passwd", "not a file beside it"),
            ("a.bin", "not a file beside it"),
            (7, "not a file beside it"),
        ],
    )
    def test_bad_shard(self, folder, shard, words):
        (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(CheckpointError) as error:
            inspect_folder(folder)
        assert words in str(error.value)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
    def test_bad_weight_map(self, folder, content):
        (folder / "text_encoder" / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match="has no weight_map"):
            inspect_folder(folder)

    def test_missing_part(self, folder):
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors does not exist .*vae"):
            inspect_folder(folder)

    def test_no_index(self, folder):
        (folder / "model_index.json").unlink()
        with pytest.raises(CheckpointError, match=r"klein has no model_index\.json"):
            inspect_folder(folder)
