"""Named stacks of rules: each is what its nodes would add to the model, wired by hand."""

from ..checks import one_of
from .adaptive import Adaptive
from .cfg import CFG, Diminishing
from .nag import NAG
from .renorm import Renorm
from .rule import Rule
from .skip_layer import SkipLayer

NODE, TITLE = "KleinKitGuidance", "Klein Guidance"

PRESETS: dict[str, tuple[Rule, ...]] = {
    "off": (),
    # One guided step of five, whose guidance the others reuse while cfg falls: the best of nano's study (nano/README.md).
    "faster": (CFG(Diminishing(0.3), "reuse"), Adaptive(threshold=-1.0, every=4)),
    "sharper": (SkipLayer(scale=3.0, single_layers=(9,), start=0.0, end=0.5),),
    "negative_prompt": (NAG(scale=5.0, tau=2.5, alpha=0.25),),
    "high_cfg": (Renorm(mode="global", strength=1.0, shrink_only=True),),
}


def preset(name: str) -> tuple[Rule, ...]:
    """The rules of a preset.

    Raises:
        ValueError: no such preset.
    """
    one_of("preset", PRESETS, name)
    return PRESETS[name]
