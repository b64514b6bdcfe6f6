"""The trimmed text encoder against ComfyUI's CLIPLoader on the same file: equal embeddings, a quarter fewer layers."""

import functools
import re

import pytest
import torch
from files import klein, qwen3, write
from kleinkit.checkpoint.header import read_header
from loader import link_models, load, record_reads, use_models
from quantise import quantised
from safetensors.torch import load_file

PROMPTS = {
    "empty": "",
    "short": "a red circle on a blue square",
    "emoji": "🦊 in the 雪, ñandú — ½ € \u200b\u202e",
    "weights": "(a red circle:1.5), ((blue)) [square] \\(plain\\) (unclosed",
    "chat marks": "<|im_end|>\n<|im_start|>user\n{} {0} <think>",
    "long": "an old fisherman mends his net " * 80,
}
EMBEDDINGS = "model.embed_tokens.weight"
UNUSED = re.compile(r"model\.layers\.(2[7-9]|3\d)\.|model\.norm\.|lm_head")
# A tiny Qwen3, except for the width, by which ComfyUI knows it.
CONFIG = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64}
VOCABULARY = 500
TOKENS = [[(number * 37 % VOCABULARY, 1.0) for number in range(40)]]


@functools.cache
def weights(hidden=2560, layers=36, vocabulary=VOCABULARY):
    """Random weights of a Qwen3, float16; without its embeddings when the vocabulary is None."""
    random = torch.Generator().manual_seed(0)
    shapes = qwen3(hidden=hidden, layers=layers, heads=1, kv_heads=1, intermediate=64, vocabulary=vocabulary)
    return {
        name: torch.ones(shape, dtype=torch.float16)
        if len(shape) == 1
        else (torch.randn(shape, generator=random) / shape[1] ** 0.5).half()
        for name, (_, shape) in shapes.items()
        if None not in shape
    }


@pytest.fixture(scope="module")
def installed(comfy, models, tmp_path_factory):
    """An installation with a tiny Klein for either text encoder; its folder of text encoders."""
    base = tmp_path_factory.mktemp("text_encoder") / "models"
    with pytest.MonkeyPatch.context() as patch:
        use_models(patch, base)
        for size, hidden in (("4b", 2560), ("9b", 4096)):
            write(
                base / f"diffusion_models/flux-2-klein-{size}.safetensors",
                klein(hidden=128, double_blocks=1, single_blocks=1, text_width=3 * hidden, dtype="F32"),
            )
        link_models(models, base, "vae")
        yield base / "text_encoders"


@pytest.fixture(scope="module")
def file(installed):
    """A Qwen3 with the whole vocabulary; of its embeddings, those that the prompts need are not zeros."""
    from comfy.text_encoders.flux import KleinTokenizer

    tokenizer, random = KleinTokenizer(), torch.Generator().manual_seed(1)
    tokens = {token for prompt in PROMPTS.values() for token, _ in tokenizer.tokenize_with_weights(prompt)["qwen3_4b"][0]}
    rows = {token: torch.randn(2560, generator=random).half() for token in sorted(tokens)}
    return write(
        installed / "qwen_3_4b.safetensors",
        {EMBEDDINGS: ("F16", (151936, 2560)), **weights(vocabulary=None)},
        rows={EMBEDDINGS: rows},
    )


def reference(file, kind="qwen3_4b", **config):
    """The text encoder that CLIPLoader makes of a file for FLUX.2, told how tiny it is."""
    import comfy.sd

    return comfy.sd.load_clip(
        [str(file)], clip_type=comfy.sd.CLIPType.FLUX2, model_options={f"{kind}_model_config": CONFIG | config}
    )


@pytest.fixture(scope="module")
def theirs(file):
    return reference(file)


@pytest.fixture(scope="module")
def loader(comfy):
    def loader(file, size="4b", **inputs):
        def run(node_id, **values):
            return comfy.NODE_CLASS_MAPPINGS[node_id].execute(**values).result

        return load(run, f"flux-2-klein-{size}.safetensors", text_encoder=file.name, **inputs)

    return loader


def read_and_loaded(file, loader, **inputs):
    """`(the names of the tensors that were read, what KleinKitLoader outputs)`."""
    with pytest.MonkeyPatch.context() as patch:
        reads = record_reads(patch)
        outputs = loader(file, **inputs)
    return reads[file.name], outputs


@pytest.fixture(scope="module")
def trimmed(file, loader):
    return read_and_loaded(file, loader)


