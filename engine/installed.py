"""Which model files are installed, what they are, and which belong together."""

import os
from pathlib import Path

import folder_paths
import nodes

from ..checkpoint import pairing, qwen3
from ..checkpoint.diffusers_folder import inspect_folder
from ..checkpoint.header import CheckpointError
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, inspect, inspect_taef2
from ..checkpoint.variant import Variant, decide
from ..checks import shown

AUTO = "auto"
DISTILLED = "distilled"
VARIANTS = AUTO, DISTILLED, "base"
TAEF2 = "taef2"
FOLDERS = {MODEL: "diffusion_models", TEXT_ENCODER: "text_encoders", VAE: "vae"}
# Ends the name of a diffusers folder in the list; no model file's name ends so.
FOLDER = "/model_index.json"


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
        raise CheckpointError(
            f"{os.path.basename(path)} is a link to {target}, outside ComfyUI's model folders; "
            "name that folder in extra_model_paths.yaml, or move the file."
        )
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
