"""The layers of Qwen3 and Qwen3-VL that a Klein reads: its text is hidden states after some of them, such as 9, 18 and 27."""

import re

from .families import FLUX2_KLEIN
from .families.family import Family
from .header import CheckpointError
from .inspection import QWEN3, QWEN3_VL, TEXT_ENCODER, Checkpoint

HEAD_WIDTH = 128
LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
EMBEDDINGS = "model.embed_tokens.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def plain_key(key: str, prefix: str, *, trim: bool, family: Family = FLUX2_KLEIN) -> str | None:
    """The name in Qwen3 of a tensor of the file, or None if it is not to be read.

    Args:
        key: the name in the file.
        prefix: what the text encoder's names begin with in that file.
        trim: leave out the layers after the last that the family reads, the final norm and the output head.
        family: of the Klein.
    Returns:
        `model.layers.0.…`, or None: another model's, Qwen3-VL's picture part, or trimmed.
    """
    if not key.startswith(prefix):
        return None
    key = key[len(prefix) :]
    if key.startswith(("model.visual.", "visual.")):
        return None
    if key.startswith("model.language_model."):
        key = "model." + key.removeprefix("model.language_model.")
    if key.startswith("lm_head."):
        # As ComfyUI names it, and as some files do.
        key = "model." + key
    layer = _LAYER.match(key)
    unused = int(layer[1]) >= family.layers_read if layer else key.startswith(("model.norm.", "model.lm_head."))
    return None if trim and unused else key


def check_layers(checkpoint: Checkpoint, *, trim: bool, family: Family = FLUX2_KLEIN) -> dict[str, int]:
    """Refuse a text encoder that lacks tensors, or whose layers differ.

    Args:
        checkpoint: `Checkpoint` of the text encoder.
        trim: check only the layers that the family reads.
        family: of the Klein.
    Returns:
        `{name of a layer's weight: its rows}`, the same in every layer.
    Raises:
        CheckpointError: the weights are not a Qwen3 that the family can use.
    """
    part = checkpoint.parts.get(TEXT_ENCODER)
    if part is None or part.architecture not in (QWEN3, QWEN3_VL):
        raise CheckpointError(f"{checkpoint.name} is {checkpoint.what(TEXT_ENCODER)}, not a Qwen3 text encoder.")
    if part.layers[0] < family.layers_read:
        raise CheckpointError(
            f"{checkpoint.name} has {part.layers[0]} layers, and Klein reads up to layer {family.layers_read}."
        )
    rows = _rows(checkpoint)

    def need(key: str, of: int | None = None) -> int:
        if key not in rows:
            raise CheckpointError(f"{checkpoint.name} is damaged: it has no {key}.")
        if of is not None and rows[key] != of:
            raise CheckpointError(f"{checkpoint.name} is damaged: its {key} has {rows[key]} rows, not {of}.")
        return rows[key]

    fused = family.fused if part.quantised else ()
    first = {name: need(f"model.layers.0.{name}.weight") for name in LAYER if not name.endswith(fused)}
    for layer in range(family.layers_read if trim else part.layers[0]):
        for name, count in first.items():
            need(f"model.layers.{layer}.{name}.weight", count)
    return {**first, EMBEDDINGS: need(EMBEDDINGS)}


def _rows(checkpoint: Checkpoint) -> dict[str | None, int]:
    prefix = checkpoint.parts[TEXT_ENCODER].prefix
    return {plain_key(key, prefix, trim=False): tensor.shape[0] for key, tensor in checkpoint.tensors.items() if tensor.shape}


def config(checkpoint: Checkpoint, *, trim: bool) -> dict[str, int | bool]:
    """What FLUX.2's Qwen3 must be built with to hold these weights: the names of ComfyUI's `Qwen3_4BConfig`.

    Args:
        checkpoint: `Checkpoint` with a Qwen3 text encoder.
        trim: build 27 layers and no final norm.
    Returns:
        `{"hidden_size": …, "num_hidden_layers": …, …}`.
    Raises:
        CheckpointError: as of `check_layers`.
    """
    rows, part = check_layers(checkpoint, trim=trim), checkpoint.parts[TEXT_ENCODER]
    shape = {
        "hidden_size": part.width,
        "vocab_size": rows[EMBEDDINGS],
        "intermediate_size": rows["mlp.gate_proj"],
        "num_attention_heads": rows["self_attn.q_proj"] // HEAD_WIDTH,
        "num_key_value_heads": rows["self_attn.k_proj"] // HEAD_WIDTH,
    }
    # A file of 27 layers is already trimmed; its last hidden state is read before any final norm.
    if trim or part.layers[0] == FLUX2_KLEIN.layers_read:
        return {**shape, **cut(FLUX2_KLEIN), "lm_head": False}
    return {**shape, "num_hidden_layers": part.layers[0]}


def cut(family: Family) -> dict[str, int | bool]:
    """The settings that make ComfyUI's Qwen3 end with the last layer that a Klein reads. Its final norm would change what
    that layer says."""
    return {"num_hidden_layers": family.layers_read, "final_norm": False}
