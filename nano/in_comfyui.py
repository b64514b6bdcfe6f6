"""Tiny Kleins inside ComfyUI: one of random weights, for tests and benchmarks, and sampling, for the study."""

import importlib

import numpy as np
import torch

from .build import transformer
from .prompts import FIXED, LENGTH, weight

# How many tokens of padding a thinned model sees.
PADDING = 24


def random_klein(seed=0, dtype=torch.float32, **shape):
    """A `ModelPatcher` of random weights of Klein's architecture, as ComfyUI's own loader makes it.

    Args:
        seed, shape: of `transformer`.
        dtype: to compute in.
    """
    weights = {key: torch.from_numpy(array) for key, array in transformer(seed, **shape).items()}
    return importlib.import_module("comfy.sd").load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})


def sample(model, sigmas, noise, positive, negative, cfg, sampler="euler", latent=None, **others):
    """Sample with ComfyUI's own `comfy.samplers.sample`, as KSampler and SamplerCustom do.

    Args:
        model: `ModelPatcher`.
        sigmas: [n + 1] float32.
        noise: [B, 128, H/16, W/16].
        positive, negative: ComfyUI conditionings.
        cfg: of the sampler.
        sampler: a name of ComfyUI's list, or a sampler object.
        latent: like `noise`; an empty one if not given.
        others: of `comfy.samplers.sample`.
    Returns:
        The latent, [B, 128, H/16, W/16].
    """
    samplers = importlib.import_module("comfy.samplers")
    if isinstance(sampler, str):
        sampler = samplers.sampler_object(sampler)
    return samplers.sample(
        model,
        noise,
        positive,
        negative,
        cfg,
        model.load_device,
        sampler,
        sigmas.clone(),  # uni_pc writes into them.
        model_options=model.model_options,
        latent_image=torch.zeros_like(noise) if latent is None else latent,
        disable_pbar=True,
        seed=0,
        **others,
    )


def thinned(model):
    """A model that sees 24 of the padding's 488 tokens, evenly spaced, each of which counts for all that it stands for.

    A pass takes a sixth of the time so. What guidance adds changes by 2%; with matrices in bfloat16 it changes by 8%.

    Args:
        model: `ModelPatcher` of a nano model.
    """
    padding = np.linspace(FIXED, LENGTH - 1, PADDING).round().astype(int)
    kept = torch.from_numpy(np.concatenate([np.arange(FIXED), padding]))

    def drop(arguments):
        return {**arguments, "txt": arguments["txt"][:, kept], "txt_ids": arguments["txt_ids"][:, kept]}

    def weigh(q, k, v, pe, attn_mask, extra_options):
        mask = q.new_zeros(1, q.shape[2], k.shape[2])
        mask[..., FIXED : len(kept)] = weight(PADDING)
        return {"attn_mask": mask}

    model = model.clone()
    model.set_model_post_input_patch(drop)
    model.set_model_attn1_patch(weigh)
    return model


def sampled(model, noise, texts, empty, sigmas, cfg, at_once, references=(), in_both=True, start=None, masks=None):
    """Latents of prompts in ComfyUI's own sampling with Euler.

    Args:
        model: `ModelPatcher` of a nano model.
        noise: [N, 128, 8, 8].
        texts, empty: embeddings [N, 512, 192] of the prompts, and [512, 192] of the empty one.
        at_once: how many share a batch.
        references: latents like `noise`, of the pictures that are shown beside the prompts.
        in_both: whether they are shown beside the empty prompt too.
        start: the latents to begin from, like `noise`.
        masks: [N, 8, 8], 1 where a picture is drawn and 0 where it stays as in `start`.
    Returns:
        `(latents [N, 128, 8, 8], model passes)`.
    """
    rows, made = [], []
    hook = model.model.diffusion_model.final_layer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for i in range(0, len(noise), at_once):
        some, text = noise[i : i + at_once], texts[i : i + at_once]
        shown = {"reference_latents": [latent[i : i + at_once] for latent in references]} if references else {}
        positive = [[text, {"pooled_output": None, **shown}]]
        negative = [[empty.expand_as(text), {"pooled_output": None, **(shown if in_both else {})}]]
        latent = None if start is None else start[i : i + at_once]
        mask = {} if masks is None else {"denoise_mask": masks[i : i + at_once, None]}
        made.append(sample(model, sigmas, some, positive, negative, cfg, latent=latent, **mask))
    hook.remove()
    return torch.cat(made).float(), sum(rows)
