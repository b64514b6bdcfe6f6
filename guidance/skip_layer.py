"""Skip-layer guidance: away from what the model would say without some of its layers."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..checks import expected, number, one_of, steps_in_range
from .rule import ADD, COND, Block, BlockPatch, ExtraPass, Rule, ScaledVelocities, Step

MODES = ("block", "attention")
# In a block's `transformer_options`: what ComfyUI calls in place of its attention.
OVERRIDE = "optimized_attention_override"
SKIP = "skip"


def parse_layers(name: str, text: str, count: int) -> tuple[int, ...]:
    """The layer indices of a text such as "7-9, 12".

    Args:
        name: of the input, for the error.
        text: indices and ranges between commas; empty is none.
        count: how many layers of this kind the model has.
    Returns:
        Sorted tuple of ints, each from 0 to count − 1.
    Raises:
        ValueError: not of that form, or outside the model; the message gives the valid range.
    """
    fits = (
        f"layers of this model, 0 to {count - 1} (such as `{min(7, count - 1)}` or `0-{min(2, count - 1)}`)"
        if count
        else "empty, because this model has no such layers"
    )
    if not isinstance(text, str):
        raise expected(name, fits, text)
    layers = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", part)
        if not match:
            raise expected(name, fits, text)
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < count:
            raise expected(name, fits, text)
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def layers(double: tuple[int, ...], single: tuple[int, ...]) -> tuple[Block, ...]:
    """Blocks in the order in which the model runs them: `(("double_block", 2), …, ("single_block", 9), …)`."""
    return (*(("double_block", i) for i in double), *(("single_block", i) for i in single))


def acts(step: Step, blocks: tuple[Block, ...], scale: float, start: float, end: float) -> bool:
    """Whether what some blocks do is strengthened in a step: by `scale`, while start·n ≤ i < end·n."""
    return scale != 0.0 and bool(blocks) and step.index in steps_in_range(start, end, step.steps)


def rescaled(guided: torch.Tensor, cond: torch.Tensor, x: torch.Tensor, rescale: float) -> torch.Tensor:
    """x0 scaled towards the standard deviation of the positive x0, a picture (arXiv 2305.08891, section 3.4).

    diffusers' `rescale_noise_cfg` does the same; ComfyUI's `SkipLayerGuidanceDiT` takes one deviation for the batch.

    Args:
        guided, cond, x: σ·v, σ·v_c and x, [B, …].
        rescale: 0 leaves it, 1 takes over the positive's deviation.
    Returns:
        σ·v, [B, …].
    """
    denoised = x - guided
    dims = tuple(range(1, x.ndim))
    factor = (x - cond).std(dim=dims, keepdim=True) / denoised.std(dim=dims, keepdim=True)
    return x - denoised * (rescale * factor + (1.0 - rescale))


def skip(args: dict, extra: dict) -> dict:
    """A block patch that leaves the block out."""
    return args


def without_attention(before: BlockPatch | None) -> BlockPatch:
    """A block patch that runs the block with an attention that looks at nothing but the place itself.

    Args:
        before: another node's patch of the block, which it goes on with.
    """

    def patch(args: dict, extra: dict) -> dict:
        options = {**args["transformer_options"], OVERRIDE: values_only}
        args = {**args, "transformer_options": options}
        return before(args, extra) if before else extra["original_block"](args)

    return patch


def values_only(
    attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    *args: Any,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention whose map is the identity: it returns the values (PAG, arXiv 2403.17377; STG, arXiv 2411.18664)."""
    if q.shape != v.shape:
        return attention(q, k, v, heads, *args, skip_reshape=skip_reshape, skip_output_reshape=skip_output_reshape, **kwargs)
    if skip_reshape == skip_output_reshape:
        return v
    if skip_reshape:
        return v.transpose(1, 2).flatten(2)
    return v.unflatten(2, (heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class SkipLayer(Rule):
    """v += scale (v_c − v_skip) while start·n ≤ i < end·n (SD3.5).

    Mode `attention` is PAG, arXiv 2403.17377, and STG, arXiv 2411.18664.
    """

    node: ClassVar[str] = "KleinKitSkipLayerGuidance"
    title: ClassVar[str] = "Klein Skip-Layer Guidance"
    order: ClassVar[int] = ADD
    scale: float = 3.0
    double_layers: tuple[int, ...] = ()
    single_layers: tuple[int, ...] = (9,)
    start: float = 0.0
    end: float = 0.5
    mode: str = "block"
    rescale: float = 0.0

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)
        number("scale", self.scale, 0.0, 100.0)
        number("rescale", self.rescale, 0.0, 1.0)
        one_of("mode", MODES, self.mode)

    @property
    def passes(self) -> tuple[ExtraPass, ...]:
        patch = without_attention if self.mode == "attention" else lambda before: skip
        return (ExtraPass(SKIP, blocks=dict.fromkeys(layers(self.double_layers, self.single_layers), patch)),)

    def needs(self, step: Step) -> tuple[str, ...]:
        blocks = layers(self.double_layers, self.single_layers)
        return (COND, SKIP) if acts(step, blocks, self.scale, self.start, self.end) else ()

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if SKIP not in v.extra or v.guided is None:
            return v
        guided = v.guided + self.scale * (v.cond - v.extra[SKIP])
        if self.rescale:
            guided = rescaled(guided, v.cond, v.x, self.rescale)
        return replace(v, guided=guided)
