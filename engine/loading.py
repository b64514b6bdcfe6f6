"""ComfyUI's MODEL, CLIP and VAE from checkpoints that were looked at before."""

import comfy.memory_management
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import safetensors
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import flux
from comfy.text_encoders.hunyuan_video import llama_detect

from ..checkpoint import qwen3
from ..checkpoint.inspection import MODEL, TAEF2, TEXT_ENCODER, VAE, inspect
from ..checkpoint.klein import layout, original_weight


def read(checkpoint, wanted):
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


def diffusers_model(files, model_options, disable_dynamic=False):
    """`ModelPatcher` of a Klein with diffusers' key names.

    What the original files fuse gets its own memory one weight at a time; nothing else is copied.

    Args:
        files: paths of the safetensors file, or of all its shards.
        model_options: as of `comfy.sd.load_diffusion_model`.
    """
    checkpoint = inspect(*files)
    part = checkpoint.parts[MODEL]
    theirs = read(checkpoint, lambda key: key.startswith(part.prefix))
    weights, fused = {}, {}
    for key, (_, names) in layout(*part.layers).items():
        parts = [theirs.pop(part.prefix + name) for name in names]
        if len(parts) == 1:
            weights[key] = original_weight(key, parts)
        else:
            fused[key] = parts
            # Stands in without memory of its own, while ComfyUI reads sizes and dtypes.
            weights[key] = parts[0].new_zeros(()).expand(sum(len(rows) for rows in parts), *parts[0].shape[1:])
    patcher = comfy.sd.load_diffusion_model_state_dict(weights, model_options=model_options, disable_dynamic=disable_dynamic)
    for key, parts in fused.items():
        linear = patcher.model.diffusion_model.get_submodule(key.removesuffix(".weight"))
        linear.load_state_dict({"weight": original_weight(key, parts)}, strict=False, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (diffusers_model, (files, model_options))
    return patcher


def text_encoder(files, trim, disable_dynamic=False):
    """`comfy.sd.CLIP` of a Qwen3, always built as FLUX.2's.

    Args:
        files: paths of the safetensors file, or of all its shards.
        trim: leave out what Klein does not use.
    """
    checkpoint = inspect(*files)
    config = qwen3.config(checkpoint, trim=trim)
    prefix = checkpoint.parts[TEXT_ENCODER].prefix
    weights = read(checkpoint, lambda key: qwen3.plain_key(key, prefix, trim=trim))
    weights, _ = comfy.utils.convert_old_quants(weights, model_prefix=prefix, metadata=checkpoint.metadata)
    named = ((qwen3.plain_key(key, prefix, trim=trim), tensor) for key, tensor in weights.items())
    weights = {key: tensor for key, tensor in named if key}
    big = config["hidden_size"] == 4096
    kind, tokenizer = ("qwen3_8b", flux.KleinTokenizer8B) if big else ("qwen3_4b", flux.KleinTokenizer)
    model = flux.klein_te(**llama_detect(weights), model_type=kind)
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, mute(model) if trim else model),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={f"{kind}_model_config": config},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (files, trim))
    return clip


def text_encoder_patcher(files, trim, disable_dynamic=False):
    return text_encoder(files, trim, disable_dynamic).patcher


def mute(model):
    """The text encoder's class without text generation, which needs the layers that were left out."""

    class Trimmed(model):
        def generate(self, *args, **kwargs):
            raise ValueError("Klein Loader: a trimmed text encoder cannot generate text; turn `trim_text_encoder` off.")

    return Trimmed


def vae(files, prefix, disable_dynamic=False):
    """`comfy.sd.VAE` from the keys that begin with `prefix`, as ComfyUI's VAELoader makes it."""
    checkpoint = inspect(*files)
    weights = read(checkpoint, lambda key: key.startswith(prefix))
    weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    loaded = comfy.sd.VAE(sd=weights, metadata=checkpoint.metadata)
    loaded.throw_exception_if_invalid()
    loaded.patcher.cached_patcher_init = (vae_patcher, (files, prefix))
    return loaded


def vae_patcher(files, prefix, disable_dynamic=False):
    return vae(files, prefix).patcher


def taef2():
    """`comfy.sd.VAE` of TAEF2, by ComfyUI's VAELoader."""
    loaded = nodes.VAELoader().load_vae("taef2")[0]
    loaded.patcher.cached_patcher_init = (taef2_patcher, ())
    return loaded


def taef2_patcher(disable_dynamic=False):
    return taef2().patcher


def load_model(checkpoint, model_options):
    """`ModelPatcher` of a Klein."""
    if checkpoint.parts[MODEL].diffusers_keys:
        return diffusers_model(paths(checkpoint), model_options)
    return comfy.sd.load_diffusion_model(*paths(checkpoint), model_options=model_options)


def load_text_encoder(checkpoint, trim):
    """`comfy.sd.CLIP` of a Qwen3."""
    return text_encoder(paths(checkpoint), trim)


def load_vae(checkpoint):
    """`comfy.sd.VAE` of FLUX.2's VAE or TAEF2."""
    part = checkpoint.parts[VAE]
    return taef2() if part.architecture == TAEF2 else vae(paths(checkpoint), part.prefix)


def paths(checkpoint):
    return tuple(map(str, checkpoint.files))
