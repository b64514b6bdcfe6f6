"""ComfyUI's MODEL, CLIP and VAE from checkpoints that were inspected before: no header is read again."""

import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import comfy.memory_management
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import safetensors
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import flux
from comfy.text_encoders.hunyuan_video import llama_detect
from torch import nn

from ..checkpoint import qwen3
from ..checkpoint.families import FLUX2_KLEIN
from ..checkpoint.families.family import Family
from ..checkpoint.inspection import MODEL, TAEF2, TEXT_ENCODER, VAE, Checkpoint, family_of
from ..checkpoint.klein import layout_of, original_weight


def read(checkpoint: Checkpoint, wanted: Callable[[str], object]) -> dict[str, torch.Tensor]:
    """The tensors whose names `wanted` accepts; no other is read. They lie in mapped memory until used."""
    weights = {}
    for file in map(str, checkpoint.files):
        if comfy.memory_management.aimdo_enabled:
            tensors = comfy.utils.load_torch_file(file)
            weights |= {key: tensors[key] for key in tensors if wanted(key)}
            continue
        with safetensors.safe_open(file, framework="pt") as tensors:
            for key in filter(wanted, tensors.keys()):
                tensor = tensors.get_tensor(key)
                weights[key] = tensor.clone() if comfy.utils.DISABLE_MMAP else tensor
    return weights


def load_model(checkpoint: Checkpoint, model_options: dict) -> ModelPatcher:
    """The MODEL of a Klein.

    Args:
        checkpoint: of the Klein.
        model_options: as of `comfy.sd.load_diffusion_model`.
    """
    if checkpoint.parts[MODEL].diffusers_keys:
        return diffusers_model(checkpoint, model_options)
    return comfy.sd.load_diffusion_model(*map(str, checkpoint.files), model_options=model_options)