@pytest.fixture(scope="module")
def untrimmed(file, loader):
    return read_and_loaded(file, loader, trim_text_encoder=False)


@pytest.fixture(scope="module")
def ours(trimmed):
    return trimmed[1][1]


def embed(clip, tokens):
    [[embedding, _]] = clip.encode_from_tokens_scheduled(tokens)
    return embedding


def embed_prompt(clip, prompt):
    return embed(clip, clip.tokenize(prompt))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_are_bit_equal(ours, theirs, prompt):
    embedding = embed_prompt(ours, PROMPTS[prompt])
    assert embedding.shape[1] >= 512 and embedding.shape[2] == 3 * 2560
    assert embedding.std() > 0
    assert torch.equal(embedding, embed_prompt(theirs, PROMPTS[prompt]))


def test_long_prompts_are_not_cut(ours):
    assert len(ours.tokenize(PROMPTS["long"])["qwen3_4b"][0]) > 512


def test_unused_layers_are_neither_read_nor_kept(trimmed):
    reads, (_, clip, *_) = trimmed
    assert len(reads) == 27 * 11 + 1
    assert not list(filter(UNUSED.search, reads))
    assert not list(filter(UNUSED.search, clip.cond_stage_model.state_dict()))


def test_unused_layers_do_not_run(ours, theirs):
    def layers(clip):
        ran = []
        hooks = [
            module.register_forward_hook(lambda module, *_: ran.append(module))
            for name, module in clip.cond_stage_model.named_modules()
            if re.search(r"\.layers\.\d+$", name)
        ]
        embed(clip, {"qwen3_4b": TOKENS})
        for hook in hooks:
            hook.remove()
        return len(ran)

    assert (layers(ours), layers(theirs)) == (27, 36)


def test_untrimmed_keeps_all(untrimmed):
    reads, (_, clip, *_) = untrimmed
    assert len(reads) == 36 * 11 + 2
    assert any(".layers.35." in key for key in clip.cond_stage_model.state_dict())


def bf16(tensors):
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def fp8(tensors):
    return {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}


def old_scaled_fp8(tensors):
    changed = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            scale = tensor.abs().amax().float() / 448
            changed[name] = (tensor / scale).to(torch.float8_e4m3fn)
            changed[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            changed[name] = tensor
    return changed


def check_bit_equal(file, loader, tensors, size="4b"):
    kind, hidden = f"qwen3_{size[0].replace('9', '8')}b", len(tensors["model.layers.0.input_layernorm.weight"])
    write(file, tensors)
    embedding = embed(loader(file, size)[1], {kind: TOKENS})
    assert embedding.shape == (1, 40, 3 * hidden)
    assert embedding.std() > 0
    theirs = reference(file, kind, num_hidden_layers=28, vocab_size=VOCABULARY)
    assert torch.equal(embedding, embed(theirs, {kind: TOKENS}))


@pytest.mark.parametrize("hidden, size", [(2560, "4b"), (4096, "9b")])
def test_bit_equal_for_either_model(installed, loader, hidden, size):
    check_bit_equal(installed / f"{hidden}.safetensors", loader, weights(hidden, layers=28), size)


@pytest.mark.parametrize("change", [bf16, fp8, old_scaled_fp8])
def test_bit_equal_in_other_dtypes(installed, loader, change):
    check_bit_equal(installed / f"{change.__name__}.safetensors", loader, change(weights(layers=28)))


def test_bit_equal_in_comfyuis_quantisations(installed, loader):
    from comfy.quant_ops import QUANT_ALGOS

    assert {"float8_e4m3fn", "nvfp4"} <= QUANT_ALGOS.keys()
    for form in QUANT_ALGOS:
        check_bit_equal(installed / f"{form}.safetensors", loader, quantised(weights(layers=28), form))


@pytest.fixture(scope="module")
def plain_embedding(installed):
    """What CLIPLoader's text encoder makes of the tokens."""
    plain = write(installed / "plain.safetensors", weights(layers=28))
    return embed(reference(plain, num_hidden_layers=28, vocab_size=VOCABULARY), {"qwen3_4b": TOKENS})


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_language_part_of_qwen3_vl(installed, loader, plain_embedding, prefix):
    tensors = weights(layers=28)
    visual = {
        "model.visual.deepstack_merger_list.0.norm.weight": torch.ones(64, dtype=torch.float16),
        "model.visual.merger.linear_fc2.weight": torch.ones(2560, 64, dtype=torch.float16),
    }
    renamed = {key.replace("model.", prefix, 1): tensor for key, tensor in tensors.items()}
    _, clip, *_, info = loader(write(installed / "vl.safetensors", renamed | visual))
    assert "Qwen3-VL of width 2560" in info
    assert torch.equal(embed(clip, {"qwen3_4b": TOKENS}), plain_embedding)


def test_last_layer_has_no_effect_as_in_comfyui(ours, theirs, run_node):
    tokens = {"qwen3_4b": TOKENS}
    for clip in (ours, theirs):
        [earlier] = run_node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)
        assert torch.equal(embed(earlier, tokens), embed(clip, tokens))


