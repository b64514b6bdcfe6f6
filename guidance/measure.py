"""What a probe measures in a model call."""

import torch

from .adaptive import cosine
from .zero_star import optimized_scale

MEASURES = ("cond_norm", "uncond_norm", "cosine", "alpha", "norm_ratio")


def velocity_measures(
    x: torch.Tensor,
    sigma: torch.Tensor,
    denoised: torch.Tensor,
    cond: torch.Tensor | None = None,
    uncond: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sizes and directions of the velocities v = (x − x0)/σ, for all pictures of a batch together.

    Args:
        x: [B, …] the noisy latent.
        sigma: a scalar tensor.
        denoised, cond, uncond: [B, …] the x0 of the guided, the positive and the negative prediction. None did not run.
    Returns:
        [5] float32 in the order of `MEASURES`: ‖v_c‖, ‖v_u‖ (means over the batch), cos(v_c, v_u) (the smallest, as
        adaptive guidance takes it), α = ⟨v_c, v_u⟩/‖v_u‖² and ‖v‖/‖v_c‖ (means); NaN where a prediction is missing.
    """
    v = (x - denoised).float().flatten(1)
    v_c, v_u = (None if x0 is None else (x - x0).float().flatten(1) for x0 in (cond, uncond))
    values = dict.fromkeys(MEASURES, torch.full((), torch.nan, device=x.device))
    if v_c is not None:
        values["cond_norm"] = (v_c.norm(dim=1) / sigma).mean()
        values["norm_ratio"] = (v.norm(dim=1) / v_c.norm(dim=1)).mean()
    if v_u is not None:
        values["uncond_norm"] = (v_u.norm(dim=1) / sigma).mean()
    if v_c is not None and v_u is not None:
        values["cosine"] = cosine(v_c, v_u).min()
        values["alpha"] = optimized_scale(v_c, v_u).mean()
    return torch.stack([values[name].float() for name in MEASURES])
