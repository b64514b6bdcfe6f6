"""The node that loads a Klein: its model, its text encoder and its VAE."""

import logging
import os
from pathlib import Path

import folder_paths
import nodes
import torch
from comfy_api.latest import io

from ..checkpoint import pairing, qwen3
from ..checkpoint.diffusers_folder import inspect_folder
from ..checkpoint.header import CheckpointError
from ..checkpoint.info import paragraph
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, inspect, inspect_taef2
from ..checkpoint.variant import Variant, decide
from ..guidance.distilled import Distilled
from ..scheduler.checks import one_of, shown
from .errors import names_itself
from .loading import load_model, load_text_encoder, load_vae
from .sampling import with_rule

AUTO = "auto"
DISTILLED = "distilled"
VARIANTS = AUTO, DISTILLED, "base"
TAEF2 = "taef2"
FOLDERS = {MODEL: "diffusion_models", TEXT_ENCODER: "text_encoders", VAE: "vae"}
# Ends the name of a diffusers folder in the list; no model file's name ends so.
FOLDER = "/model_index.json"
# As ComfyUI's UNETLoader maps them.
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def listed(role):
    """Names of what is installed for a role, as ComfyUI lists it: safetensors files, diffusers folders, taef2."""
    files = folder_paths.get_filename_list(FOLDERS[role])
    names = [name for name in files if name.lower().endswith((".safetensors", ".sft"))]
    if role == MODEL:
        names += sorted(diffusers_folders())
    if role == VAE and TAEF2 in nodes.VAELoader.vae_list(nodes.VAELoader):
        names.append(TAEF2)
    return names


def diffusers_folders():
    """`{name in the list: folder}`, of models/diffusers/NAME and models/diffusers/OWNER/NAME."""
    found = {}
    for base in map(Path, folder_paths.get_folder_paths("diffusers")):
        for depth in ("*", "*/*"):
            for index in base.glob(depth + FOLDER):
                found.setdefault(index.relative_to(base).as_posix(), index.parent)
    return found


def not_listed(role, name):
    """The sentence for a name that is not in the list of a role."""
    if role == MODEL and str(name).lower().endswith(".gguf"):
        return f"{shown(name)} is a GGUF file: load it with the node Unet Loader (GGUF) of ComfyUI-GGUF."
    folder = ", nor a folder in models/diffusers" if role == MODEL else ""
    return f"{shown(name)} is not a safetensors file in models/{FOLDERS[role]}{folder}."


def look(role, name):
    """What is installed under a name of the list.

    Returns:
        `({role: Checkpoint}, what it says of the variant or None)`: an all-in-one file or a folder has several roles.
    Raises:
        CheckpointError: it is missing, damaged, or lies outside ComfyUI's folders.
    """
    says = None
    if name not in listed(role):
        raise CheckpointError(not_listed(role, name))
    if name == TAEF2:
        checkpoints = {VAE: inspect_taef2(*(inside(taef2_file(side)) for side in ("encoder", "decoder")))}
    elif name.endswith(FOLDER):
        index = inside(diffusers_folders()[name] / FOLDER.strip("/"))
        folder = inspect_folder(index.parent)
        checkpoints, says = folder.parts, folder.is_distilled
        for checkpoint in checkpoints.values():
            for file in checkpoint.files:
                inside(file)
    else:
        path = folder_paths.get_full_path(FOLDERS[role], name)
        if path is None:
            raise CheckpointError(f"{name} in models/{FOLDERS[role]} is not a file, or a link to none.")
        checkpoint = inspect(inside(path), name=name)
        checkpoints = dict.fromkeys((role, *checkpoint.parts), checkpoint)
    return checkpoints, says


def taef2_file(side):
    name = next(name for name in folder_paths.get_filename_list("vae_approx") if name.startswith(f"{TAEF2}_{side}."))
    return folder_paths.get_full_path_or_raise("vae_approx", name)


def inside(path):
    """The path, unless it is a link that leaves ComfyUI's folders."""
    target = os.path.realpath(path)
    folders = [folder_paths.models_dir]
    for registered, *_ in folder_paths.folder_names_and_paths.values():
        folders += registered
    if not any(Path(target).is_relative_to(os.path.realpath(folder)) for folder in folders):
        raise CheckpointError(f"{os.path.basename(path)} is a link to {target}, outside ComfyUI's model folders; "
                              "name that folder in extra_model_paths.yaml, or move the file.")
    return path


def fitting(model, role):
    """The installed checkpoints that fit a Klein, best first, and the errors of those that cannot be read."""
    found, damaged = [], []
    for name in listed(role):
        try:
            checkpoint = look(role, name)[0][role]
            if pairing.fits(model, role, checkpoint):
                found.append(checkpoint)
        except CheckpointError as error:
            damaged.append(error)
    return sorted(found, key=lambda checkpoint: pairing.rank(model, checkpoint)), damaged


def choose(model, role, name, bundled):
    """The text encoder or VAE for a Klein: the one named; with `auto` the one it comes with, or the best installed."""
    if name != AUTO:
        checkpoint = look(role, name)[0][role]
        if pairing.fits(model, role, checkpoint):
            return checkpoint
        raise pairing.misfit(model, role, checkpoint, [other.name for other in fitting(model, role)[0]])
    if role in bundled and pairing.fits(model, role, bundled[role]):
        return bundled[role]
    found, damaged = fitting(model, role)
    if not found:
        raise pairing.misfit(model, role, None, [], damaged)
    return found[0]


