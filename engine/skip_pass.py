"""The skip pass runs only the model's tail.

Until the first skipped block it equals the positive pass, so the positive's hidden states are kept at the entry of that
block and the skip pass starts there. ComfyUI's block replacements do both; the blocks themselves stay untouched.
"""

from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

STATES = ("img", "txt")


def blocks_of(model):
    """The blocks of a model by kind, in the order in which it runs them; none of a model that is built otherwise."""
    transformer = model.diffusion_model
    return {
        "double_block": getattr(transformer, "double_blocks", None) or getattr(transformer, "joint_blocks", None) or (),
        "single_block": getattr(transformer, "single_blocks", None) or (),
    }


def block_counts(model):
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
        raise ValueError(
            f"Expected `model` to be made of double and single blocks, as FLUX.2 [klein] is, but got {type(model).__name__}."
        )
    return counts


def entry_is_certain(conds, model_options):
    """Whether the positive's rows in the model's batch are known for sure: one positive, whole, in one process.

    A `post_input` patch (ComfyUI's FluxKVCache) may give a second pass other tokens than the first.
    """
    positive = conds["positive"]
    return (
        len(positive) == 1
        and "area" not in positive[0]
        and "mask" not in positive[0]
        and "context_handler" not in model_options
        and "multigpu_clones" not in model_options
        and "post_input" not in model_options["transformer_options"].get("patches", {})
        and not is_compiled(model_options)
    )


def is_compiled(model_options):
    return COMPILE_KEY in model_options["transformer_options"].get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})


def uncompiled(model_options):
    """Options of a pass that runs as it is: a compiled model goes on with the block patches of its first call."""
    if not is_compiled(model_options):
        return model_options
    transformer_options = model_options["transformer_options"]
    wrappers = transformer_options["wrappers"]
    apply_model = {key: hooks for key, hooks in wrappers[WrappersMP.APPLY_MODEL].items() if key != COMPILE_KEY}
    wrappers = {**wrappers, WrappersMP.APPLY_MODEL: apply_model}
    return {**model_options, "transformer_options": {**transformer_options, "wrappers": wrappers}}


def replacement(model_options, block):
    return model_options["transformer_options"].get("patches_replace", {}).get("dit", {}).get(block)


def replace_block(model_options, block, patch):
    return set_model_options_patch_replace({**model_options}, patch, "dit", *block)


def capture_entry(model_options, rule, entry):
    """Options of a positive pass that keeps its hidden states at the entry of the first skipped block.

    Args:
        model_options: of the run.
        rule: `SkipLayer`.
        entry: a list that gets `{"img": …, "txt": …}` of the positive's rows, once.
    """
    block = rule.layers[0]
    before = replacement(model_options, block)

    def capture(args, extra):
        chunks = args["transformer_options"]["cond_or_uncond"]
        if 0 in chunks and not entry:
            rows = args["img"].shape[0] // len(chunks)
            first = chunks.index(0) * rows
            # Blocks work in place, so the rows are copied.
            entry.append({name: args[name][first : first + rows].clone() for name in STATES if name in args})
        return before(args, extra) if before else extra["original_block"](args)

    return replace_block(model_options, block, capture)


def skip_options(model_options, rule, entry, counts):
    """Options of the skip pass: the tail alone when `entry` holds the hidden states, else the whole pass.

    Args:
        model_options: of the run, without `capture_entry`.
        rule: `SkipLayer`.
        entry: what `capture_entry` kept; it is used up.
        counts: `block_counts` of the model.
    """
    changed = {
        block: without_attention(replacement(model_options, block)) if rule.mode == "attention" else skip
        for block in rule.layers
    }
    if entry:
        first = rule.layers[0]
        prefix = [(kind, i) for kind, count in counts.items() for i in range(count)]
        state, run_first = entry.pop(), changed[first]
        changed |= dict.fromkeys(prefix[: prefix.index(first)], skip)
        changed[first] = lambda args, extra: run_first({**args, **state}, extra)
    model_options = uncompiled(model_options)
    for block, patch in changed.items():
        model_options = replace_block(model_options, block, patch)
    return model_options


def skip(args, extra):
    return args


def without_attention(before):
    """A replacement that runs its block with an attention that looks at nothing but the place itself."""

    def patch(args, extra):
        options = {**args["transformer_options"], "optimized_attention_override": values_only}
        args = {**args, "transformer_options": options}
        return before(args, extra) if before else extra["original_block"](args)

    return patch


def values_only(attention, q, k, v, heads, *args, skip_reshape=False, skip_output_reshape=False, **kwargs):
    """Attention whose map is the identity: it returns the values (PAG, arXiv 2403.17377; STG, arXiv 2411.18664)."""
    if q.shape != v.shape:
        return attention(q, k, v, heads, *args, skip_reshape=skip_reshape, skip_output_reshape=skip_output_reshape, **kwargs)
    if skip_reshape == skip_output_reshape:
        return v
    if skip_reshape:
        return v.transpose(1, 2).flatten(2)
    return v.unflatten(2, (heads, -1)).transpose(1, 2)
