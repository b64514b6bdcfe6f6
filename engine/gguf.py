"""GGUF files: loaded by the nodes of ComfyUI-GGUF (github.com/city96/ComfyUI-GGUF), where that pack is installed."""

import logging
from typing import Any

import comfy.sd
import folder_paths
import nodes
import torch
from comfy.model_patcher import ModelPatcher

from ..checkpoint.families.family import Family
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, Checkpoint
from .loading import is_left_out, language_model, mark_as_trimmed
from .native import call, check_theta

# By role: the node that loads a file, and the list that it takes the names from.
LOADERS = {MODEL: ("UnetLoaderGGUF", "unet_gguf"), TEXT_ENCODER: ("CLIPLoaderGGUF", "clip_gguf")}


def installed() -> bool:
    """Whether ComfyUI-GGUF is there."""
    return all(
        node in nodes.NODE_CLASS_MAPPINGS and names in folder_paths.folder_names_and_paths for node, names in LOADERS.values()
    )


def listed(role: str) -> list[str]:
    """Names of the GGUF files for a role; none where nothing can load them."""
    return list(folder_paths.get_filename_list(LOADERS[role][1])) if role in LOADERS and installed() else []


def not_listed() -> str:
    """What follows the name of a GGUF file that is not in the list, in a sentence."""
    if installed():
        return "is not a file that ComfyUI-GGUF lists"
    return "is a GGUF file: install the pack ComfyUI-GGUF, with which Klein Loader loads it"


def load_model(klein: Checkpoint, *_: Any, **__: Any) -> ModelPatcher:
    """The MODEL of a Klein, by Unet Loader (GGUF)."""
    model = call(LOADERS[MODEL][0], unet_name=klein.name)
    model.cached_patcher_init = (load_model, (klein,))
    return model


def load_text_encoder(checkpoint: Checkpoint, family: Family, trim: bool) -> comfy.sd.CLIP:
    """The CLIP of a family, by CLIPLoader (GGUF). That maps the file, so layers that are cut off here were never read.

    Args:
        checkpoint: of the text encoder.
        family: of the Klein.
        trim: cut off the layers that the family does not read, the final norm and the output head. From a file that lacks
            those layers they are cut off in any case: the node makes zeros of them.
    Raises:
        CheckpointError: ComfyUI took the file for another model.
    """
    clip = call(LOADERS[TEXT_ENCODER][0], clip_name=checkpoint.name, type=family.clip_type)
    check_theta(clip, checkpoint, family)
    built = language_model(clip)
    wanted = trim or checkpoint.parts[TEXT_ENCODER].layers[0] == family.layers_read
    if wanted and built is not None and getattr(built, "norm", None) is not None:
        built.layers, built.norm, built.lm_head = built.layers[: family.layers_read], None, None
        # ComfyUI counts a model's bytes once.
        clip.patcher.size = 0
        mark_as_trimmed(clip, lambda: left_out(checkpoint, family))
    elif wanted:
        logging.info("Klein Loader: this ComfyUI builds %s in a way that is unknown here, so it is whole.", checkpoint.name)
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (checkpoint, family, trim))
    return clip


def left_out(checkpoint: Checkpoint, family: Family) -> dict[str, torch.Tensor]:
    """What a trimmed text encoder lacks, by its names in Qwen3. Of a file that lacks it too, nothing."""
    if checkpoint.parts[TEXT_ENCODER].layers[0] == family.layers_read:
        return {}
    whole = language_model(call(LOADERS[TEXT_ENCODER][0], clip_name=checkpoint.name, type=family.clip_type))
    assert whole is not None
    named = ((f"model.{key}", tensor) for key, tensor in whole.named_parameters())
    return {key: tensor for key, tensor in named if is_left_out(key, "", family)}


def text_encoder_patcher(checkpoint: Checkpoint, family: Family, trim: bool, **_: Any) -> ModelPatcher:
    return load_text_encoder(checkpoint, family, trim).patcher
