"""ComfyUI's MODEL, CLIP and VAE from checkpoints that were inspected before: no header is read again."""

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
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import flux
from comfy.text_encoders.hunyuan_video import llama_detect

from ..checkpoint import qwen3
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
        refuse_what_needs_all_layers(clip)
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (checkpoint, trim))
    return clip


def text_encoder_patcher(checkpoint: Checkpoint, trim: bool, disable_dynamic: bool = False) -> ModelPatcher:
    return load_text_encoder(checkpoint, trim, disable_dynamic).patcher


def refuse_what_needs_all_layers(clip: comfy.sd.CLIP) -> None:
    """Make a trimmed text encoder refuse what it cannot do without the layers that were left out, and every clone of it."""

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
