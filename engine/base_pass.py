"""The negative pass on another model."""

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, merge_nested_dicts
from comfy.samplers import calc_cond_batch

from ..checks import sentence
from ..guidance.base_uncond import BaseUncond
from ..guidance.rule import UNCOND
from .counting import counting
from .family import is_flow_map
from .run import run_of

BASE = "kleinkit_base"


def with_base(model: ModelPatcher, base: ModelPatcher) -> ModelPatcher:
    """A model whose negative passes run on `base`, which ComfyUI loads and frees together with it.

    Args:
        model: a clone that is ours to change.
        base: another `ModelPatcher` of the same architecture.
    Returns:
        `model`.
    Raises:
        ValueError: another architecture, a flow map with a model that is none, or the same weights under other patches.
    """
    never_mixed(model, base)
    architecture, other = (m.model.model_config.unet_config | {"dtype": None} for m in (model, base))
    if type(model.model) is not type(base.model) or architecture != other:
        fits = f"of the same architecture as `model` ({describe(model)})"
        raise ValueError(sentence("base_model", fits, f"got {describe(base)}"))
    if base.is_clone(model):
        got = "got the weights of `model` again: put the base model's file into a second loader"
        raise ValueError(sentence("base_model", "loaded from a file of its own", got))
    model.set_additional_models(BASE, [base])
    if not model.get_wrappers(WrappersMP.CALC_COND_BATCH, BASE):
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, BASE, calc_cond_batch_with_base)
        model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, BASE, lambda patcher: base_of(patcher).pre_run())
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, BASE, lambda patcher: base_of(patcher).cleanup())
    return model


def never_mixed(model: ModelPatcher, base: ModelPatcher) -> None:
    """Check that both models predict the same: the velocity at a sigma, or, as flow maps, the mean one of a whole step.

    Raises:
        ValueError: they do not.
    """
    kinds = {False: "a base model", True: "a distilled one, which predicts whole steps"}
    ours, theirs = is_flow_map(model.model), is_flow_map(base.model)
    if ours != theirs:
        raise ValueError(sentence("base_model", f"{kinds[ours]}, as `model` is", f"got {kinds[theirs]}"))


def base_of(patcher: ModelPatcher) -> ModelPatcher:
    """The base model of a patcher that has one."""
    return patcher.get_additional_models_with_key(BASE)[0]


def describe(model: ModelPatcher) -> str:
    """A model's architecture and shape, for an error."""
    config, name = model.model.model_config.unet_config, type(model.model).__name__
    if "hidden_size" not in config:
        return name
    return f"{name} of hidden size {config['hidden_size']}, text width {config.get('context_in_dim')}"


def calc_cond_batch_with_base(
    executor: WrapperExecutor,
    model: BaseModel,
    conds: list[list[dict] | None],
    x: torch.Tensor,
    timestep: torch.Tensor,
    model_options: dict,
) -> list[torch.Tensor]:
    """ComfyUI's batch of passes, those of the negative prompt taken out and run on the base model."""
    run = run_of(model_options)
    found = model.current_patcher.get_additional_models_with_key(BASE)
    theirs = [] if run is None else [i for i, cond in enumerate(conds) if cond and run.is_of(UNCOND, cond[0]["uuid"], i)]
    if run and theirs and not found:
        run.warn(
            f"{BaseUncond.title} has no effect: the sampler's guider runs the negative on a model of its own. Remove one of "
            "the two."
        )
    if not (theirs and found):
        return executor(model, conds, x, timestep, model_options)
    [base] = found
    options = create_model_options_clone(base.model_options)
    transformer_options = options.setdefault("transformer_options", {})
    transformer_options["sample_sigmas"] = model_options["transformer_options"]["sample_sigmas"]
    merge_nested_dicts(transformer_options.setdefault("wrappers", {}), base.wrappers, copy_dict1=False)
    options["transformer_options"] = counting(transformer_options, run)
    rest = [None if i in theirs else cond for i, cond in enumerate(conds)]
    out = list(executor(model, rest, x, timestep, model_options))
    for i in theirs:
        # Hooks of a conditioning are registered on the model they were made for, not on the base.
        negative = [{key: value for key, value in cond.items() if key != "hooks"} for cond in conds[i]]
        out[i] = calc_cond_batch(base.model, [negative], x, timestep, options)[0]
    return out
