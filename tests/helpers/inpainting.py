"""One inpainting run by diffusers' own `Flux2KleinInpaintPipeline`, and the same in the real ComfyUI, on the same weights."""

import torch
from kleinkit.nano.build import transformer
from kleinkit.tests.helpers.sampling import comfy_run, conditioning, diffusers_transformer, embeddings, latent_noise

TEXT_WIDTH = 192
# With these steps the strengths 1, 0.8 and 0.5 begin at three different ones.
STEPS = 5
# Pixels: 3×4 cells.
SIZE = HEIGHT, WIDTH = 48, 64
PICTURE, SECOND = latent_noise(*SIZE, seed=5), latent_noise(32, 48, seed=6)
STRENGTHS, CFGS = (1.0, 0.8, 0.5), (1.0, 4.0)


def mask_of(top, left, bottom, right, value=1.0, size=SIZE):
    """A mask [1, H, W]: `value` in a box of pixels, else 0."""
    mask = torch.zeros(1, *size)
    mask[:, top:bottom, left:right] = value
    return mask


# Of 1×2 of the 3×4 cells.
MASK = mask_of(16, 16, 32, 48)


def cells(mask, shape):
    """A mask on the grid of a latent of `shape`, [B, 1, h, w], as ComfyUI's samplers and diffusers' pipeline make it."""
    return torch.nn.functional.interpolate(mask[:, None], size=shape[-2:], mode="bilinear")


def tiny_weights():
    """Random weights of three blocks of Klein's architecture, `{key: tensor}`."""
    return {key: torch.from_numpy(array) for key, array in transformer(0, double_blocks=1, single_blocks=2).items()}


def pipeline_of(weights, vae=None):
    """diffusers' pipeline with a transformer of these weights.

    Args:
        weights: `{key: tensor}` of an original-key FLUX.2 file.
        vae: an `AutoencoderKLFlux2`; if not given, one too small to encode with. Its scale of latents becomes random.
    """
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinInpaintPipeline

    if vae is None:
        vae = AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32), layers_per_block=1, mid_block_add_attention=False)
    generator = torch.Generator().manual_seed(11)
    vae.bn.running_mean.copy_(torch.randn(128, generator=generator))
    vae.bn.running_var.copy_(torch.rand(128, generator=generator) + 0.5)
    # What the scheduler's file of FLUX.2 [klein] says.
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential")
    pipeline = Flux2KleinInpaintPipeline(scheduler, vae.eval(), None, None, diffusers_transformer(weights))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_diffusers(pipeline, picture, mask, strength, cfg, second=None):
    """The latent that the pipeline makes, [1, 128, H/16, W/16], scaled as ComfyUI's VAE scales it.

    Args:
        picture, second: latents [1, 128, h, w], or pictures for the pipeline's own VAE.
        mask: [1, H, W], or a picture.
    """
    vae = pipeline.vae
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()

    def for_pipeline(image):
        return image * deviation + mean if isinstance(image, torch.Tensor) else image

    latent = pipeline(
        image=for_pipeline(picture),
        mask_image=mask[:, None] if isinstance(mask, torch.Tensor) else mask,
        image_reference=for_pipeline(second),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=cfg,
        generator=torch.Generator().manual_seed(7),
        prompt_embeds=embeddings(TEXT_WIDTH, 1),
        negative_prompt_embeds=embeddings(TEXT_WIDTH, 2),
        output_type="latent",
    ).images
    return (pipeline._patchify_latents(latent) - mean) / deviation


def by_comfyui(run_node, model, picture, mask, strength, cfg, second=None, sampler="euler"):
    """The same by ComfyUI's nodes and Klein Scheduler: the picture, masked, is sampled and is the first reference.

    Args:
        run_node: `(id, **inputs) → outputs`.
        model: `ModelPatcher`.
        picture, second: latents [1, 128, h, w].
        mask: a MASK, [B, H, W].
        sampler: of `comfy_run`.
    """
    latent = {"samples": picture}
    prompts = [conditioning(embeddings(TEXT_WIDTH, seed)) for seed in (1, 2)]
    for image in (picture, second):
        if image is not None:
            prompts = [run_node("ReferenceLatent", conditioning=prompt, latent={"samples": image})[0] for prompt in prompts]
    (sigmas, _) = run_node(
        "KleinKitScheduler",
        steps=STEPS,
        width=1024,
        height=1024,
        denoise=strength,
        denoise_mode="strength",
        shift={"shift": "auto"},
        spacing="uniform",
        terminal=0.0,
        latent=latent,
        model=model,
    )
    (masked,) = run_node("SetLatentNoiseMask", samples=latent, mask=mask)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(7))
    return comfy_run(model, sigmas, noise, *prompts, cfg, sampler, picture, denoise_mask=masked["noise_mask"])
