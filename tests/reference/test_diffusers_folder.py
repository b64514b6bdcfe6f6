"""A tiny `Flux2KleinPipeline` that diffusers saves, through KleinKitLoader: the same tensors, the same picture."""

import os
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

PROMPT = "a red circle on a blue square"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)


@pytest.fixture(scope="module")
def pipeline(comfy):
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=192,
        in_channels=128,
        guidance_embeds=False,
    )
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=29,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )
    vae = AutoencoderKLFlux2()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    tokenizer = Qwen2TokenizerFast.from_pretrained(
        os.path.join(os.path.dirname(comfy.__file__), "comfy/text_encoders/qwen25_tokenizer")
    )
    tokenizer.chat_template = CHAT
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = Flux2KleinPipeline(scheduler, vae, text_encoder, tokenizer, transformer, is_distilled=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def load(pipeline, comfy, tmp_path_factory):
    import folder_paths

    base = tmp_path_factory.mktemp("diffusers")
    pipeline.save_pretrained(base / "whole")
    shutil.copytree(
        base / "whole", base / "shards", copy_function=os.link, ignore=shutil.ignore_patterns("transformer", "text_encoder")
    )
    for part, size in (("transformer", "2MB"), ("text_encoder", "30MB")):
        getattr(pipeline, part).save_pretrained(base / "shards" / part, max_shard_size=size)
        assert len(list((base / "shards" / part).glob("*.safetensors"))) > 1
    folder_paths.add_model_folder_path("diffusers", str(base))

    def load(name):
        inputs = dict(
            text_encoder="auto",
            vae="auto",
            variant="auto",
            weight_dtype="default",
            distilled_cfg="ignore",
            trim_text_encoder=True,
        )
        node = comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"]
        return node.execute(diffusion_model=f"{name}/model_index.json", **inputs).result

    yield load
    folder_paths.folder_names_and_paths["diffusers"][0].remove(str(base))


@pytest.fixture(scope="module")
def loaded(load):
    return load("whole")


def test_variant_is_the_pipelines(pipeline, loaded):
    assert pipeline.config.is_distilled is False
    assert loaded[3:5] == (50, 4.0)
    assert "Variant: base, its model_index.json says so" in loaded[5]


def test_embeddings(pipeline, loaded):
    clip = loaded[1]
    ours = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
    with torch.no_grad():
        theirs = pipeline._get_qwen3_prompt_embeds(pipeline.text_encoder, pipeline.tokenizer, PROMPT)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_picture(pipeline, loaded):
    import comfy.sample
    import comfy.samplers

    model, clip, vae = loaded[:3]
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    noise = torch.randn(1, 128, 2, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pipeline(
            prompt_embeds=positive[0][0],
            negative_prompt_embeds=negative[0][0],
            width=64,
            height=32,
            latents=noise.clone(),
            num_inference_steps=4,
            guidance_scale=4.0,
            output_type="pt",
        ).images.movedim(1, -1)
    latent = comfy.sample.sample_custom(
        model,
        noise,
        4.0,
        comfy.samplers.sampler_object("euler"),
        pipeline.scheduler.sigmas,
        positive,
        negative,
        torch.zeros_like(noise),
    )
    ours = vae.decode(latent)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-4


def test_shards_hold_the_same(loaded, load):
    for whole, shards in zip(loaded[:3], load("shards")[:3], strict=True):
        ours, theirs = (getattr(part, "patcher", part).model.state_dict() for part in (whole, shards))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), key
