"""Passes on another model: the negative's on a base model, or a rule's own on a weaker one."""

from collections.abc import Callable, Iterator

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_model_options_clone, set_model_options_patch_replace
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, merge_nested_dicts
from comfy.samplers import calc_cond_batch

from ..checks import in_node, sentence
from ..guidance.auto import WEAK, AutoGuidance
from ..guidance.base_uncond import BaseUncond
from ..guidance.rule import DISTILLED, UNCOND
from .counting import counting
from .family import is_flow_map
from .run import COMBINING, POST, RULES, Run, as_list, name_of, run_of

BASE, BLOCKS = "kleinkit_base", "kleinkit_blocks"
# Of each name under which a model holds another: the input that it came by, and its node.
INPUTS = {BASE: ("base_model", BaseUncond.title), WEAK: ("weak_model", AutoGuidance.title)}

# What a sampler asks of its own model alone: a pass on another model runs none of it.
OF_SAMPLER = ("sampler_calc_cond_batch_function", *reversed(COMBINING), POST)
OF_RUN = WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE


def with_base(model: ModelPatcher, base: ModelPatcher) -> ModelPatcher:
    """A model whose negative passes run on `base`. Arguments, result and errors are those of `with_other`."""
    with_other(model, base, BASE)
    if not model.get_wrappers(WrappersMP.CALC_COND_BATCH, BASE):
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, BASE, calc_cond_batch_with_base)
    return model


def with_other(model: ModelPatcher, other: ModelPatcher, key: str) -> ModelPatcher:
    """A model that holds another for some of its passes, which ComfyUI loads and frees together with it.

    Args:
        model: a clone that is ours to change.
        other: another `ModelPatcher` of the same architecture.
        key: of `INPUTS`.
    Returns:
        `model`.
    Raises:
        ValueError: another architecture, a flow map with a model that is none, or weights that are in use, under other
            patches.
    """
    name, _ = INPUTS[key]
    never_mixed(model, other, name)
    architecture, theirs = (m.model.model_config.unet_config | {"dtype": None} for m in (model, other))
    if type(model.model) is not type(other.model) or architecture != theirs:
        fits = f"of the same architecture as `model` ({describe(model)})"
        raise ValueError(sentence(name, fits, f"got {describe(other)}"))
    if other.is_clone(model):
        got = "got the weights of `model` again: put its file into a second loader"
        raise ValueError(sentence(name, "loaded from a file of its own", got))
    for third_key, (third_name, _) in INPUTS.items():
        if third_key == key:
            continue
        for third in model.get_additional_models_with_key(third_key):
            # ComfyUI loads one set of weights under the patches of one of them.
            if other.is_clone(third) and other.patches_uuid != third.patches_uuid:
                got = f"got the weights of `{third_name}` with another LoRA: put its file into a second loader"
                raise ValueError(sentence(name, "loaded from a file of its own", got))
    if not model.get_additional_models_with_key(key):
        model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, key, lambda patcher: other_of(patcher, key).pre_run())
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, lambda patcher: other_of(patcher, key).cleanup())
    model.set_additional_models(key, [other])
    return model


def without_other(model: ModelPatcher, key: str) -> ModelPatcher:
    """A model without the one that `with_other` gave it, so that it is not loaded any more.

    Args:
        model: a clone that is ours to change.
        key: of `INPUTS`.
    Returns:
        `model`.
    """
    model.remove_additional_models(key)
    for kind in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        model.remove_callbacks_with_key(kind, key)
    return model


def never_mixed(model: ModelPatcher, other: ModelPatcher, name: str) -> None:
    """Check that both models predict the same: the velocity at a sigma, or, as flow maps, the mean one of a whole step.

    Args:
        name: of the input by which `other` came, for the error.
    Raises:
        ValueError: they do not.
    """
    kinds = {False: "a base model", True: "a distilled one, which predicts whole steps"}
    ours, theirs = is_flow_map(model.model), is_flow_map(other.model)
    if ours != theirs:
        raise ValueError(sentence(name, f"{kinds[ours]}, as `model` is", f"got {kinds[theirs]}"))


