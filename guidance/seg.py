"""Smoothed Energy Guidance: away from what the model would say if the picture's places asked its attention for less."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from ..checks import number, steps_in_range
from .rule import ADD, COND, GRID, BlockPatch, ExtraPass, Rule, ScaledVelocities, Step
from .skip_layer import OVERRIDE, acts, layers

# A blur beyond it is the mean, as in the authors' code.
LARGEST_SIGMA = 9999.0
BLURRED = "seg"


def blur_matrix(count: int, sigma: float, device: torch.device | None = None) -> torch.Tensor:
    """What blurs a row of `count` values: a Gaussian of up to 3σ to each side and at most half the row, reflected at its ends.

    Args:
        count: how many values.
        sigma: σ, in places.
        device: where it is made, so that it need not be brought there.
    Returns:
        [count, count] float32; each row sums to 1.
    """
    widest = math.ceil(6 * sigma)
    half = min(widest + 1 - widest % 2, count + 1 - count % 2) // 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=device) / sigma) ** 2)
    places = torch.eye(count, device=device)[None]
    each = torch.nn.functional.pad(places, (half, half), mode="reflect")[0].unfold(1, 2 * half + 1, 1)
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
    rows, columns = (blur_matrix(count, sigma, tokens.device) for count in (height, width))
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
class SEG(Rule):
    """v += scale (v_c − v_seg) while start·n ≤ i < end·n (Smoothed Energy Guidance, arXiv 2408.00760)."""

    node: ClassVar[str] = "KleinKitSEG"
    title: ClassVar[str] = "Klein SEG"
    order: ClassVar[int] = ADD
    scale: float = 3.0
    double_layers: tuple[int, ...] = ()
    single_layers: tuple[int, ...] = (2,)
    start: float = 0.0
    end: float = 0.5
    blur_sigma: float = 10000.0

    def __post_init__(self) -> None:
        steps_in_range(self.start, self.end, 1)
        number("scale", self.scale, 0.0, 100.0)
        number("blur_sigma", self.blur_sigma, 0.01, 10000.0)

    @property
    def passes(self) -> tuple[ExtraPass, ...]:
        blocks = dict.fromkeys(layers(self.double_layers, self.single_layers), partial(with_blur, self.blur_sigma))
        return (ExtraPass(BLURRED, blocks=blocks, grid=True),)

    def needs(self, step: Step) -> tuple[str, ...]:
        blocks = layers(self.double_layers, self.single_layers)
        return (COND, BLURRED) if acts(step, blocks, self.scale, self.start, self.end) else ()

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        v = velocities
        if BLURRED not in v.extra or v.guided is None:
            return v
        return replace(v, guided=v.guided + self.scale * (v.cond - v.extra[BLURRED]))
