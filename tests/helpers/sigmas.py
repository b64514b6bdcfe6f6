"""Formulas of time shifts and the sigmas that reach a sampler."""

import numpy as np
import torch
from sampling import conditioning, embeddings


def shifted(sigmas, mu):
    """σ' = e^μ / (e^μ + (1/σ − 1)), as diffusers writes it; float64."""
    sigmas = np.asarray(sigmas, np.float64)
    with np.errstate(divide="ignore"):
        return np.exp(mu) / (np.exp(mu) + (1 / sigmas - 1))


def scheduler_inputs(**changes):
    """The inputs of KleinKitScheduler, with its defaults for those that are left out."""
    shift = changes.pop("shift", {"shift": "flux2"})
    defaults = dict(steps=20, width=1024, height=1024, denoise=1.0, denoise_mode="ksampler", spacing="uniform", terminal=0.0)
    return {**defaults, **changes, "shift": shift}


def recorder(model):
    """A clone of the model that makes no picture: a hook of ComfyUI notes the sigmas that reach the sampler.

    Returns:
        `(clone, sigmas of each run)`.
    """
    from comfy.patcher_extension import WrappersMP

    seen, clone = [], model.clone()

    def note(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        seen.append(sigmas)
        return noise

    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "recorder", note)
    return clone, seen


def ksampler_inputs(text_width, height=1024, width=1024, batch=1, **changes):
    """The inputs of KSampler for an empty latent of a size in pixels."""
    defaults = dict(
        seed=0,
        steps=20,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        positive=conditioning(embeddings(text_width, 1)),
        negative=conditioning(embeddings(text_width, 2)),
        latent_image={"samples": torch.zeros(batch, 128, height // 16, width // 16)},
    )
    return {**defaults, **changes}
