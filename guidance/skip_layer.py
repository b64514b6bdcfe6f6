"""Skip-layer guidance: away from what the model would say without some of its layers, or with less attention in them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from ..checks import expected, number, one_of, steps_in_range
from .rule import ADD, COND, GRID, Block, BlockPatch, ExtraPass, Rule, ScaledVelocities, Step

MODES = BLOCK, ATTENTION, BLUR = ("block", "attention", "blur")
OVERRIDE = "optimized_attention_override"
# A blur beyond it is the mean, as in the authors' code.
LARGEST_SIGMA = 9999.0
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


def blur_matrix(count: int, sigma: float) -> torch.Tensor:
    """What blurs a row of `count` values: a Gaussian of up to 3σ to each side and at most half the row, reflected at its ends.

    Args:
        count: how many values.
        sigma: σ, in places.
    Returns:
        [count, count] float32; each row sums to 1.
    """
    widest = math.ceil(6 * sigma)
    half = min(widest + 1 - widest % 2, count + 1 - count % 2) // 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    each = torch.nn.functional.pad(torch.eye(count)[None], (half, half), mode="reflect")[0].unfold(1, 2 * half + 1, 1)
    return (each @ (weights / weights.sum())).T


def blur(tokens: torch.Tensor, height: int, width: int, sigma: float) -> torch.Tensor:
    """A Gaussian blur over the grid of a picture's tokens; above `LARGEST_SIGMA` their mean.

    Source: Smoothed Energy Guidance, arXiv 2408.00760: to blur the queries is to blur the attention's logits, over the places
    that ask. Kernel and border are those of the authors' code (github.com/SusungHong/SEG-SDXL), there for squares only.

    Args:
        tokens: [..., height·width, channels], row by row.
        height, width: of the grid.
        sigma: σ in tokens.
    Returns:
        The same shape and dtype.
    """
    if sigma > LARGEST_SIGMA:
        return tokens.mean(dim=-2, keepdim=True).expand_as(tokens)
    rows, columns = (blur_matrix(count, sigma).to(tokens.device) for count in (height, width))
    grid = tokens.float().unflatten(-2, (height, width))
    return torch.einsum("yh,xw,...hwc->...yxc", rows, columns, grid).flatten(-3, -2).to(tokens.dtype)


def with_blur(sigma: float, before: BlockPatch | None) -> BlockPatch:
    """A block patch that runs the block with the queries of the picture's own tokens blurred.

    The text's and the references' stay as they are. Queries are blurred as the attention gets them, with their positions.

    Args:
        sigma: of `blur`.
        before: another node's patch of the block, which it goes on with.
    """

    def patch(args: dict, extra: dict) -> dict:
        options = args["transformer_options"]
        first = args["txt"].shape[1] if "txt" in args else options["img_slice"][0]
        override = partial(blurred, options.get(OVERRIDE), first, options[GRID], sigma)
        args = {**args, "transformer_options": {**options, OVERRIDE: override}}
        return before(args, extra) if before else extra["original_block"](args)

    return patch


def blurred(
    earlier: Callable[..., torch.Tensor] | None,
    first: int,
    grid: tuple[int, int],
    sigma: float,
    attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention with blurred queries of the picture.

    Args:
        earlier: another node's attention, which goes on doing what it does.
        first: where the picture's tokens begin.
        grid: their height and width.
        attention: ComfyUI's.
        q: [B, heads, tokens, head width], or [B, tokens, channels].
    """
    height, width = grid
    last = first + height * width
    q = torch.cat((q[..., :first, :], blur(q[..., first:last, :], height, width, sigma), q[..., last:, :]), dim=-2)
    return earlier(attention, q, *args, **kwargs) if earlier else attention(q, *args, **kwargs)


@dataclass(frozen=True)
class SkipLayer(Rule):
    """v += scale (v_c − v_skip) while start·n ≤ i < end·n.

    Mode `block` is SD3.5's, `attention` PAG's (arXiv 2403.17377) and STG's (arXiv 2411.18664), `blur` SEG's (arXiv 2408.00760).
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
    blur_sigma: float = 10000.0

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)
        number("scale", self.scale, 0.0, 100.0)
        number("rescale", self.rescale, 0.0, 1.0)
        one_of("mode", MODES, self.mode)
        number("blur_sigma", self.blur_sigma, 0.01, 10000.0)

    @property
    def passes(self) -> tuple[ExtraPass, ...]:
        patches = {BLOCK: lambda before: skip, ATTENTION: without_attention, BLUR: partial(with_blur, self.blur_sigma)}
        blocks = dict.fromkeys(layers(self.double_layers, self.single_layers), patches[self.mode])
        return (ExtraPass(SKIP, blocks=blocks, grid=self.mode == BLUR),)

    def needs(self, step: Step) -> tuple[str, ...]:
        skipped = self.double_layers or self.single_layers
        active = self.scale != 0.0 and skipped and step.index in steps_in_range(self.start, self.end, step.steps)
        return (COND, SKIP) if active else ()

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if SKIP not in v.extra or v.guided is None:
            return v
        guided = v.guided + self.scale * (v.cond - v.extra[SKIP])
        if self.rescale:
            guided = rescaled(guided, v.cond, v.x, self.rescale)
        return replace(v, guided=guided)
