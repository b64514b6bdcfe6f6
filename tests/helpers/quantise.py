"""Weights in the quantisations of ComfyUI, made by ComfyUI itself."""

import json

import torch


def quantised(tensors, form):
    """Quantise the linear layers that are wide enough for every format.

    Args:
        tensors: `{name: tensor}`.
        form: a key of `comfy.quant_ops.QUANT_ALGOS`.
    Returns:
        `{name: tensor}` as ComfyUI saves them: with the scales, and with the format in `comfy_quant`.
    """
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout, mark = QUANT_ALGOS[form]["comfy_tensor_layout"], json.dumps({"format": form}).encode()
    scaled = {"scale": "recalculate"} if form.startswith(("float8", "nvfp4", "int8")) else {}
    changed = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.shape[1] % 256 == 0 and "embed" not in name:
            quantised = QuantizedTensor.from_float(tensor.float(), layout, **scaled)
            changed |= quantised.state_dict(name)
            changed[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
        else:
            changed[name] = tensor
    return changed