def all_as(model: ModelPatcher) -> None:
    """Check before a run that every other model of its passes predicts as the run's own does; they may have been changed.

    Raises:
        ValueError: one does not.
    """
    for key, (name, title) in INPUTS.items():
        for other in model.get_additional_models_with_key(key):
            with in_node(title):
                never_mixed(model, other, name)


def other_of(patcher: ModelPatcher, key: str) -> ModelPatcher:
    """The other model of a patcher that has one."""
    return patcher.get_additional_models_with_key(key)[0]


def idle_on_others(model: ModelPatcher) -> Iterator[str]:
    """What the other models of a run's passes carry, and a pass does not run: a sentence for each model.

    Args:
        model: of the run.
    """
    for key, (name, title) in INPUTS.items():
        for other in model.get_additional_models_with_key(key):
            options, patches = other.model_options, other.model_options.get("transformer_options", {}).get("patches", {})
            rules = [rule.title for rule in options.get(RULES, ()) if rule.order != DISTILLED]
            hooks = [hook for option in OF_SAMPLER for hook in as_list(options.get(option))]
            hooks += [wrapper for kind in OF_RUN for keyed in other.wrappers.get(kind, {}).values() for wrapper in keyed]
            theirs = [name_of(hook) for hook in hooks if not of_this_pack(hook)]
            mixing = ["Normalized Attention Guidance"] if "attn1_output_patch" in patches else []
            if names := ", ".join(dict.fromkeys([*rules, *mixing, *theirs])):
                yield (
                    f"What guides or caches `{name}` of {title} has no effect in its passes ({names}). Remove it there, or put "
                    "it on `model`."
                )


def of_this_pack(hook: Callable) -> bool:
    """Whether a hook is one of ours."""
    module = getattr(getattr(hook, "func", hook), "__module__", None) or ""
    return module.startswith(__package__.rpartition(".")[0] + ".")


def wrappers_of_a_pass(other: ModelPatcher) -> dict:
    """Another model's wrappers without those that belong to one of a whole run, such as a cache's."""
    of_run = {key for kind in OF_RUN for key in other.wrappers.get(kind, {}) if key is not None}
    return {kind: {key: hooks for key, hooks in keyed.items() if key not in of_run} for kind, keyed in other.wrappers.items()}


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
    rest = [None if i in theirs else cond for i, cond in enumerate(conds)]
    out = list(executor(model, rest, x, timestep, model_options))
    for i in theirs:
        out[i] = on_other(found[0], run, conds[i], x, timestep, model_options)
    return out


def on_other(
    other: ModelPatcher, run: Run, conds: list[dict], x: torch.Tensor, timestep: torch.Tensor, model_options: dict
) -> torch.Tensor:
    """x0 of a prompt on another model, with that model's own patches.

    Args:
        other: the model.
        run: counts the pass.
        conds: of the prompt, as ComfyUI's samplers have them.
        x, timestep: [B, …] and [B].
        model_options: of the run; where they are of an extra pass, the blocks that it replaces are replaced here too.
    Returns:
        [B, …].
    """
    options = create_model_options_clone(other.model_options)
    transformer_options = options.setdefault("transformer_options", {})
    transformer_options["sample_sigmas"] = model_options["transformer_options"]["sample_sigmas"]
    wrappers = wrappers_of_a_pass(other)
    merge_nested_dicts(transformer_options.setdefault("wrappers", {}), wrappers, copy_dict1=False)
    options["transformer_options"] = counting(transformer_options, run)
    for block, patch in model_options["transformer_options"].get(BLOCKS, {}).items():
        options = set_model_options_patch_replace(options, patch, "dit", *block)
    # Hooks of a conditioning are registered on the model they were made for, not on the other.
    conds = [{key: value for key, value in cond.items() if key != "hooks"} for cond in conds]
    return calc_cond_batch(other.model, [conds], x, timestep, options)[0]
