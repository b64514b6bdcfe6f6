"""The tensors of a Klein's transformer: their names in the original files and in diffusers, and their shapes."""

from collections.abc import Sequence

import torch

from .families.family import Family
from .header import CheckpointError
from .inspection import MODEL, Checkpoint, family_of


def layout(family: Family, blocks: Sequence[int], *, distilled: bool | None = None) -> dict[str, tuple]:
    """Every tensor of a Klein.

    Args:
        family: its family.
        blocks: how many blocks each stack of the family has.
        distilled: include the layers that only a distilled model has; None for a family that has none such.
    Returns:
        `{original name: (rows as a multiple of the hidden size or None, diffusers' names)}`.
    """
    tensors = {}
    outside = {name: row for name, row in family.outside.items() if distilled or name not in family.only_distilled}
    places = [("", "", outside)]
    for stack, count in zip(family.stacks, blocks, strict=True):
        places += [(f"{stack.original}{number}.", f"{stack.diffusers}{number}.", stack.table) for number in range(count)]
    for ours, theirs, table in places:
        for name, (rows, *names) in table.items():
            key = ours + name + (".scale" if name.endswith("_norm") else ".weight")
            tensors[key] = (rows, tuple(theirs + other + ".weight" for other in names))
    return tensors


def layout_of(checkpoint: Checkpoint) -> dict[str, tuple]:
    """Every tensor that the Klein of a file must have, as `layout` returns them."""
    part = checkpoint.parts[MODEL]
    return layout(family_of(checkpoint), part.layers, distilled=part.distilled)


def blocks_of(checkpoint: Checkpoint, original: str) -> int:
    """How many blocks a Klein has whose original names begin like this: 0 in a family without such blocks."""
    stacks = zip(family_of(checkpoint).stacks, checkpoint.parts[MODEL].layers, strict=True)
    return next((count for stack, count in stacks if stack.original == original), 0)


def check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse a Klein that lacks blocks or tensors, or whose tensors have too many or too few rows.

    Args:
        checkpoint: with a Klein.
    Raises:
        CheckpointError: names the file and the first such tensor; or, with diffusers' names, one that is not Klein's.
    """
    part, family, known = checkpoint.parts[MODEL], family_of(checkpoint), set()
    _check_depth(checkpoint, family)
    for key, (rows, names) in layout_of(checkpoint).items():
        names = names if part.diffusers_keys else (key,)
        known.update(part.prefix + name for name in names)
        for name in names:
            # ComfyUI's ModelSave calls the norms' scale `weight`.
            names_of_it = (part.prefix + name, part.prefix + key.replace(".scale", ".weight"))
            tensor = next((checkpoint.tensors[one] for one in names_of_it if one in checkpoint.tensors), None)
            if tensor is None and part.quantised and key.removesuffix(".weight").endswith(family.fused):
                continue
            layer = name.rpartition(".")[0]
            if tensor is None and (stored := _stored_as(checkpoint, f"{part.prefix}{layer}.")):
                raise _quantised_elsewhere(checkpoint, layer, stored)
            if tensor is None:
                raise CheckpointError(f"{checkpoint.name} is damaged or cut down: it has no {name} ({checkpoint.files[0]}).")
            wanted = rows and rows * part.width // len(names)
            if wanted and tensor.shape[:1] != (wanted,):
                if stored := _stored_as(checkpoint, f"{part.prefix}{name}."):
                    raise _quantised_elsewhere(checkpoint, name, stored)
                raise CheckpointError(
                    f"{checkpoint.name} is damaged: its {name} has the shape {list(tensor.shape)}, "
                    f"not {wanted} rows ({checkpoint.files[0]})."
                )
    # Diffusers' names are converted one by one; ComfyUI knows what to do with the others.
    others = (key for key in checkpoint.tensors.keys() - known if not key.startswith(family.unused))
    unknown = min(others, default=None) if part.diffusers_keys else None
    if unknown:
        raise CheckpointError(
            f"{checkpoint.name} has a tensor {unknown[:80]!r} that is not {family.name}'s: "
            f"a quantised diffusers model cannot be loaded ({checkpoint.files[0]})."
        )


def _stored_as(checkpoint: Checkpoint, start: str) -> list[str]:
    """What the tensors are called that begin so, without that beginning and without a bias."""
    return sorted(key.removeprefix(start) for key in checkpoint.tensors if key.startswith(start) and not key.endswith(".bias"))


def _quantised_elsewhere(checkpoint: Checkpoint, layer: str, stored: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.name} is quantised in a way that ComfyUI does not load ({layer} has {', '.join(stored)[:80]}): "
        f"take a file that is made for ComfyUI ({checkpoint.files[0]})."
    )


def _check_depth(checkpoint: Checkpoint, family: Family) -> None:
    part = checkpoint.parts[MODEL]
    depths = [shape[:-1] for shape in family.sizes if shape[-1] == part.width]
    if not family.fixed_depth or not depths or part.layers in depths:
        return
    for stack, has, wants in zip(family.stacks, part.layers, depths[0], strict=True):
        if has != wants:
            blocks = stack.diffusers if part.diffusers_keys else stack.original
            raise CheckpointError(
                f"{checkpoint.name} is damaged or cut down: it has {has} {blocks.rstrip('.')}, "
                f"not {wants} ({checkpoint.files[0]})."
            )


def original_weight(family: Family, key: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One weight as the original file has it.

    Args:
        family: of the Klein.
        key: its original name.
        parts: diffusers' tensors for it, in order: q, k, v each [hidden, hidden], or the only one.
    Returns:
        The only one as it is; q, k, v on top of each other, [3·hidden, hidden]; the final modulation,
        [2·hidden, hidden], with its halves swapped: diffusers puts scale before shift.
    """
    if key == family.final_modulation + ".weight":
        scale, shift = parts[0].chunk(2)
        return torch.cat([shift, scale])
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
