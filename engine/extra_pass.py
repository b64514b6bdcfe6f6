"""The passes that rules own, beside the positive and the negative.

Until the first block that it replaces, such a pass equals the pass of its prompt. So the prompt's hidden states are kept at
the entry of that block, and the extra pass starts there. ComfyUI's block replacements do both; the blocks stay untouched.
"""

import uuid
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ..checks import sentence
from ..guidance.rule import COND, GRID, Block, BlockPatch, ExtraPass
from ..guidance.skip_layer import OVERRIDE, skip
from .base_pass import BLOCKS, on_other
from .counting import blocks_of, is_compiled
from .run import Run, is_whole, rows_in

# The blocks that ComfyUI can replace. FLUX 3's joint blocks are its single ones.
KINDS = "double_block", "single_block"
# What a block gets that no block changes.
SHARED = "vec", "pe", "attn_mask"
# In the transformer options: whose the rows of a batch are.
ROWS = "cond_or_uncond", "uuids"


def block_counts(model: BaseModel) -> dict[str, int]:
    """How many blocks of each kind that can be replaced a model has, in the order in which it runs them.

    Args:
        model: ComfyUI's `BaseModel`.
    Returns:
        `{"double_block": 5, "single_block": 20}` for Klein 4B, `{"double_block": 0, "single_block": 28}` for FLUX 3.
    Raises:
        ValueError: the model is not built of such blocks.
    """
    blocks = blocks_of(model)
    counts = {kind: len(blocks[kind]) for kind in KINDS}
    if not (counts["double_block"] or (blocks["mode_block"] and counts["single_block"])):
        fits = "made of double and single blocks, as FLUX.2 [klein] is"
        raise ValueError(sentence("model", fits, f"got {type(model).__name__}"))
    return counts


def first_block(extra: ExtraPass, counts: dict[str, int]) -> Block:
    """The first block that a pass replaces, in the order in which the model runs them."""
    return next(block for block in order(counts) if block in extra.blocks)


def blocks_before(extra: ExtraPass, counts: dict[str, int]) -> list[Block]:
    """The blocks that run before the first one that a pass replaces."""
    blocks = order(counts)
    return blocks[: blocks.index(first_block(extra, counts))]


def order(counts: dict[str, int]) -> list[Block]:
    return [(kind, i) for kind, count in counts.items() for i in range(count)]


