"""One sampling run in the real ComfyUI, and the same run by diffusers' transformer, on the same weights."""

import torch

TEXT_TOKENS = 512


def embeddings(text_width, seed, batch=1):
    """A conditioning that stands for a prompt: [batch, 512, text_width] float32, a tenth of noise."""
    return torch.randn(batch, TEXT_TOKENS, text_width, generator=torch.Generator().manual_seed(seed)) * 0.1


def longer(text):
    """A prompt of more tokens than ComfyUI fills every prompt up to, so that it shares a call with none of those."""
    return torch.cat([text, text[:, :32]], dim=1)


def latent_noise(height, width, batch=1, seed=7):
    """Noise of a picture of height × width pixels: [batch, 128, height/16, width/16]."""
    return torch.randn(batch, 128, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))


def far(ours, theirs):
    """The largest difference between two latents, as a share of the second's largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def warnings(caplog):
    """What was warned of in a test, from pytest's `caplog`."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def conditioning(tensor, **values):
    """A ComfyUI conditioning; as CLIPTextEncode makes it for Klein, without a pooled output."""
    return [[tensor, {"pooled_output": None, **values}]]


def short(model):
    """Make a model read the last 32 of a prompt's tokens, for a quarter of the time; the model.

    ComfyUI fills every prompt up to 512 tokens, at its front. tests/reference runs all of them.
    """

    def shorten(module, args, kwargs):
        return args, kwargs | {"context": kwargs["context"][:, -32:]}

    model.model.diffusion_model.register_forward_pre_hook(shorten, with_kwargs=True)
    return model


def small_klein(seed=0, **shape):
    """`random_klein` that is `short`."""
    from kleinkit.nano.in_comfyui import random_klein

    return short(random_klein(seed, **shape))


svd = torch.linalg.svd


def exact_svd(matrices, **options):
    """`torch.linalg.svd` in float64, rounded: in float32 diffusers' TCFG is off by up to 2e-4."""
    return tuple(part.to(matrices.dtype) for part in svd(matrices.double(), **options))


def with_nodes(run_node, model, *nodes):
    """The model behind a chain of nodes: `with_nodes(run_node, model, ("KleinKitRenorm", {"mode": …}), …)`.

    Inputs that are left out have their schema's defaults.
    """
    for node, inputs in nodes:
        model = run_node(node, model=model, **inputs)[0]
    return model


def comfy_run(model, sigmas, noise, positive, negative, cfg, sampler="euler", latent=None, **kwargs):
    """Sample with ComfyUI's own `comfy.samplers.sample`, as KSampler and SamplerCustom do.

    Args:
        model: `ModelPatcher`.
        sigmas: [n + 1] float32.
        noise: [B, 128, H/16, W/16].
        positive, negative: ComfyUI conditionings.
        cfg: of the sampler.
        sampler: a name of ComfyUI's list, or a sampler object.
    Returns:
        The latent, [B, 128, H/16, W/16].
    """
    from kleinkit.nano.in_comfyui import sample

    return sample(model, sigmas, noise, positive, negative, cfg, sampler, latent, **kwargs)


def diffusers_transformer(weights, dtype=torch.float32):
    """diffusers' own `Flux2Transformer2DModel` with the weights of an original-key FLUX.2 file.

    Args:
        weights: `{key: tensor}`.
    """
    from diffusers import Flux2Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    hidden, text_width = weights["txt_in.weight"].shape
    count = {
        kind: len({key.split(".")[1] for key in weights if key.startswith(f"{kind}_blocks.")}) for kind in ("double", "single")
    }
    model = Flux2Transformer2DModel(
        attention_head_dim=128,
        num_attention_heads=hidden // 128,
        num_layers=count["double"],
        num_single_layers=count["single"],
        joint_attention_dim=text_width,
        in_channels=weights["img_in.weight"].shape[1],
        guidance_embeds=False,
        axes_dims_rope=(32, 32, 32, 32),
        rope_theta=2000,
    )
    model.load_state_dict(convert_flux2_transformer_checkpoint_to_diffusers(dict(weights)))
    return model.to(dtype).eval()


def diffusers_velocity(transformer, x, sigma, text, references=()):
    """The velocity that diffusers' transformer predicts, called as `Flux2KleinPipeline` calls it.

    Args:
        x: [B, 128, h, w].
        sigma: a float.
        text: [B, L, text width].
        references: latents [1, 128, h, w] of reference images.
    Returns:
        [B, 128, h, w].
    """
    from diffusers import Flux2KleinPipeline as pipeline

    batch, _, height, width = x.shape
    tokens, ids = x.flatten(2).transpose(1, 2), pipeline._prepare_latent_ids(x)
    if references:
        tokens = torch.cat([tokens, *(r.flatten(2).transpose(1, 2).expand(batch, -1, -1) for r in references)], dim=1)
        ids = torch.cat([ids, pipeline._prepare_image_ids(list(references)).expand(batch, -1, -1)], dim=1)
    with torch.no_grad():
        out = transformer(
            hidden_states=tokens,
            timestep=torch.full((batch,), sigma, dtype=x.dtype),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=pipeline._prepare_text_ids(text),
            img_ids=ids,
            return_dict=False,
        )[0]
    return out[:, : height * width].transpose(1, 2).reshape(x.shape)


def diffusers_run(sigmas, noise, velocity):
    """Sample with diffusers' `FlowMatchEulerDiscreteScheduler` over given sigmas.

    Args:
        sigmas: [n + 1] float32, ending in 0.
        noise: [B, 128, h, w].
        velocity: `(x, sigma, step) -> [B, 128, h, w]`.
    Returns:
        [B, 128, h, w].
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    x = noise
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(x, float(scheduler.sigmas[i]), i), t, x, return_dict=False)[0]
    return x
