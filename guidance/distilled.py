"""The guard of a distilled model, which was trained to be run at cfg 1."""

from dataclasses import dataclass, replace
from typing import ClassVar

from .rule import DISTILLED, Rule


@dataclass(frozen=True)
class Distilled(Rule):
    """Any cfg above 1 counts as 1, as in diffusers' `Flux2KleinPipeline`, which ignores it when `is_distilled`."""

    node: ClassVar[str] = "KleinKitLoader"
    order: ClassVar[int] = DISTILLED

    def decide(self, step):
        return replace(step, cfg=1.0) if step.cfg > 1.0 else step
