"""One pass with two texts: the image attends to the positive's and to the negative's, and a rule mixes what it finds.

The negative's tokens stand in front of the positive's, at the same positions. Each text attends to itself and to the image.
The image's attention to itself is the same for both, and where torch has a kernel for it, it is computed once. So the pass
costs the negative's tokens and the image's attention to them, where a second pass would cost everything twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.ldm.flux.model
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.utils
import torch
from comfy.cli_args import args as command_line
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrapperExecutor

from ..checks import expected, of_node
from ..guidance.merged_attention import Attention, kernel, to_both
from ..guidance.rule import COND, Mix, Rule, Step
from ..guidance.skip_layer import OVERRIDE
from .extra_pass import uncompiled, wrappers_with
from .run import Run, at_sigma, is_whole, rows_in

KEY = "kleinkit_texts"
# What ComfyUI calls an attention with, and the merged one knows.
KNOWN = {"mask", "skip_reshape", "transformer_options", "_inside_attn_wrapper"}


class Texts(NamedTuple):
    """What stands in a sequence: the numbers of the negative's and the positive's tokens, and the rows that are mixed."""

    negative: int
    positive: int
    rows: slice | list[int]


def check_model(model: BaseModel) -> None:
    """Raises: ValueError: the attention of this model is not known."""
    if not isinstance(model.diffusion_model, comfy.ldm.flux.model.Flux):
        raise expected("model", "a FLUX.2 [klein], or another model that ComfyUI builds as FLUX", type(model).__name__)


def negative_text(conds: list[dict], sigma: float) -> torch.Tensor | str:
    """The negative's text at a sigma, [B, tokens, width]; or why there is none to take, as the rest of a sentence.

    Args:
        conds: the negative's conditionings, as ComfyUI's samplers have them.
        sigma: of the step.
    """
    now = at_sigma(conds, sigma)
    if not now:
        return "the negative prompt has no conditioning in it"
    # For each area of the positive ComfyUI adds a copy of the negative, with the same text.
    texts = {id(text): text for c in now if (text := c["model_conds"].get("c_crossattn"))}
    if not any(map(is_whole, now)) or len(texts) != 1:
        return "it needs a negative prompt that is one conditioning for the whole picture"
    return next(iter(texts.values())).cond


def both_texts(run: Run, step: Step, conds: dict[str, list[dict]]) -> dict:
    """The transformer options of a step in which a rule mixes the attention to both texts; empty in other steps.

    Args:
        run: its `asked` gets the rule's node, and `acted` when the attention is mixed.
        step: of the plan.
        conds: the guider's conditionings.
    """
    mixing = [(rule, mix) for rule in run.rules if (mix := rule.mix(step))]
    if not mixing or COND not in step.passes:
        return {}
    # `stack.add` lets only one in.
    [(rule, mix)] = mixing
    if "negative" not in conds:
        run.warn(f"{rule.title} does nothing: this guider has no negative prompt. Take CFGGuider, with cfg 1.", rule.node)
        return {}
    negative = negative_text(conds["negative"] or [], step.sigma)
    if isinstance(negative, str):
        run.warn(f"{rule.title} does nothing in step {step.index + 1}: {negative}.", rule.node + negative)
        return {}
    run.asked.add(rule.node)
    options = uncompiled(run.model_options)["transformer_options"]
    return {
        "wrappers": wrappers_with(options, KEY, partial(join, run, rule, negative)),
        OVERRIDE: partial(attend, run, rule, mix, options.get(OVERRIDE)),
    }


def join(
    run: Run,
    rule: Rule,
    negative: torch.Tensor,
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
    """Wrapper of ComfyUI's `Flux.forward`: put the negative's text in front of the positive's."""

    def go_on(context: torch.Tensor, options: dict) -> torch.Tensor:
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    rows = mixed_rows(run, transformer_options, len(x))
    if rows == []:
        return go_on(context, transformer_options)
    if kwargs.get("attention_mask") is not None:
        run.warn(f"{rule.title} does nothing with a prompt that has an attention mask, such as a style model's.", rule.node)
        run.asked.discard(rule.node)
        return go_on(context, transformer_options)
    if negative.shape[2] != context.shape[2]:
        why = f"the negative prompt comes from another text encoder than the positive: {negative.shape[2]} wide"
        raise of_node(rule.title, ValueError(f"{why}, not {context.shape[2]}. Encode both with this model's."))
    passes = len(transformer_options["uuids"])
    # As ComfyUI brings the positive's to the device: the host does not wait for it.
    text = comfy.model_management.cast_to_device(negative, context.device, context.dtype)
    text = comfy.utils.repeat_to_batch_size(text, len(x) // passes).repeat(passes, 1, 1)
    texts, patches = Texts(text.shape[1], context.shape[1], rows), transformer_options.get("patches", {})
    patches = {**patches, "post_input": [*patches.get("post_input", ()), partial(place, texts)]}
    return go_on(torch.cat((text, context), dim=1), {**transformer_options, KEY: texts, "patches": patches})


def mixed_rows(run: Run, options: dict, batch: int) -> slice | list[int]:
    """The rows of a model call that belong to the positive's pass, or to a pass that is the positive's with a change."""
    passes = rows_in(options)
    size = batch // len(passes)
    rows = [number * size + row for number, one in enumerate(passes) if run.is_of(COND, *one) for row in range(size)]
    return slice(None) if len(rows) == batch else rows


def place(texts: Texts, args: dict) -> dict:
    """Input patch: both texts are at the positions that each would have alone."""
    ids = args["txt_ids"]
    longest = torch.arange(max(texts[:2]), device=ids.device)
    return {**args, "txt_ids": ids[:, torch.cat([longest[: texts.negative], longest[: texts.positive]])]}


def attend(
    run: Run,
    rule: Rule,
    mix: Mix,
    earlier: Callable[..., torch.Tensor] | None,
    attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention override: each text with the image, and the image's two outputs mixed.

    Args:
        earlier: another node's override, which goes on doing what it does.
        attention: ComfyUI's.
        q, k, v: [B, heads, tokens, head width]; keys and values may have more tokens, at the end.
    Returns:
        [B, tokens, channels].
    """
    run_attention = partial(earlier, attention) if earlier else attention
    texts = kwargs["transformer_options"].get(KEY)
    if texts is None:
        return run_attention(q, k, v, heads, *args, **kwargs)
    if kwargs.get("mask") is not None:
        why = "another node's attention mask does not know the second text: remove one of the two."
        raise of_node(rule.title, ValueError(why))
    first, image, rows = texts.negative, texts.negative + texts.positive, texts.rows
    out = q.new_zeros(len(q), q.shape[2], heads * q.shape[3])
    merging = merging_attention(earlier, attention, q, k, v, args, kwargs)
    if merging:
        positive, negative_text, negative = to_both(merging, q[rows], k[rows], v[rows], *texts[:2])
        out[rows, first:] = positive
        others = [] if rows == slice(None) else [row for row in range(len(q)) if row not in rows]
        if others:
            out[others, first:] = run_attention(*(t[others, :, first:] for t in (q, k, v)), heads, *args, **kwargs)
    else:
        out[:, first:] = run_attention(*(t[:, :, first:] for t in (q, k, v)), heads, *args, **kwargs)
        without_positive = (torch.cat((t[rows, :, :first], t[rows, :, image:]), dim=2) for t in (q, k, v))
        negative = run_attention(*without_positive, heads, *args, **kwargs)
        negative_text, negative = negative[:, :first], negative[:, first:]
    out[rows, :first] = negative_text
    out[rows, image:] = mix(out[rows, image:], negative)
    run.acted.add(rule.node)
    return out


def merging_attention(
    earlier: Callable[..., torch.Tensor] | None,
    attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    args: tuple,
    kwargs: dict,
) -> Attention | None:
    """torch's attention with its lse where it may stand in for what would run; None where two attentions run.

    It may for ComfyUI's call of torch's attention, and for ComfyUI's default on a CPU. What a node or a user chose instead,
    such as SageAttention or `--use-quad-cross-attention`, stays.
    """
    if earlier or args or kwargs.keys() - KNOWN or not kwargs.get("skip_reshape"):
        return None
    known = comfy.ldm.modules.attention
    alike = [known.attention_pytorch]
    if q.device.type == "cpu" and not command_line.use_quad_cross_attention:
        alike.append(known.attention_sub_quad)
    # An override is called with what ComfyUI has wrapped.
    return kernel(q, k, v) if attention in [getattr(one, "__wrapped__", one) for one in alike] else None
