"""Tiny Kleins inside ComfyUI: one of random weights, for tests and benchmarks, and sampling, for the study."""

import importlib

import torch

from .build import transformer


def random_klein(seed=0, dtype=torch.float32, **shape):
    """A `ModelPatcher` of random weights of Klein's architecture, as ComfyUI's own loader makes it.

    Args:
        seed, shape: of `transformer`.
        dtype: to compute in.
    """
    weights = {key: torch.from_numpy(array) for key, array in transformer(seed, **shape).items()}
    return importlib.import_module("comfy.sd").load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})


def sampled(model, noise, texts, empty, sigmas, cfg, at_once):
    """Latents of prompts in ComfyUI's own sampling with Euler; matrices in bfloat16, which halves the time.

    Args:
        model: `ModelPatcher` of a nano model.
        noise: [N, 128, 8, 8].
        texts, empty: embeddings [N, 512, 192] of the prompts, and [512, 192] of the empty one.
        at_once: how many share a batch.
    Returns:
        `(latents [N, 128, 8, 8], model passes)`.
    """
    samplers = importlib.import_module("comfy.samplers")
    rows, made = [], []
    hook = model.model.diffusion_model.final_layer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for i in range(0, len(noise), at_once):
        some, text = noise[i : i + at_once], texts[i : i + at_once]
        positive, negative = ([[one, {"pooled_output": None}]] for one in (text, empty.expand_as(text)))
        with torch.autocast("cpu", torch.bfloat16):
            made.append(
                samplers.sample(
                    model,
                    some,
                    positive,
                    negative,
                    cfg,
                    model.load_device,
                    samplers.sampler_object("euler"),
                    sigmas.clone(),
                    model.model_options,
                    latent_image=torch.zeros_like(some),
                    disable_pbar=True,
                    seed=0,
                )
            )
    hook.remove()
    return torch.cat(made).float(), sum(rows)
