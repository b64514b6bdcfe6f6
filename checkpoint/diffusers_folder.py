"""A Klein in diffusers' layout: a folder with an index, a transformer, a text encoder and a VAE."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .families import FAMILIES, FLUX2_KLEIN
from .header import CheckpointError, Unreadable
from .inspection import MODEL, TEXT_ENCODER, VAE, VALUES, Checkpoint, inspect

LARGEST_JSON = 4 * 1024**2
INDEX, MODULAR = "model_index.json", "modular_model_index.json"
PIPELINES = tuple(family.pipeline for family in FAMILIES.values())
TRANSFORMERS = {family.transformer for family in FAMILIES.values() if family.transformer}
SUBFOLDERS = {
    MODEL: ("transformer", "diffusion_pytorch_model"),
    TEXT_ENCODER: ("text_encoder", "model"),
    VAE: ("vae", "diffusion_pytorch_model"),
}


@dataclass(frozen=True)
class Folder:
    """A diffusers folder: `Checkpoint` by role, and what its index says of the variant (None: nothing)."""

    parts: dict[str, Checkpoint]
    is_distilled: bool | None


def inspect_folder(folder: str | Path, values: Callable[[str], int | None] = VALUES.get) -> Folder:
    """Tell what a diffusers folder holds, from its JSON files and the headers of its safetensors files.

    Args:
        folder: with `model_index.json` or `modular_model_index.json` in it. A modular pipeline may take its text encoder and
            its VAE from elsewhere; one of `model_index.json` has them.
        values: as of `inspect`.
    Returns:
        `Folder`.
    Raises:
        CheckpointError: the folder is not a Klein's, or a file is missing or damaged.
    """
    folder = Path(folder)
    # Path.exists raises an error where a folder is closed to us; what is read then says so in a sentence.
    modular = os.path.exists(folder / MODULAR) and not os.path.exists(folder / INDEX)
    index = _json(folder / (MODULAR if modular else INDEX))
    pipeline = index.get("_class_name")
    if not (isinstance(pipeline, str) and pipeline.startswith(PIPELINES)) and _transformer(folder) not in TRANSFORMERS:
        raise CheckpointError(
            f"{folder.name} is a diffusers folder for {str(pipeline)[:80]!r}, not for {FLUX2_KLEIN.name} ({folder})."
        )
    parts = {
        role: inspect(*_shards(folder / subfolder, stem), name=f"{folder.name}/{subfolder}", values=values)
        for role, (subfolder, stem) in SUBFOLDERS.items()
        if role == MODEL or not modular or os.path.exists(folder / subfolder)
    }
    says = index.get("is_distilled")
    if not isinstance(says, bool):
        says = True if pipeline == "Flux2KleinKVPipeline" else None
    return Folder(parts, says)


def _transformer(folder: Path) -> str:
    """diffusers' class of the transformer in a folder; "" where it does not say."""
    config = folder / "transformer/config.json"
    return str(_json(config).get("_class_name", "")) if os.path.exists(config) else ""


def _json(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_JSON + 1)
        content = json.loads(text) if len(text) <= LARGEST_JSON else None
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent.name} has no {path.name} ({path}).") from None
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror} ({path}).") from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is damaged: it is not a JSON object of at most {LARGEST_JSON} bytes ({path}).")
    return content


def _shards(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one model: those that its index names, or its only one."""
    index = folder / f"{stem}.safetensors.index.json"
    if not os.path.exists(index):
        return [folder / f"{stem}.safetensors"]
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index.name} is damaged: it has no weight_map ({index}).")
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise CheckpointError(f"{index.name} names {str(shard)[:80]!r}, which is not a file beside it ({index}).")
    return [folder / shard for shard in sorted(set(shards.values()))]
