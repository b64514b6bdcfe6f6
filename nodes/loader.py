"""The node that loads a Klein: its model, its text encoder and its VAE."""

import os

import comfy.memory_management
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import torch
from comfy.text_encoders import flux
from comfy.text_encoders.hunyuan_video import llama_detect
from comfy_api.latest import io
from safetensors import safe_open

from ..checkpoint import pairing, qwen3
from ..checkpoint.header import CheckpointError
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, Checkpoint, inspect
from ..checkpoint.variant import Variant, decide
from .errors import names_itself

AUTO = "auto"
TAEF2 = "taef2"
FOLDERS = {MODEL: "diffusion_models", TEXT_ENCODER: "text_encoders", VAE: "vae"}
# As ComfyUI's UNETLoader maps them.
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def listed(role):
    """Names of the installed files for a role, as ComfyUI lists them, that KleinKit can read."""
    names = [name for name in folder_paths.get_filename_list(FOLDERS[role]) if name.lower().endswith((".safetensors", ".sft"))]
    if role == VAE and TAEF2 in nodes.VAELoader.vae_list(nodes.VAELoader):
        names.append(TAEF2)
    return names


def look(role, name):
    """`Checkpoint` of an installed file, by its name in ComfyUI's list."""
    if name == TAEF2:
        return Checkpoint(TAEF2, (), {}, {}, {})
    path = folder_paths.get_full_path(FOLDERS[role], name)
    if path is None:
        raise CheckpointError(f"{name} is not in ComfyUI's models/{FOLDERS[role]}.")
    return inspect(path, name=name)


def fits(model, role, checkpoint):
    if role == TEXT_ENCODER:
        return pairing.encoder_fits(model, checkpoint)
    return checkpoint.name == TAEF2 or pairing.vae_fits(model, checkpoint)


def fitting(model, role):
    """The installed files that fit a Klein, best first. Damaged files are passed over."""
    found = []
    for name in listed(role):
        try:
            checkpoint = look(role, name)
        except CheckpointError:
            continue
        if fits(model, role, checkpoint):
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: (checkpoint.name == TAEF2, pairing.rank(model, checkpoint)))


def choose(model, role, name):
    """The text encoder or VAE for a Klein: the one named, or with `auto` the best that fits."""
    if name != AUTO:
        checkpoint = look(role, name)
        if fits(model, role, checkpoint):
            return checkpoint
        raise pairing.misfit(model, role, checkpoint, [other.name for other in fitting(model, role)])
    if fits(model, role, model):
        return model
    found = fitting(model, role)
    if not found:
        raise pairing.misfit(model, role, None, [])
    return found[0]


def read(checkpoint, wanted):
    """The tensors whose names `wanted` accepts; the others are never read. They lie in mapped memory until used."""
    weights = {}
    for file in map(str, checkpoint.files):
        if comfy.memory_management.aimdo_enabled:
            tensors = comfy.utils.load_torch_file(file)
            weights |= {key: tensors[key] for key in tensors if wanted(key)}
            continue
        with safe_open(file, framework="pt") as tensors:
            for key in filter(wanted, tensors.keys()):
                weights[key] = tensors.get_tensor(key)
                if comfy.utils.DISABLE_MMAP:
                    weights[key] = weights[key].clone()
    return weights


def text_encoder(files, trim, disable_dynamic=False):
    """Build FLUX.2's text encoder from a Qwen3.

    Args:
        files: paths of the safetensors file, or of all its shards.
        trim: leave out what Klein does not use.
    Returns:
        `comfy.sd.CLIP`.
    """
    checkpoint = inspect(*files)
    config = qwen3.config(checkpoint, trim=trim)
    prefix = checkpoint.parts[TEXT_ENCODER].prefix
    weights = read(checkpoint, lambda key: qwen3.plain_key(key, prefix, trim=trim))
    weights, _ = comfy.utils.convert_old_quants(weights, model_prefix=prefix, metadata=checkpoint.metadata)
    named = ((qwen3.plain_key(key, prefix, trim=trim), tensor) for key, tensor in weights.items())
    weights = {key: tensor for key, tensor in named if key}
    kind, tokenizer = ("qwen3_8b", flux.KleinTokenizer8B) if config["hidden_size"] == 4096 else ("qwen3_4b", flux.KleinTokenizer)

    class Target:
        params = {}
        clip = flux.klein_te(**llama_detect(weights), model_type=kind)

    Target.tokenizer = tokenizer
    clip = comfy.sd.CLIP(Target, embedding_directory=folder_paths.get_folder_paths("embeddings"),
                         parameters=comfy.utils.calculate_parameters(weights), state_dict=[weights],
                         model_options={f"{kind}_model_config": config}, disable_dynamic=disable_dynamic)
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (files, trim))
    return clip