def entry_is_certain(extra: ExtraPass, conds: list[dict], model_options: dict, counts: dict[str, int]) -> bool:
    """Whether the rows that a pass would start from are known for sure: one conditioning, whole, in one process, and nothing
    that mixes rows or gives a second pass other tokens.

    Args:
        extra: the pass.
        conds: the conditionings of its prompt.
        model_options: of the run.
        counts: `block_counts` of the model.
    """
    transformer_options = model_options["transformer_options"]
    # ComfyUI's FluxKVCache patches the input; its NAGuidance mixes positive and negative in the attention.
    patches = transformer_options.get("patches", {})
    return (
        bool(extra.blocks)
        and extra.conds is None
        and len(conds) == 1
        and is_whole(conds[0])
        and not model_options.keys() & {"context_handler", "multigpu_clones"}
        and not any(name.startswith("attn") or name == "post_input" for name in patches)
        and not is_compiled(transformer_options)
        and not any(replacement(transformer_options, block) for block in blocks_before(extra, counts))
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


def replacement(transformer_options: dict, block: Block) -> BlockPatch | None:
    return transformer_options.get("patches_replace", {}).get("dit", {}).get(block)


def replace_block(model_options: dict, block: Block, patch: BlockPatch) -> dict:
    return set_model_options_patch_replace({**model_options}, patch, "dit", *block)


class Watched(dict):
    """Transformer options that note in a run when an attention asks which rows are whose: such a one may mix them."""

    run: Run

    def __getitem__(self, name: str) -> Any:
        self.run.mixes |= name in ROWS
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.run.mixes |= name in ROWS
        return super().get(name, default)


def watched(run: Run, override: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Another node's attention, whose questions are noted in `run.mixes`."""

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        options = Watched(kwargs.get("transformer_options") or {})
        options.run = run
        return override(*args, **{**kwargs, "transformer_options": options})

    return call


def keep_entry(model: BaseModel, extra: ExtraPass, run: Run) -> Callable[[BaseModel, dict], dict]:
    """What the sampler's own passes run with, so that the hidden states are kept where an extra pass is to start.

    Args:
        model: of the sampler.
        extra: the pass.
        run: its `entries` get `{"img": …, "txt": …}` of the rows of the pass's prompt, whatever states the block has; nothing
            where the model does not run them in one call.
    Returns:
        `(model, transformer options of a call) → transformer options`; those of another model stay as they are.
    """
    block = first_block(extra, block_counts(model))

    def change(called: BaseModel, transformer_options: dict) -> dict:
        if called is not model:
            return transformer_options
        before, override = replacement(transformer_options, block), transformer_options.get(OVERRIDE)

        def keep(args: dict, more: dict) -> dict:
            options = args["transformer_options"]
            roles = [run.role(*row) for row in rows_in(options)]
            if extra.of in roles:
                states = {
                    name: value.chunk(len(roles))
                    for name, value in args.items()
                    if name not in SHARED and torch.is_tensor(value) and value.ndim > 2 and len(value) == len(roles) * run.batch
                }
                # Of several calls, such as those of tiles, none is the whole. Blocks work in place, so the rows are copied.
                once = extra.name not in run.entries and roles.count(extra.of) == 1 and not run.mixes
                rows = {name: rows[roles.index(extra.of)].clone() for name, rows in states.items()} if once else {}
                run.entries[extra.name] = rows
            return before(args, more) if before else more["original_block"](args)

        kept = replace_block({"transformer_options": transformer_options}, block, keep)["transformer_options"]
        return {**kept, OVERRIDE: watched(run, override)} if override else kept

    return change


def pass_options(run: Run, extra: ExtraPass, counts: dict[str, int]) -> dict:
    """Options of an extra pass that replaces blocks. Only its tail runs, where `keep_entry` kept what it starts from.

    Args:
        run: it learns in `reached` that the model let the first block be replaced.
        extra: the pass.
        counts: `block_counts` of the model.
    """
    model_options, state = run.model_options, run.entries.pop(extra.name, {})
    changed = {block: make(replacement(model_options["transformer_options"], block)) for block, make in extra.blocks.items()}
    first = first_block(extra, counts)
    run_first = changed[first]

    def begin(args: dict, more: dict) -> dict:
        run.reached.add(extra.name)
        return run_first({**args, **state}, more)

    if state:
        changed |= dict.fromkeys(blocks_before(extra, counts), skip)
    changed[first] = begin
    model_options = uncompiled(model_options)
    model_options = {**model_options, "transformer_options": {**model_options["transformer_options"], BLOCKS: changed}}
    if extra.grid:
        model_options = with_grid(model_options)
    for block, patch in changed.items():
        model_options = replace_block(model_options, block, patch)
    return model_options


def with_grid(model_options: dict) -> dict:
    """Options of a pass whose blocks find `GRID` in theirs: what part of the picture a model call has differs."""
    transformer_options = model_options["transformer_options"]
    wrappers = wrappers_with(transformer_options, GRID, tell_grid)
    return {**model_options, "transformer_options": {**transformer_options, "wrappers": wrappers}}


def wrappers_with(transformer_options: dict, key: str, wrapper: Callable[..., torch.Tensor]) -> dict:
    """The wrappers of some options, and one more around the model's forward under a key of its own."""
    wrappers = transformer_options.get("wrappers", {})
    return {**wrappers, WrappersMP.DIFFUSION_MODEL: {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), key: [wrapper]}}


def tell_grid(
    executor: WrapperExecutor,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    y: torch.Tensor | None,
    guidance: torch.Tensor | None,
    ref_latents: list | None,
    control: dict | None,
    transformer_options: dict,
    **kwargs: Any,
) -> torch.Tensor:
    """Wrapper of ComfyUI's `Flux.forward`, which fills the picture up to whole patches."""
    patch = executor.class_obj.patch_size
    grid = tuple((size + patch // 2) // patch for size in x.shape[-2:])
    options = {**transformer_options, GRID: grid}
    return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)


def run_pass(
    extra: ExtraPass, run: Run, model: BaseModel, conds: list[dict], x: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor | None:
    """x0 of an extra pass.

    Its conditionings get uuids of their own, so that what knows a pass by them (ComfyUI's EasyCache) takes it for no other.

    Args:
        extra: the pass.
        run: the run that it belongs to.
        model: ComfyUI's `BaseModel`.
        conds: the conditionings of its prompt.
        x, sigma: [B, …] and [B].
    Returns:
        [B, …], or None where the pass runs on another model and this one holds none.
    Raises:
        ValueError: the model does not let the pass's blocks be replaced.
    """
    conds = conds if extra.conds is None else extra.conds(conds)
    conds = [{**cond, "uuid": uuid.uuid5(cond["uuid"], extra.name)} for cond in conds]
    run.roles |= {cond["uuid"]: extra.name for cond in conds}
    if extra.model:
        found = model.current_patcher.get_additional_models_with_key(extra.model)
        return on_other(found[0], run, conds, x, sigma, run.model_options) if found else None
    another = run.negative_model if extra.of != COND else None
    model = another or model
    counts = block_counts(model) if extra.blocks else {}
    options = pass_options(run, extra, counts) if extra.blocks else run.model_options
    if another:
        # As the guider runs it: the other devices have copies of the first model.
        options = {name: value for name, value in options.items() if name != "multigpu_clones"}
    # Other nodes tell a positive from a negative by its place.
    places = [conds] if extra.of == COND else [None, conds]
    denoised = comfy.samplers.calc_cond_batch(model, places, x, sigma, options)[-1]
    # A prompt may be empty, and a cache may answer.
    if extra.blocks and extra.name not in run.reached and any(run.blocks(extra.name)):
        kind, number = first_block(extra, counts)
        block = f"{kind.replace('_', ' ')} {number}"
        raise ValueError(
            f"This model does not let another node replace its {block}, so no layer would be skipped: update ComfyUI, or "
            "remove this node."
        )
    return denoised
