"""What was loaded and why, as one paragraph to read."""

from collections.abc import Collection

from .inspection import MODEL, TEXT_ENCODER, VAE, Checkpoint
from .qwen3 import LAYERS_READ
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
) -> str:
    """Describe what the loader loaded.

    Args:
        model, encoder, vae: the `Checkpoint`s.
        variant: the model's `Variant`.
        trim: whether the text encoder is trimmed.
        ignore_cfg: whether a cfg above 1 counts as 1 on a distilled model.
        chosen: roles that `auto` chose.
    Returns:
        One paragraph.
    """
    klein, text, picture = model.parts[MODEL], encoder.parts[TEXT_ENCODER], vae.parts[VAE]
    by = {role: " (chosen by auto)" if role in chosen else "" for role in (TEXT_ENCODER, VAE)}
    layers = text.layers[0]
    sentences = [
        f"{model.name} is {klein.architecture} {klein.size}, {klein.weights}, {gigabytes(klein.bytes)}.",
        f"Variant: {variant.name}, {variant.reason}; {variant.steps} steps and cfg {variant.cfg:g}.",
    ]
    if variant.kv:
        sentences.append("For edits put ComfyUI's FluxKVCache node behind the model.")
    if variant.distilled and ignore_cfg:
        sentences.append("A cfg above 1 counts as 1.")
    if not variant.distilled:
        sentences.append("ComfyUI's own templates take 20 steps and cfg 5, which is faster.")
    kept = f"{LAYERS_READ} of its" if trim and layers > LAYERS_READ else "all"
    sentences.append(
        f"Text encoder: {encoder.name}{by[TEXT_ENCODER]}, {text.architecture} of width {text.width}, "
        f"{text.weights}, {kept} {layers} layers."
    )
    sentences.append(f"VAE: {vae.name}{by[VAE]}, {picture.architecture}, {picture.weights}.")
    return " ".join(sentences)
