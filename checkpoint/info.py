"""What was loaded and why, as one paragraph to read."""

from collections.abc import Collection

from .inspection import MODEL, TEXT_ENCODER, VAE, Checkpoint
from .variant import Variant


def gigabytes(size: int) -> str:
    """A number of bytes as a user reads it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def paragraph(
    model: Checkpoint,
    encoder: Checkpoint,
    vae: Checkpoint,
    variant: Variant,
    *,
    trim: bool,
    ignore_cfg: bool,
    chosen: Collection[str],
    weight_dtype: str = "default",
) -> str:
    """Describe what the loader loaded.

    Args:
        model, encoder, vae: the `Checkpoint`s.
        variant: the model's `Variant`.
        trim: whether the text encoder is trimmed.
        ignore_cfg: whether a cfg above 1 counts as 1 on a distilled model.
        chosen: roles that `auto` chose.
        weight_dtype: what the weights were to be kept in.
    Returns:
        One paragraph.
    """
    klein, text, picture = model.parts[MODEL], encoder.parts[TEXT_ENCODER], vae.parts[VAE]
    by = {role: " (chosen by auto)" if role in chosen else "" for role in (TEXT_ENCODER, VAE)}
    layers, family = text.layers[0], variant.family
    sentences = [
        f"{model.name} is {klein.architecture} {klein.size}, {klein.weights}, {gigabytes(klein.bytes)}.",
        f"Variant: {variant.name}, {variant.reason}; {variant.steps} steps and cfg {variant.cfg:g}.",
    ]
    if model.gguf and weight_dtype != "default":
        sentences.append(f"Its weights stay as they are: `weight_dtype` {weight_dtype} does nothing to a GGUF file.")
    if variant.kv:
        sentences.append("For edits put ComfyUI's FluxKVCache node behind the model.")
    if variant.distilled and ignore_cfg:
        sentences.append("A cfg above 1 counts as 1.")
    if not variant.distilled and family.note_on_base:
        sentences.append(family.note_on_base)
    kept = f"{family.layers_read} of its" if trim and layers > family.layers_read else "all"
    sentences.append(
        f"Text encoder: {encoder.name}{by[TEXT_ENCODER]}, {text.architecture} of width {text.width}, "
        f"{text.weights}, {kept} {layers} layers."
    )
    if text.architecture not in family.encoders:
        sentences.append(f"It counts as a {family.encoders[0]} because you chose it: its tensors do not tell.")
    elif text.architecture != family.encoders[0]:
        sentences.append(f"{family.name}'s own is a {family.encoders[0]}.")
    sentences.append(f"VAE: {vae.name}{by[VAE]}, {picture.architecture}, {picture.weights}.")
    return " ".join(sentences)
