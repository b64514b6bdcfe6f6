"""The tensors of a FLUX.2 [klein] transformer: their names in the original files and in diffusers, and their shapes."""

from collections.abc import Sequence

import torch

from .header import CheckpointError
from .inspection import KLEIN, MODEL, Checkpoint

# Original name: (rows as a multiple of the hidden size, or None; diffusers' name, or names of what the original fuses).
# Source: diffusers/loaders/single_file_utils.py, `convert_flux2_transformer_checkpoint_to_diffusers`.
OUTSIDE = {
    "img_in": (1, "x_embedder"),
    "txt_in": (1, "context_embedder"),
    "time_in.in_layer": (1, "time_guidance_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": (1, "time_guidance_embed.timestep_embedder.linear_2"),
    "double_stream_modulation_img.lin": (6, "double_stream_modulation_img.linear"),
    "double_stream_modulation_txt.lin": (6, "double_stream_modulation_txt.linear"),
    "single_stream_modulation.lin": (3, "single_stream_modulation.linear"),
    "final_layer.adaLN_modulation.1": (2, "norm_out.linear"),
    "final_layer.linear": (None, "proj_out"),
}
DOUBLE_BLOCK = {
    "img_attn.qkv": (3, "attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": (None, "attn.norm_q"),
    "img_attn.norm.key_norm": (None, "attn.norm_k"),
    "img_attn.proj": (1, "attn.to_out.0"),
    "img_mlp.0": (6, "ff.linear_in"),
    "img_mlp.2": (1, "ff.linear_out"),
    "txt_attn.qkv": (3, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": (None, "attn.norm_added_q"),
    "txt_attn.norm.key_norm": (None, "attn.norm_added_k"),
    "txt_attn.proj": (1, "attn.to_add_out"),
    "txt_mlp.0": (6, "ff_context.linear_in"),
    "txt_mlp.2": (1, "ff_context.linear_out"),
}
SINGLE_BLOCK = {
    "linear1": (9, "attn.to_qkv_mlp_proj"),
    "linear2": (1, "attn.to_out"),
    "norm.query_norm": (None, "attn.norm_q"),
    "norm.key_norm": (None, "attn.norm_k"),
}
FINAL_MODULATION = "final_layer.adaLN_modulation.1.weight"


def layout(double_blocks: int, single_blocks: int) -> dict[str, tuple[int | None, tuple[str, ...]]]:
    """Every tensor of a Klein with so many blocks.

    Returns:
        `{original name: (rows as a multiple of the hidden size or None, diffusers' names)}`.
    """
    tensors = {}
    for theirs, ours, count, table in (
        ("", "", 1, OUTSIDE),
        ("transformer_blocks.{}.", "double_blocks.{}.", double_blocks, DOUBLE_BLOCK),
        ("single_transformer_blocks.{}.", "single_blocks.{}.", single_blocks, SINGLE_BLOCK),
    ):
        for number in range(count):
            for name, (rows, *names) in table.items():
                key = ours.format(number) + name + (".scale" if name.endswith("_norm") else ".weight")
                tensors[key] = (rows, tuple(theirs.format(number) + other + ".weight" for other in names))
    return tensors


def check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse a Klein that lacks tensors, or whose tensors have too many or too few rows.

    Args:
        checkpoint: with a Klein.
    Raises:
        CheckpointError: names the file and the first such tensor; or, with diffusers' names, one that is not Klein's.
    """
    part = checkpoint.parts[MODEL]
    known = set()
    for key, (rows, names) in layout(*part.layers).items():
        names = names if part.diffusers_keys else (key,)
        known.update(part.prefix + name for name in names)
        for name in names:
            # ComfyUI's ModelSave calls the norms' scale `weight`.
            names_of_it = (part.prefix + name, part.prefix + key.replace(".scale", ".weight"))
            tensor = next((checkpoint.tensors[one] for one in names_of_it if one in checkpoint.tensors), None)
            if tensor is None:
                raise CheckpointError(f"{checkpoint.name} is damaged or cut down: it has no {name} ({checkpoint.files[0]}).")
            wanted = rows and rows * part.width // len(names)
            if wanted and tensor.shape[:1] != (wanted,):
                raise CheckpointError(
                    f"{checkpoint.name} is damaged: its {name} has the shape {list(tensor.shape)}, "
                    f"not {wanted} rows ({checkpoint.files[0]})."
                )
    # Diffusers' names are converted one by one; ComfyUI knows what to do with the others.
    unknown = min(checkpoint.tensors.keys() - known, default=None) if part.diffusers_keys else None
    if unknown:
        raise CheckpointError(
            f"{checkpoint.name} has a tensor {unknown[:80]!r} that is not {KLEIN}'s: "
            f"a quantised diffusers model cannot be loaded ({checkpoint.files[0]})."
        )


def original_weight(key: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One weight as the original file has it.

    Args:
        key: its original name.
        parts: diffusers' tensors for it, in order: q, k, v each [hidden, hidden], or the only one.
    Returns:
        The only one as it is; q, k, v on top of each other, [3·hidden, hidden]; the final modulation,
        [2·hidden, hidden], with its halves swapped: diffusers puts scale before shift.
    """
    if key == FINAL_MODULATION:
        scale, shift = parts[0].chunk(2)
        return torch.cat([shift, scale])
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
