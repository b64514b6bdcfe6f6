"""Models of random weights, of any size, made where they run: a table of shapes and a few buffers of random numbers."""

import importlib
from unittest.mock import patch

import torch

from ..checkpoint.families import FLUX2_KLEIN
from ..checkpoint.qwen3 import cut, plain_key


def filled(shapes, device, dtype):
    """A tensor for every shape of a table. Matrices of one width are parts of one buffer, so that little is made and kept.

    Args:
        shapes: `{name: (dtype, shape)}`, as `tests.helpers.files` has them; its dtypes are not looked at.
        device, dtype: of the tensors.
    Returns:
        `{name: tensor}`: norms are ones, and matrices keep the size of what they are applied to.
    """
    rows = {}
    for _, shape in shapes.values():
        if len(shape) == 2:
            rows[shape[1]] = max(shape[0], rows.get(shape[1], 0))
    random = torch.Generator(device).manual_seed(0)
    buffers = {
        width: torch.randn(count, width, generator=random, device=device, dtype=dtype).mul_(width**-0.5)
        for width, count in rows.items()
    }
    return {
        name: buffers[shape[1]][: shape[0]] if len(shape) == 2 else torch.ones(shape, device=device, dtype=dtype)
        for name, (_, shape) in shapes.items()
    }


def klein_of(shapes, device, dtype):
    """A `ModelPatcher` of a Klein with these shapes."""
    weights = filled(shapes, device, dtype)
    return importlib.import_module("comfy.sd").load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})


def text_encoder_of(shapes, config, kind, trim, device, dtype):
    """A `CLIP` as ComfyUI's CLIPLoader makes it for Klein of a Qwen3 with these shapes.

    Args:
        shapes: as of `filled`.
        config: what differs from the published model of that kind.
        kind: `qwen3_4b` or `qwen3_8b`.
        trim: leave out what Klein does not read, as Klein Loader does.
    """
    sd = importlib.import_module("comfy.sd")
    if trim:
        config = config | cut(FLUX2_KLEIN) | {"lm_head": False}
        shapes = {name: shape for name, shape in shapes.items() if plain_key(name, "", trim=True)}
    weights = filled(shapes, device, dtype)
    # By the width of a small one ComfyUI would take it for another model.
    with patch.object(sd, "detect_te_model", lambda _: sd.TEModel[kind.upper()]):
        return sd.load_text_encoder_state_dicts(
            [weights], clip_type=sd.CLIPType.FLUX2, model_options={f"{kind}_model_config": config}
        )
