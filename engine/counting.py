"""Every call of the model in a run is counted: which passes share it, and how many blocks it runs."""

from functools import partial
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from .run import ModelCall, Run, rows_in

COUNT = "kleinkit_count"


def blocks_of(model: BaseModel) -> dict:
    """The blocks of a model by kind, in the order in which it runs them; none of a model that is built otherwise.

    Args:
        model: ComfyUI's `BaseModel`.
    """
    transformer = model.diffusion_model
    content = getattr(transformer, "content_mode_blocks", None)
    stacks = [*(content.children() if content is not None else ()), getattr(transformer, "txt_mode_blocks", None) or ()]
    return {
        # Of FLUX 3: the blocks of the picture, of the references and of the text.
        "mode_block": [block for stack in stacks for block in stack],
        "double_block": getattr(transformer, "double_blocks", None) or getattr(transformer, "joint_blocks", None) or (),
        "single_block": getattr(transformer, "single_blocks", None) or (),
    }


def is_compiled(transformer_options: dict) -> bool:
    """Whether the model is compiled: such a one goes on with the block patches of its first call."""
    return COMPILE_KEY in transformer_options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})


def counting(transformer_options: dict, run: Run) -> dict:
    """The options of a run, or of its passes on another model, with every model call counted."""
    wrappers = transformer_options.get("wrappers", {})
    apply_model = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), COUNT: [partial(count, run)]}
    return {**transformer_options, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: apply_model}}


def count(
    run: Run,
    executor: WrapperExecutor,
    x: torch.Tensor,
    t: torch.Tensor,
    c_concat: torch.Tensor | None,
    c_crossattn: torch.Tensor | None,
    control: dict | None,
    transformer_options: dict,
    **kwargs: Any,
) -> torch.Tensor:
    """Wrapper of ComfyUI's `apply_model`."""
    rows = run.rows_of(transformer_options, len(x))
    if rows != rows_in(transformer_options):
        uuids, indices = zip(*rows)
        transformer_options = {**transformer_options, "uuids": list(uuids), "cond_or_uncond": list(indices)}
    for keep in run.keeps:
        transformer_options = keep(executor.class_obj, transformer_options)
    # A hook would have a compiled model compiled anew.
    known = () if is_compiled(transformer_options) else blocks_of(executor.class_obj).values()
    blocks, ran = [block for kind in known for block in kind], []
    hooks = [block.register_forward_pre_hook(lambda *_: ran.append(len(rows))) for block in blocks]
    try:
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        run.model_calls.append(ModelCall(rows, sum(ran) if blocks else None))
