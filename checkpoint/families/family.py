"""What a family of Kleins is: everything in which one family differs from another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

QWEN3, QWEN3_VL, FLUX2_VAE, TAEF2 = "Qwen3", "Qwen3-VL", "FLUX.2's VAE", "TAEF2"

# Original name of a layer: (rows of its weight as a multiple of the hidden size, or None; diffusers' name, or the names of
# what the original fuses).
Table = Mapping[str, tuple]


class Settings(NamedTuple):
    """What a variant is sampled with."""

    steps: int
    cfg: float


class Stack(NamedTuple):
    """Blocks that follow each other: what their names begin with, originally and in diffusers, and the layers of one."""

    original: str
    diffusers: str
    table: Table


@dataclass(frozen=True)
class Family:
    """One family of Kleins, such as FLUX.2 [klein]. ARCHITECTURE.md says how to add one.

    The transformer:
        name: the architecture, as a user reads it.
        sizes: `{(blocks of each stack, …, hidden size): "4B"}` of the published models.
        outside: the layers that lie in no block.
        stacks: the blocks.
        signs: layers of `outside` that every file of the family has, whatever its quantisation.
        image: the layer of `outside` whose rows are the hidden size.
        text: the layer of `outside` that takes the text.
        final_modulation: the layer whose halves diffusers swaps.
        siblings: `{beginning of a tensor's name: the name of the other model that has it}`.
        flow_map: the layer of `outside` that a distilled model has and a base model lacks; "": the tensors do not tell.
        fused: layers of a block that a quantised file may hold as one.
        fixed_depth: no model of a published width has other numbers of blocks.
    Its text encoder and VAE:
        taps: after how many layers each hidden state is taken that the transformer reads, side by side.
        encoders: the architectures of text encoder that it can use, best first.
        official_encoders: `{hidden size: published names, best first}`.
        official_vaes: published names, best first.
    How it is sampled:
        distilled, base: steps and cfg.
        note_on_base: what else is said of steps and cfg, as a sentence; "": nothing.
        shift: its name in `scheduler.mu.SHIFTS`.
    Names elsewhere:
        official_models: a regular expression of the published files' names, in lower case, without ending.
        pipeline: what the class of its diffusers pipeline begins with.
        transformer: diffusers' class of its transformer, where no other family has the same; "": one has.
        clip_type: its `type` in ComfyUI's CLIPLoader.
        comfyui: the first release of ComfyUI that loads it; "": every one that KleinKit works with.
    """

    name: str
    sizes: Mapping[tuple[int, ...], str]
    outside: Table
    stacks: tuple[Stack, ...]
    signs: tuple[str, ...]
    image: str
    text: str
    final_modulation: str
    taps: tuple[int, ...]
    encoders: tuple[str, ...]
    official_encoders: Mapping[int, tuple[str, ...]]
    official_vaes: tuple[str, ...]
    distilled: Settings
    base: Settings
    shift: str
    official_models: str
    pipeline: str
    clip_type: str
    siblings: Mapping[str, str] = field(default_factory=dict)
    flow_map: str = ""
    fused: tuple[str, ...] = ()
    fixed_depth: bool = False
    note_on_base: str = ""
    transformer: str = ""
    comfyui: str = ""

    @property
    def states(self) -> int:
        """How many hidden states of the text encoder the transformer reads."""
        return len(self.taps)

    @property
    def layers_read(self) -> int:
        """How many layers of the text encoder have to run."""
        return self.taps[-1]