def diffusers_model(checkpoint: Checkpoint, model_options: dict, disable_dynamic: bool = False) -> ModelPatcher:
    """The MODEL of a Klein with diffusers' key names.

    What the original files fuse gets its own memory, one weight at a time; nothing else is copied.

    Args:
        checkpoint: of the Klein.
        model_options, disable_dynamic: as of `comfy.sd.load_diffusion_model`.
    """
    part, family = checkpoint.parts[MODEL], family_of(checkpoint)
    theirs = read(checkpoint, lambda key: key.startswith(part.prefix))
    weights, fused = {}, {}
    for key, (_, names) in layout_of(checkpoint).items():
        parts = [theirs.pop(part.prefix + name) for name in names]
        if len(parts) == 1:
            weights[key] = original_weight(family, key, parts)
        else:
            fused[key] = parts
            # Stands in without memory of its own, while ComfyUI reads sizes and dtypes.
            weights[key] = parts[0].new_zeros(()).expand(sum(len(rows) for rows in parts), *parts[0].shape[1:])
    patcher = comfy.sd.load_diffusion_model_state_dict(weights, model_options=model_options, disable_dynamic=disable_dynamic)
    for key, parts in fused.items():
        linear = patcher.model.diffusion_model.get_submodule(key.removesuffix(".weight"))
        linear.load_state_dict({"weight": original_weight(family, key, parts)}, strict=False, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (diffusers_model, (checkpoint, model_options))
    return patcher


def load_text_encoder(checkpoint: Checkpoint, trim: bool, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The CLIP of a Qwen3, always built as FLUX.2's.

    Args:
        checkpoint: of the text encoder.
        trim: leave out what Klein does not use.
        disable_dynamic: as of `comfy.sd.CLIP`.
    """
    config = qwen3.config(checkpoint, trim=trim)
    prefix = checkpoint.parts[TEXT_ENCODER].prefix
    weights = read(checkpoint, lambda key: qwen3.plain_key(key, prefix, trim=trim))
    weights, _ = comfy.utils.convert_old_quants(weights, model_prefix=prefix, metadata=checkpoint.metadata)
    named = ((qwen3.plain_key(key, prefix, trim=trim), tensor) for key, tensor in weights.items())
    weights = {key: tensor for key, tensor in named if key}
    big = config["hidden_size"] == 4096
    kind, tokenizer = ("qwen3_8b", flux.KleinTokenizer8B) if big else ("qwen3_4b", flux.KleinTokenizer)
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, flux.klein_te(**llama_detect(weights), model_type=kind)),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={f"{kind}_model_config": config},
        disable_dynamic=disable_dynamic,
    )
    if trim:
        mark_as_trimmed(clip, lambda: left_out(checkpoint, FLUX2_KLEIN))
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (checkpoint, trim))
    return clip


def text_encoder_patcher(checkpoint: Checkpoint, trim: bool, disable_dynamic: bool = False) -> ModelPatcher:
    return load_text_encoder(checkpoint, trim, disable_dynamic).patcher


def language_model(clip: comfy.sd.CLIP) -> nn.Module | None:
    """The part of a text encoder that holds its layers; None if this ComfyUI names its parts otherwise."""
    for module in clip.cond_stage_model.modules():
        if isinstance(getattr(module, "layers", None), nn.ModuleList) and hasattr(module, "embed_tokens"):
            return module
    return None


def is_left_out(key: str, prefix: str, family: Family) -> bool:
    """Whether a tensor is of a layer that the family does not read, of the final norm, or of the output head."""
    return bool(qwen3.plain_key(key, prefix, trim=False) and not qwen3.plain_key(key, prefix, trim=True, family=family))


def left_out(checkpoint: Checkpoint, family: Family) -> dict[str, torch.Tensor]:
    """What a trimmed text encoder lacks, by its names in Qwen3."""
    prefix = checkpoint.parts[TEXT_ENCODER].prefix
    found = read(checkpoint, lambda key: is_left_out(key, prefix, family))
    return {str(qwen3.plain_key(key, prefix, trim=False)): tensor for key, tensor in found.items()}


def mark_as_trimmed(clip: comfy.sd.CLIP, left_out: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Make a trimmed text encoder, and every clone of it, right or an error where the layers that were left out are needed.

    It refuses to generate text and to be saved. Added to a whole encoder, as CLIPMergeSimple does, it gives those layers too.

    Args:
        clip: of the trimmed text encoder.
        left_out: their tensors, by names in Qwen3.
    """

    def refuse(what: str) -> Callable[..., NoReturn]:
        def refused(*args: Any, **kwargs: Any) -> NoReturn:
            raise ValueError(
                f"Klein Loader: a trimmed text encoder cannot {what}, because that needs the layers that Klein never uses; "
                "turn `trim_text_encoder` off."
            )

        return refused

    clip.cond_stage_model.generate = refuse("generate text")
    # ComfyUI asks a tokenizer for this only to save it with its text encoder: CLIPSave, CheckpointSave.
    clip.tokenizer.state_dict = refuse("be saved")
    built = language_model(clip)
    name = next(name for name, module in clip.cond_stage_model.named_modules() if module is built)

    def lend(_: ModelPatcher | None, patcher: ModelPatcher) -> None:
        # Without a circle, so that a patcher goes when nobody holds it.
        itself, kind = weakref.ref(patcher), type(patcher)

        def get_key_patches(filter_prefix: str | None = None) -> dict[str, list]:
            named = ((f"{name}.{key.removeprefix('model.')}", tensor) for key, tensor in left_out().items())
            lent = {key: [(tensor, _unchanged)] for key, tensor in named if key.startswith(filter_prefix or "")}
            return kind.get_key_patches(itself(), filter_prefix) | lent

        patcher.get_key_patches = get_key_patches

    lend(None, clip.patcher)
    clip.patcher.add_callback(CallbacksMP.ON_CLONE, lend)


def _unchanged(weight: torch.Tensor, **_: Any) -> torch.Tensor:
    return weight


def load_vae(checkpoint: Checkpoint) -> comfy.sd.VAE:
    """FLUX.2's VAE as ComfyUI's VAELoader makes it, from the keys that the checkpoint's part says; or TAEF2, by VAELoader."""
    part = checkpoint.parts[VAE]
    if part.architecture == TAEF2:
        loaded = nodes.VAELoader().load_vae("taef2")[0]
    else:
        weights = read(checkpoint, lambda key: key.startswith(part.prefix))
        weights = {key.removeprefix(part.prefix): tensor for key, tensor in weights.items()}
        loaded = comfy.sd.VAE(sd=weights, metadata=checkpoint.metadata)
        loaded.throw_exception_if_invalid()
    loaded.patcher.cached_patcher_init = (vae_patcher, (checkpoint,))
    return loaded


def vae_patcher(checkpoint: Checkpoint, disable_dynamic: bool = False) -> ModelPatcher:
    return load_vae(checkpoint).patcher
