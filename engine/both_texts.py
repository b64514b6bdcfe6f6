"""One pass with two texts: the image attends to the positive's and to the negative's, and a rule mixes what it finds.

The negative's tokens stand in front of the positive's, at the same positions. Each text attends to itself and to the image.
So the pass costs the negative's tokens and a second attention, where a second pass would cost everything twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.ldm.flux.model
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..checks import expected, of_node
from ..guidance.rule import COND, Mix, Rule, Step
from .extra_pass import uncompiled
from .run import Run, at_sigma, is_whole

KEY = "kleinkit_texts"
OVERRIDE = "optimized_attention_override"


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
    wrappers = options.get("wrappers", {})
    around = {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), KEY: [partial(join, run, rule, negative)]}
    return {
        "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: around},
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
    text = comfy.utils.repeat_to_batch_size(negative, len(x) // passes).to(context).repeat(passes, 1, 1)
    texts, patches = Texts(text.shape[1], context.shape[1], rows), transformer_options.get("patches", {})
    patches = {**patches, "post_input": [*patches.get("post_input", ()), partial(place, texts)]}
    return go_on(torch.cat((text, context), dim=1), {**transformer_options, KEY: texts, "patches": patches})


def mixed_rows(run: Run, options: dict, batch: int) -> slice | list[int]:
    """The rows of a model call that belong to the positive's pass, or to a pass that is the positive's with a change."""
    passes = list(zip(options["uuids"], options["cond_or_uncond"]))
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

    def without_positive(tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat((tokens[rows, :, :first], tokens[rows, :, image:]), dim=2)

    positive = run_attention(q[:, :, first:], k[:, :, first:], v[:, :, first:], heads, *args, **kwargs)
    negative = run_attention(*map(without_positive, (q, k, v)), heads, *args, **kwargs)
    out = positive.new_zeros(len(positive), q.shape[2], positive.shape[2])
    out[:, first:] = positive
    out[rows, :first] = negative[:, :first]
    out[rows, image:] = mix(positive[rows, texts.positive :], negative[:, first:])
    run.acted.add(rule.node)
    return out
