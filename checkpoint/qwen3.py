"""The layers of Qwen3 that FLUX.2 [klein] reads: its text is the hidden states after layers 9, 18 and 27."""

import re

from .header import CheckpointError
from .inspection import QWEN3, QWEN3_VL, TEXT_ENCODER, Checkpoint

LAYERS_READ = 27
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
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def plain_key(key: str, prefix: str, *, trim: bool) -> str | None:
    """The name in Qwen3 of a tensor of the file, or None if it is not to be read.

    Args:
        key: the name in the file.
        prefix: what the text encoder's names begin with in that file.
        trim: leave out the layers after the 27th, the final norm and the output head, which Klein never uses.
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
    unused = int(layer[1]) >= LAYERS_READ if layer else key.startswith(("model.norm.", "model.lm_head."))
    return None if trim and unused else key


def config(checkpoint: Checkpoint, *, trim: bool) -> dict[str, int | bool]:
    """What a Qwen3 must be built with to hold these weights: the names of ComfyUI's `Qwen3_4BConfig`.

    Args:
        checkpoint: `Checkpoint` with a Qwen3 text encoder.
        trim: build 27 layers and no final norm.
    Returns:
        `{"hidden_size": …, "num_hidden_layers": …, …}`.
    Raises:
        CheckpointError: the weights are not a Qwen3 that Klein can use.
    """
    part = checkpoint.parts.get(TEXT_ENCODER)
    if part is None or part.architecture not in (QWEN3, QWEN3_VL):
        raise CheckpointError(f"{checkpoint.name} is {checkpoint.what(TEXT_ENCODER)}, not a Qwen3 text encoder.")
    if part.layers[0] < LAYERS_READ:
        raise CheckpointError(f"{checkpoint.name} has {part.layers[0]} layers, and Klein reads up to layer {LAYERS_READ}.")
    rows = {
        plain_key(key, part.prefix, trim=False): tensor.shape[0] for key, tensor in checkpoint.tensors.items() if tensor.shape
    }

    def need(key: str, of: int | None = None) -> int:
        if key not in rows:
            raise CheckpointError(f"{checkpoint.name} is damaged: it has no {key}.")
        if of is not None and rows[key] != of:
            raise CheckpointError(f"{checkpoint.name} is damaged: its {key} has {rows[key]} rows, not {of}.")
        return rows[key]

    first = {name: need(f"model.layers.0.{name}.weight") for name in LAYER}
    for layer in range(LAYERS_READ if trim else part.layers[0]):
        for name, count in first.items():
            need(f"model.layers.{layer}.{name}.weight", count)
    shape = {
        "hidden_size": part.width,
        "vocab_size": need("model.embed_tokens.weight"),
        "intermediate_size": first["mlp.gate_proj"],
        "num_attention_heads": first["self_attn.q_proj"] // HEAD_WIDTH,
        "num_key_value_heads": first["self_attn.k_proj"] // HEAD_WIDTH,
    }
    # A file of 27 layers is already trimmed; its last hidden state is read before any final norm.
    if trim or part.layers[0] == LAYERS_READ:
        return {**shape, "num_hidden_layers": LAYERS_READ, "final_norm": False, "lm_head": False}
    return {**shape, "num_hidden_layers": part.layers[0]}
