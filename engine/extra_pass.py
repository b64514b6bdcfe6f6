"""The passes that rules own, beside the positive and the negative.

Until the first block that it replaces, such a pass equals the pass of its prompt. So the prompt's hidden states are kept at
the entry of that block, and the extra pass starts there. ComfyUI's block replacements do both; the blocks stay untouched.
"""

import uuid

import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ..checks import sentence
from ..guidance.rule import COND, Block, BlockPatch, ExtraPass
from ..guidance.skip_layer import skip
from .counting import blocks_of, is_compiled
from .run import Run

STATES = ("img", "txt")


def block_counts(model: BaseModel) -> dict[str, int]:
    """How many blocks of each kind a model has, in the order in which it runs them.

    Args:
        model: ComfyUI's `BaseModel`.
    Returns:
        `{"double_block": 5, "single_block": 20}` for Klein 4B.
    Raises:
        ValueError: the model is not built of such blocks.
    """
    counts = {kind: len(blocks) for kind, blocks in blocks_of(model).items()}
    if not counts["double_block"]:
        fits = "made of double and single blocks, as FLUX.2 [klein] is"
        raise ValueError(sentence("model", fits, f"got {type(model).__name__}"))
    return counts


def first_block(extra: ExtraPass, counts: dict[str, int]) -> Block:
    """The first block that a pass replaces, in the order in which the model runs them."""
    return next(block for block in order(counts) if block in extra.blocks)


def order(counts: dict[str, int]) -> list[Block]:
    return [(kind, i) for kind, count in counts.items() for i in range(count)]


def entry_is_certain(extra: ExtraPass, conds: list[dict], model_options: dict) -> bool:
    """Whether the rows that a pass would start from are known for sure: one conditioning, whole, in one process, and nothing
    that mixes rows or gives a second pass other tokens.

    Args:
        extra: the pass.
        conds: the conditionings of its prompt.
        model_options: of the run.
    """
    transformer_options = model_options["transformer_options"]
    # ComfyUI's FluxKVCache patches the input; its NAGuidance mixes positive and negative in the attention.
    patches = transformer_options.get("patches", {})
    return (
        bool(extra.blocks)
        and extra.conds is None
        and len(conds) == 1
        and not conds[0].keys() & {"area", "mask"}
        and not model_options.keys() & {"context_handler", "multigpu_clones"}
        and not any(name.startswith("attn") or name == "post_input" for name in patches)
        and not is_compiled(transformer_options)
    )


def uncompiled(model_options: dict) -> dict:
    """Options of a pass that runs as it is: a compiled model goes on with the block patches of its first call."""
    transformer_options = model_options["transformer_options"]
    if not is_compiled(transformer_options):
        return model_options
    wrappers = transformer_options["wrappers"]
    apply_model = {key: hooks for key, hooks in wrappers[WrappersMP.APPLY_MODEL].items() if key != COMPILE_KEY}
    wrappers = {**wrappers, WrappersMP.APPLY_MODEL: apply_model}
    return {**model_options, "transformer_options": {**transformer_options, "wrappers": wrappers}}


def replacement(model_options: dict, block: Block) -> BlockPatch | None:
    return model_options["transformer_options"].get("patches_replace", {}).get("dit", {}).get(block)


def replace_block(model_options: dict, block: Block, patch: BlockPatch) -> dict:
    return set_model_options_patch_replace({**model_options}, patch, "dit", *block)


def keep_entry(model_options: dict, extra: ExtraPass, block: Block, run: Run) -> dict:
    """Options of the sampler's own passes that keep the hidden states where an extra pass is to start.

    Args:
        model_options: of the run.
        extra: the pass.
        block: the first that it replaces.
        run: its `entries` get `{"img": …, "txt": …}` of the rows of the pass's prompt.
    """
    before = replacement(model_options, block)

    def keep(args: dict, more: dict) -> dict:
        options = args["transformer_options"]
        roles = [run.role(*row) for row in zip(options["uuids"], options["cond_or_uncond"])]
        if extra.of in roles and extra.name not in run.entries:
            rows = args["img"].shape[0] // len(roles)
            first = roles.index(extra.of) * rows
            # Blocks work in place, so the rows are copied.
            run.entries[extra.name] = {name: args[name][first : first + rows].clone() for name in STATES if name in args}
        return before(args, more) if before else more["original_block"](args)

    return replace_block(model_options, block, keep)


def pass_options(model_options: dict, extra: ExtraPass, state: dict | None, counts: dict[str, int]) -> dict:
    """Options of an extra pass.

    Args:
        model_options: of the run, without `keep_entry`.
        extra: the pass.
        state: what `keep_entry` kept: the tail alone runs; or None: the whole pass runs.
        counts: `block_counts` of the model.
    """
    changed = {block: make(replacement(model_options, block)) for block, make in extra.blocks.items()}
    if state:
        first = first_block(extra, counts)
        run_first, blocks = changed[first], order(counts)
        changed |= dict.fromkeys(blocks[: blocks.index(first)], skip)
        changed[first] = lambda args, more: run_first({**args, **state}, more)
    model_options = uncompiled(model_options) if changed else model_options
    for block, patch in changed.items():
        model_options = replace_block(model_options, block, patch)
    return model_options


def run_pass(
    extra: ExtraPass, run: Run, model: BaseModel, conds: list[dict], x: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """x0 of an extra pass.

    Its conditionings get uuids of their own, so that what knows a pass by them (ComfyUI's EasyCache) takes it for no other.

    Args:
        extra: the pass.
        run: the run that it belongs to.
        model: ComfyUI's `BaseModel`.
        conds: the conditionings of its prompt.
        x, sigma: [B, …] and [B].
    Returns:
        [B, …].
    """
    conds = conds if extra.conds is None else extra.conds(conds)
    conds = [{**cond, "uuid": uuid.uuid5(cond["uuid"], extra.name)} for cond in conds]
    run.roles |= {cond["uuid"]: extra.name for cond in conds}
    options = run.model_options
    if extra.blocks:
        options = pass_options(options, extra, run.entries.pop(extra.name, None), block_counts(model))
    # Other nodes tell a positive from a negative by its place.
    places = [conds] if extra.of == COND else [None, conds]
    return comfy.samplers.calc_cond_batch(model, places, x, sigma, options)[-1]
