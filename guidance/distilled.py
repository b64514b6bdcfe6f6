"""The guard of a distilled model, which was trained to be run at cfg 1."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .rule import DISTILLED, Rule, ScaledVelocities, Step


@dataclass(frozen=True)
class Distilled(Rule):
    """Any cfg above 1 counts as 1, as in diffusers' `Flux2KleinPipeline`, which ignores it when `is_distilled`.

    A guider that takes its scale from elsewhere runs the negative all the same: then the positive takes its place.
    """

    node: ClassVar[str] = "KleinKitLoader"
    title: ClassVar[str] = "Klein Loader"
    order: ClassVar[int] = DISTILLED

    def decide(self, step: Step) -> Step:
        return replace(step, cfg=1.0) if step.cfg > 1.0 else step

    def transform(self, velocities: ScaledVelocities, step: Step, memory: dict[str, Any]) -> ScaledVelocities:
        if velocities.uncond is None or step.cfg <= 1.0:
            return velocities
        return replace(velocities, uncond=velocities.cond)
