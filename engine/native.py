"""A Klein that only newer releases of ComfyUI know, loaded by ComfyUI's own nodes. Which release, its family says."""

import logging
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import nodes
from comfy.model_patcher import ModelPatcher

from ..checkpoint.families.family import QWEN3_VL, Family
from ..checkpoint.header import CheckpointError
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, Checkpoint
from ..checkpoint.qwen3 import cut
from ..checkpoint.variant import Variant
from .loading import diffusers_model, is_left_out, language_model, left_out, mark_as_trimmed, read


def check_release(klein: Checkpoint, found: Variant) -> None:
    """Refuse a Klein that this ComfyUI does not know. It knows a family whose type CLIPLoader has.

    Raises:
        CheckpointError: says what the file is and which release loads it.
    """
    family = found.family
    if family.comfyui and not hasattr(comfy.sd.CLIPType, family.clip_type.upper()):
        raise CheckpointError(
            f"{klein.name} is {klein.what(MODEL)}, {found.name}: ComfyUI {family.comfyui} or newer loads it, and this one is "
            "older; update ComfyUI, or take a FLUX.2 [klein], which works here."
        )


def call(node_id: str, **inputs: Any) -> Any:
    """The first output of a node of ComfyUI's, whichever of its two kinds of nodes it is."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    made = node.execute(**inputs).result if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(**inputs)
    return made[0]


def load_model(klein: Checkpoint, weight_dtype: str, model_options: dict) -> ModelPatcher:
    """The MODEL of a Klein, by UNETLoader; with diffusers' key names, from its weights under the original names.

    Args:
        klein: its `Checkpoint`.
        weight_dtype: as of UNETLoader.
        model_options: what UNETLoader makes of it.
    """
    if klein.parts[MODEL].diffusers_keys:
        return diffusers_model(klein, model_options)
    return call("UNETLoader", unet_name=klein.name, weight_dtype=weight_dtype)


def load_text_encoder(checkpoint: Checkpoint, family: Family, trim: bool, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The CLIP of a family: trimmed where ComfyUI's class takes that, else whole, as CLIPLoader makes it.

    Args:
        checkpoint: of the text encoder.
        family: of the Klein.
        trim: leave out the layers that the family does not read.
        disable_dynamic: as of `comfy.sd.CLIP`.
    Raises:
        CheckpointError: ComfyUI took the file for another model.
    """
    part = checkpoint.parts[TEXT_ENCODER]
    clip = None
    if part.architecture == QWEN3_VL and (trim or part.layers[0] == family.layers_read):
        # A class that reads its configuration elsewhere builds all layers.
        settings = {f"{family.encoder_config}_model_config": cut(family)}
        clip = _from_weights(checkpoint, family, trim=True, disable_dynamic=disable_dynamic, model_options=settings)
        built = language_model(clip)
        if built is not None and len(built.layers) == family.layers_read and getattr(built, "norm", "unknown") is None:
            mark_as_trimmed(clip, lambda: left_out(checkpoint, family))
        else:
            logging.info("Klein Loader: this ComfyUI builds all layers of %s, so it is loaded whole.", checkpoint.name)
            clip = None
    if clip is None and _is_listed(checkpoint) and not disable_dynamic:
        clip = call("CLIPLoader", clip_name=checkpoint.name, type=family.clip_type)
    if clip is None:
        clip = _from_weights(checkpoint, family, trim=False, disable_dynamic=disable_dynamic, model_options={})
    check_theta(clip, checkpoint, family)
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (checkpoint, family, trim))
    return clip


def text_encoder_patcher(checkpoint: Checkpoint, family: Family, trim: bool, disable_dynamic: bool = False) -> ModelPatcher:
    return load_text_encoder(checkpoint, family, trim, disable_dynamic).patcher


def check_theta(clip: comfy.sd.CLIP, checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a text encoder that ComfyUI took for another model: its positions would turn at another speed.

    Raises:
        CheckpointError: says so, and which file to take.
    """
    theta = getattr(getattr(language_model(clip), "config", None), "rope_theta", family.rope_theta)
    if theta != family.rope_theta:
        width = checkpoint.parts[TEXT_ENCODER].width
        raise CheckpointError(
            f"{checkpoint.name} was taken for another model by ComfyUI (rope θ {theta:,.0f}, not {family.rope_theta:,}); "
            f"take {family.official_encoders[width][0]}.safetensors for `text_encoder`."
        )


def _is_listed(checkpoint: Checkpoint) -> bool:
    """Whether CLIPLoader lists the text encoder: it does not lie in a diffusers folder, or in the file of a Klein."""
    path = folder_paths.get_full_path("text_encoders", checkpoint.name)
    return path is not None and (Path(path),) == checkpoint.files


def _from_weights(
    checkpoint: Checkpoint, family: Family, *, trim: bool, disable_dynamic: bool, model_options: dict
) -> comfy.sd.CLIP:
    """The CLIP that CLIPLoader makes of a file that holds these weights, by the function that it calls."""
    prefix = checkpoint.parts[TEXT_ENCODER].prefix
    weights = read(checkpoint, lambda key: key.startswith(prefix) and not (trim and is_left_out(key, prefix, family)))
    weights, _ = comfy.utils.convert_old_quants(weights, model_prefix=prefix, metadata=checkpoint.metadata)
    return comfy.sd.load_text_encoder_state_dicts(
        [{key.removeprefix(prefix): tensor for key, tensor in weights.items()}],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType[family.clip_type.upper()],
        model_options=model_options,
        disable_dynamic=disable_dynamic,
    )
