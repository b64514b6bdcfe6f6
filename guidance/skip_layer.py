"""Skip-layer guidance: away from what the model would say without some of its layers."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from ..checks import expected, number, one_of, steps_in_range
from .rule import SKIP, Rule

MODES = ("block", "attention")


def parse_layers(name, text, count):
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


def rescaled(guided, cond, x, rescale):
    """x0 scaled towards the standard deviation of the positive x0, as ComfyUI's `SkipLayerGuidanceDiT` does.

    Args:
        guided, cond, x: σ·v, σ·v_c and x, [B, …].
        rescale: 0 leaves it, 1 takes over the positive's deviation.
    Returns:
        σ·v, [B, …].
    """
    denoised = x - guided
    factor = (x - cond).std() / denoised.std()
    return x - denoised * (rescale * factor + (1.0 - rescale))


@dataclass(frozen=True)
class SkipLayer(Rule):
    """v += scale (v_c − v_skip) while start·n ≤ i < end·n (SD3.5; mode `attention`: STG, arXiv 2411.18664)."""

    node: ClassVar[str] = "KleinKitSkipLayerGuidance"
    order: ClassVar[int] = SKIP
    scale: float = 3.0
    double_layers: tuple[int, ...] = ()
    single_layers: tuple[int, ...] = (9,)
    start: float = 0.0
    end: float = 0.5
    mode: str = "block"
    rescale: float = 0.0

    def __post_init__(self):
        steps_in_range(self.start, self.end, 1)
        number("scale", self.scale, 0.0, 100.0)
        number("rescale", self.rescale, 0.0, 1.0)
        one_of("mode", MODES, self.mode)

    @property
    def layers(self):
        """The skipped layers in the order in which the model runs them: `(("double_block", 2), …)`."""
        return (*(("double_block", i) for i in self.double_layers), *(("single_block", i) for i in self.single_layers))

    def needs(self, step):
        active = self.scale != 0.0 and self.layers and step.index in steps_in_range(self.start, self.end, step.steps)
        return ("cond", "skip") if active else ()

    def transform(self, velocities, step):
        v = velocities
        if v.skip is None:
            return v
        guided = v.guided + self.scale * (v.cond - v.skip)
        if self.rescale:
            guided = rescaled(guided, v.cond, v.x, self.rescale)
        return replace(v, guided=guided)