def resolve(diffusion_model, text_encoder, vae, trim):
    """The three checkpoints that the inputs mean, checked against each other from their headers, and what the model's
    folder says of the variant."""
    bundled, says = look(MODEL, diffusion_model)
    klein = bundled[MODEL]
    pairing.check_model(klein)
    encoder = choose(klein, TEXT_ENCODER, text_encoder, bundled)
    qwen3.config(encoder, trim=trim)
    return klein, encoder, choose(klein, VAE, vae, bundled), says


def trained(klein, says, variant):
    """What a Klein was trained for, by the input `variant` and what its folder says of it."""
    if variant == AUTO:
        return decide(klein.name, klein.metadata, folder_says=says)
    return Variant(variant == DISTILLED, "as `variant` says")


def suited(settings):
    """The outputs `steps` and `cfg` of `KleinKitLoader`, for the editor's previews: of a model's file only the header is read.

    Args:
        settings: `{input: value}` as in a prompt of ComfyUI's API: `diffusion_model` and `variant`.
    Returns:
        dict: `steps` and `cfg`.
    Raises:
        ValueError: no such setting or file, or a file that is no Klein.
    """
    for name in settings:
        one_of("setting", ("diffusion_model", "variant"), name)
    variant = settings.get("variant", AUTO)
    one_of("variant", VARIANTS, variant)
    checkpoints, says = look(MODEL, settings.get("diffusion_model"))
    pairing.check_model(checkpoints[MODEL])
    found = trained(checkpoints[MODEL], says, variant)
    return {"steps": found.steps, "cfg": found.cfg}


@names_itself
class KleinKitLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinKitLoader",
            display_name="Klein Loader",
            category="KleinKit/loaders",
            description="Loads a FLUX.2 [klein] with the text encoder and the VAE that fit it, and says which it is. "
                        "A quarter of the text encoder's layers, which Klein never uses, is neither read nor kept nor run.",
            search_aliases=["load klein", "flux2 klein", "unet loader", "clip loader", "checkpoint loader",
                            "diffusers loader"],
            inputs=[
                io.Combo.Input("diffusion_model", options=listed(MODEL),
                               tooltip="A file in models/diffusion_models, or a folder of models/diffusers "
                                       "(ends in model_index.json)."),
                io.Combo.Input("text_encoder", options=[AUTO, *listed(TEXT_ENCODER)], default=AUTO,
                               tooltip="A Qwen3 in models/text_encoders: 4B for Klein 4B, 8B for Klein 9B. "
                                       "auto takes one that fits."),
                io.Combo.Input("vae", options=[AUTO, *listed(VAE)], default=AUTO,
                               tooltip="FLUX.2's VAE in models/vae, or taef2. auto takes one that fits."),
                io.Combo.Input("variant", options=list(VARIANTS), default=AUTO,
                               tooltip="Sets the outputs steps and cfg. auto goes by the file's name and metadata; "
                                       "info says how it decided."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), default="default", advanced=True,
                               tooltip="The dtype to keep the model's weights in. default: the file's own."),
                io.Combo.Input("distilled_cfg", options=["ignore", "allow"], default="ignore", advanced=True,
                               tooltip="On a distilled model, ignore: a cfg above 1 counts as 1, as in diffusers. "
                                       "allow: it is applied."),
                io.Boolean.Input("trim_text_encoder", default=True, advanced=True,
                                 tooltip="Leave out the layers of the text encoder that Klein never uses. "
                                         "Pictures stay the same. Turn it off to generate text with the encoder."),
            ],
            outputs=[
                io.Model.Output(tooltip="The Klein."),
                io.Clip.Output(tooltip="Its text encoder."),
                io.Vae.Output(tooltip="Its VAE."),
                io.Int.Output("steps", tooltip="Steps that suit the variant: distilled 4, base 50."),
                io.Float.Output("cfg", tooltip="cfg that suits the variant: distilled 1, base 4."),
                io.String.Output("info", tooltip="What was loaded, and how its variant was told."),
            ],
        )

    @classmethod
    def validate_inputs(cls, diffusion_model):
        # An input that is named here loses ComfyUI's own check of the list.
        return diffusion_model in listed(MODEL) or not_listed(MODEL, diffusion_model)

    @classmethod
    def fingerprint_inputs(cls, diffusion_model=AUTO, text_encoder=AUTO, vae=AUTO, trim_text_encoder=True, **_):
        try:
            *checkpoints, _ = resolve(diffusion_model, text_encoder, vae, trim_text_encoder)
            states = [(str(file), os.stat(file)) for checkpoint in checkpoints for file in checkpoint.files]
        except (CheckpointError, OSError) as error:
            return str(error)
        return str([(path, state.st_size, state.st_mtime_ns) for path, state in states])

    @classmethod
    def execute(cls, diffusion_model, text_encoder, vae, variant, weight_dtype, distilled_cfg, trim_text_encoder):
        klein, encoder, picture, says = resolve(diffusion_model, text_encoder, vae, trim_text_encoder)
        found = trained(klein, says, variant)
        ignore_cfg = distilled_cfg == "ignore"
        info = paragraph(klein, encoder, picture, found, trim=trim_text_encoder, ignore_cfg=ignore_cfg,
                         chosen={role for role, name in ((TEXT_ENCODER, text_encoder), (VAE, vae)) if name == AUTO})
        logging.info("KleinKitLoader: %s", info)
        model = load_model(klein, dict(WEIGHT_DTYPES[weight_dtype]))
        if found.distilled and ignore_cfg:
            model = with_rule(model, Distilled())
        clip = load_text_encoder(encoder, trim_text_encoder)
        return io.NodeOutput(model, clip, load_vae(picture), found.steps, found.cfg, info)


NODES = [KleinKitLoader]
