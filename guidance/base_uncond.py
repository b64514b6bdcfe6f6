"""The negative prediction from another model."""

from dataclasses import dataclass
from typing import ClassVar

from .rule import BASE, Rule


@dataclass(frozen=True)
class BaseUncond(Rule):
    """v_u from a base model: a fine-tuned model's own unconditional prediction is poor (arXiv 2503.20240).

    The pass itself is redirected where it runs; the formula of guidance stays as it is.
    """

    node: ClassVar[str] = "KleinKitBaseUncond"
    title: ClassVar[str] = "Klein Base Uncond"
    order: ClassVar[int] = BASE
