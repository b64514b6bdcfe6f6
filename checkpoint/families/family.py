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
        fixed_depth: no model of a published width has other numbers of blocks.
        outside: the layers that lie in no block.
        stacks: the blocks.
        signs: layers of `outside` that every file of the family has, whatever its quantisation.
        image: the layer of `outside` whose rows are the hidden size.
        text: the layer of `outside` that takes the text.
        final_modulation: the layer whose halves diffusers swaps.
        siblings: `{beginning of a tensor's name: the name of the other model that has it}`.
        flow_map: the first layer of `outside` that a distilled model has and a base model lacks, because it is told where
            each step goes; "": the tensors do not tell the two apart.
        fused: layers of a block that a quantised file may hold as one.
        unused: beginnings of the names of tensors that a file may have and nothing reads.
        made_for: `{the metadata's "quantization": the engine whose packages say so}`.
    Its text encoder and VAE:
        taps: after how many layers each hidden state is taken that the transformer reads, side by side.
        encoders: the architectures of text encoder that it can use, best first.
        rope_theta: of its text encoder's positions.
        official_encoders: `{hidden size: published names, best first}`, in the order of `sizes`.
        official_vaes: published names, best first.
        mistaken: `{an architecture that is taken for its text encoder: what to do with it}`.
    How it is sampled:
        distilled, base: steps and cfg.
        note_on_base: what else is said of steps and cfg, as a sentence; "": nothing.
        shift: its name in `scheduler.mu.SHIFTS`.
    Names elsewhere:
        official_models: a regular expression of the published files' names, in lower case, without ending, where a name has
            to tell base from distilled; "": it does not have to.
        pipeline: what the class of its diffusers pipeline begins with.
        transformer: diffusers' class of its transformer, where no other model has the same; "": one has.
        encoder_config: what the class of its text encoder is called where ComfyUI configures it.
        clip_type: its `type` in ComfyUI's CLIPLoader, and the word for it in names of files.
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
    rope_theta: int
    official_encoders: Mapping[int, tuple[str, ...]]
    official_vaes: tuple[str, ...]
    distilled: Settings
    base: Settings
    shift: str
    pipeline: str
    clip_type: str
    fixed_depth: bool = False
    siblings: Mapping[str, str] = field(default_factory=dict)
    flow_map: str = ""
    fused: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    made_for: Mapping[str, str] = field(default_factory=dict)
    mistaken: Mapping[str, str] = field(default_factory=dict)
    note_on_base: str = ""
    official_models: str = ""
    transformer: str = ""
    comfyui: str = ""
    encoder_config: str = ""

    @property
    def only_distilled(self) -> tuple[str, ...]:
        """The layers of `outside` that a distilled model has and a base model lacks."""
        embedder = self.flow_map.partition(".")[0]
        return tuple(name for name in self.outside if embedder and name.startswith(f"{embedder}."))

    def published_text_width(self, shape: tuple[int, ...]) -> int:
        """How wide the text input of a published model is, by its key in `sizes`; 0 where the shape does not tell."""
        return self.states * min(self.official_encoders) if self.fixed_depth and shape in self.sizes else 0

    @property
    def states(self) -> int:
        """How many hidden states of the text encoder the transformer reads."""
        return len(self.taps)

    @property
    def layers_read(self) -> int:
        """How many layers of the text encoder have to run."""
        return self.taps[-1]