def text_encoder_patcher(files, trim, disable_dynamic=False):
    """The patcher of a text encoder loaded anew: ComfyUI calls this for another device."""
    return text_encoder(files, trim, disable_dynamic).patcher


def vae(checkpoint):
    """`comfy.sd.VAE`, by ComfyUI's own loader."""
    return nodes.VAELoader().load_vae(checkpoint.name)[0]


@names_itself
class KleinKitLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinKitLoader",
            display_name="Load FLUX.2 Klein",
            category="KleinKit/loaders",
            description="Loads a FLUX.2 [klein] with the text encoder and VAE that fit it, and says which Klein it is.",
            search_aliases=["klein", "flux2", "flux 2 loader", "unet loader", "clip loader", "checkpoint loader"],
            inputs=[
                io.Combo.Input("diffusion_model", options=listed(MODEL),
                               tooltip="The Klein: a file in models/diffusion_models."),
                io.Combo.Input("text_encoder", options=[AUTO, *listed(TEXT_ENCODER)], default=AUTO,
                               tooltip="A Qwen3 in models/text_encoders: 4B for Klein 4B, 8B for Klein 9B. auto takes the one that fits."),
                io.Combo.Input("vae", options=[AUTO, *listed(VAE)], default=AUTO,
                               tooltip="FLUX.2's VAE in models/vae, or taef2. auto takes the one that fits."),
                io.Combo.Input("variant", options=[AUTO, "distilled", "base"], default=AUTO,
                               tooltip="auto tells distilled from base by the name or the file's notes; the info output says how."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), default="default", advanced=True,
                               tooltip="The dtype that the model's weights are kept in; default keeps the file's."),
                io.Combo.Input("distilled_cfg", options=["ignore", "allow"], default="ignore", advanced=True,
                               tooltip="ignore: on a distilled model every cfg counts as 1, as in diffusers. allow: cfg does what it says."),
                io.Boolean.Input("trim_text_encoder", default=True, advanced=True,
                                 tooltip="Neither read nor run the last quarter of the text encoder, which Klein does not use. The "
                                         "result is the same. Turn this off to generate text with the encoder."),
            ],
            outputs=[
                io.Model.Output("MODEL"),
                io.Clip.Output("CLIP"),
                io.Vae.Output("VAE"),
                io.Int.Output("steps", tooltip="Steps for this variant: distilled 4, base 50."),
                io.Float.Output("cfg", tooltip="cfg for this variant: distilled 1, base 4."),
                io.String.Output("info", tooltip="What was loaded, and how it was told."),
            ],
        )

    @classmethod
    def execute(cls, diffusion_model, text_encoder, vae, variant, weight_dtype, distilled_cfg, trim_text_encoder):
        return io.NodeOutput(*load(diffusion_model, text_encoder, vae, variant, weight_dtype, distilled_cfg, trim_text_encoder))


def load(diffusion_model, encoder, vae_name, variant, weight_dtype, distilled_cfg, trim):
    klein = look(MODEL, diffusion_model)
    pairing.check_model(klein)
    encoder = choose(klein, TEXT_ENCODER, encoder)
    picture = choose(klein, VAE, vae_name)
    trained = decide(klein.name, klein.metadata) if variant == AUTO else Variant(variant == "distilled", "as `variant` says")
    model = comfy.sd.load_diffusion_model(os.fspath(klein.files[0]), model_options=dict(WEIGHT_DTYPES[weight_dtype]))
    clip = text_encoder(tuple(map(str, encoder.files)), trim)
    info = f"{klein.name}: {klein.what(MODEL)}, {trained.name} ({trained.reason}); {encoder.name}; {picture.name}."
    return model, clip, vae(picture), trained.steps, trained.cfg, info


NODES = [KleinKitLoader]