def test_lora_on_the_encoder(installed, ours, theirs, run_node):
    random, layer = torch.Generator().manual_seed(2), "text_encoders.qwen3_4b.transformer.model.layers.{}.mlp.up_proj"
    # It trains an unused layer too.
    write(
        installed.parent / "loras/style.safetensors",
        {
            f"{layer.format(number)}.{side}.weight": torch.randn(shape, generator=random) / 10
            for number in (3, 26, 30)
            for side, shape in (("lora_up", (64, 4)), ("lora_down", (4, 2560)))
        },
    )
    tokens = {"qwen3_4b": TOKENS}
    styled = [
        embed(
            run_node("LoraLoader", model=None, clip=clip, lora_name="style.safetensors", strength_model=0.0, strength_clip=0.8)[
                1
            ],
            tokens,
        )
        for clip in (ours, theirs)
    ]
    assert torch.equal(*styled)
    assert not torch.equal(styled[0], embed(ours, tokens))


def test_generating_text_needs_all_layers(ours, run_node):
    with pytest.raises(ValueError, match=r"Klein Loader: a trimmed text encoder .* turn `trim_text_encoder` off\."):
        run_node("TextGenerate", clip=ours, prompt="fox", max_length=2, sampling_mode={"sampling_mode": "off"})


@pytest.mark.parametrize("node", ["CLIPSave", "CheckpointSave"])
def test_saving_needs_all_layers(untrimmed, ours, run_node, tmp_path, monkeypatch, node):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    _, (model, whole, vae, *_) = untrimmed
    rest = dict(model=model, vae=vae) if node == "CheckpointSave" else {}
    # A LoRA or CLIPSetLastLayer between the two makes a clone.
    for clip in (ours, ours.clone()):
        with pytest.raises(ValueError, match=r"Klein Loader: a trimmed text encoder cannot be saved, .* turn `trim_text_en"):
            run_node(node, clip=clip, filename_prefix="trimmed", **rest)
    assert not list(tmp_path.glob("trimmed*"))
    run_node(node, clip=whole, filename_prefix="whole", **rest)
    assert any(".layers.35." in key for key in read_header(next(tmp_path.glob("whole*"))).tensors)


MERGES = {"CLIPMergeSimple": dict(ratio=0.25), "CLIPMergeAdd": {}, "CLIPMergeSubtract": dict(multiplier=0.5)}


def test_merged_into_a_whole_one_and_saved(installed, loader, run_node, tmp_path, monkeypatch):
    """A trimmed encoder, or a clone of it, gives a merge what a whole one gives: also the layers that it leaves out itself."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    one, other = ({name: tensor * scale for name, tensor in weights(layers=28).items()} for scale in (1, 0.7))
    into = loader(write(installed / "one.safetensors", one), trim_text_encoder=False)[1]
    file = write(installed / "other.safetensors", other)
    trimmed, whole = (loader(file, trim_text_encoder=trim)[1] for trim in (True, False))
    for node, inputs in MERGES.items():
        saved = []
        for name, given in (("trimmed", trimmed), ("whole", whole)):
            [merged] = run_node(node, clip1=into, clip2=given, **inputs)
            run_node("CLIPSave", clip=merged, filename_prefix=name)
            [path] = tmp_path.glob(f"{name}*")
            saved.append(load_file(path))
            path.unlink()
        ours, theirs = saved
        assert ours.keys() == theirs.keys()
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
        for key in ("model.layers.27.mlp.up_proj.weight", "model.norm.weight"):
            assert not torch.equal(ours[f"qwen3_4b.transformer.{key}"], one[key])
        trimmed = trimmed.clone()


def test_untrimmed_generates_as_clip_loaders_does(untrimmed, theirs, run_node):
    _, (_, whole, *_) = untrimmed
    texts = [
        run_node("TextGenerate", clip=clip, prompt=PROMPTS["short"], max_length=3, sampling_mode={"sampling_mode": "off"})
        for clip in (whole, theirs)
    ]
    assert texts[0] == texts[1]
