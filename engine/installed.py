"""Which model files are installed, what they are, and which belong together."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths
import nodes
import torch
from comfy import quant_ops

from ..checkpoint import pairing
from ..checkpoint.diffusers_folder import INDEX, MODULAR, Folder, inspect_folder
from ..checkpoint.families.family import Family
from ..checkpoint.gguf import ENDING
from ..checkpoint.header import CheckpointError
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, Checkpoint, family_of, inspect, inspect_taef2
from ..checkpoint.kept import file_state, keep
from ..checkpoint.qwen3 import check_layers
from ..checkpoint.variant import AUTO
from ..checks import sentence, shown
from . import gguf

TAEF2 = "taef2"
FOLDERS = {MODEL: "diffusion_models", TEXT_ENCODER: "text_encoders", VAE: "vae"}
# One of them ends the name of a diffusers folder in the list; no model file's name ends so.
FOLDER_ENDS = f"/{INDEX}", f"/{MODULAR}"
# Wide enough for a group of every quantisation.
SAMPLE = 256


def listed(role: str) -> list[str]:
    """Names of what is installed for a role, as ComfyUI lists it: safetensors files, GGUF files, diffusers folders, taef2."""
    files = folder_paths.get_filename_list(FOLDERS[role])
    names = [name for name in files if name.lower().endswith((".safetensors", ".sft"))]
    names += gguf.listed(role)
    if role == MODEL:
        names += sorted(diffusers_folders())
    if role == VAE and TAEF2 in nodes.VAELoader.vae_list(nodes.VAELoader):
        names.append(TAEF2)
    return names


def diffusers_folders() -> dict[str, Path]:
    """`{name in the list: folder}`, of models/diffusers/NAME and models/diffusers/OWNER/NAME; a folder with both indexes
    stands there by the first."""
    found = {}
    for base in map(Path, folder_paths.get_folder_paths("diffusers")):
        for depth in ("*", "*/*"):
            for end in FOLDER_ENDS:
                for index in base.glob(depth + end):
                    if index.parent not in found.values():
                        found.setdefault(index.relative_to(base).as_posix(), index.parent)
    return found


def not_listed(role: str, name: object) -> str:
    """The sentence for a name that is not in the list of a role."""
    if role in gguf.LOADERS and str(name).lower().endswith(ENDING):
        return f"{shown(name)} {gguf.not_listed()}."
    folder = ", nor a folder in models/diffusers" if role == MODEL else ""
    return f"{shown(name)} is not a safetensors file in models/{FOLDERS[role]}{folder}."


def files_of(role: str, name: str) -> tuple[str, ...]:
    """The files behind a name of the list; of a diffusers folder its index first.

    Raises:
        CheckpointError: the name is not in the list, or nothing is there.
    """
    if name not in listed(role):
        raise CheckpointError(not_listed(role, name))
    if name == TAEF2:
        return tuple(map(taef2_file, ("encoder", "decoder")))
    if name.endswith(FOLDER_ENDS):
        folder = diffusers_folders()[name]
        others = sorted(str(file) for ending in ("json", "safetensors") for file in folder.glob(f"*/*.{ending}"))
        return str(folder / name.rpartition("/")[2]), *others
    return (full_path(FOLDERS[role], name),)


def taef2_file(side: str) -> str:
    """The file of TAEF2's encoder or decoder, as VAELoader finds it."""
    name = next(name for name in folder_paths.get_filename_list("vae_approx") if name.startswith(f"{TAEF2}_{side}."))
    return full_path("vae_approx", name)


def full_path(folder: str, name: str) -> str:
    """The path of a file that ComfyUI lists.

    Raises:
        CheckpointError: it is a link to nothing, or no file.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise CheckpointError(f"{name} in models/{folder} is not a file, or a link to none.")
    return path


def inspect_listed(role: str, name: str) -> tuple[dict[str, Checkpoint], bool | None]:
    """What is installed under a name of the list. Files that have not changed since are not read again.

    Links are followed wherever they lead, as ComfyUI follows them: docs/decisions/links.md.

    Returns:
        `({role: Checkpoint}, what it says of the variant or None)`: an all-in-one file or a folder has several roles.
    Raises:
        CheckpointError: it is missing or damaged.
    """
    files = files_of(role, name)
    if name == TAEF2:
        return {VAE: _inspect_taef2(*files)}, None
    if name.endswith(FOLDER_ENDS):
        folder = _inspect_folder(*files)
        return folder.parts, folder.is_distilled
    checkpoint = _inspect(*files, name=name)
    return dict.fromkeys((role, *checkpoint.parts), checkpoint), None


@functools.lru_cache
def values(form: str) -> int | None:
    """How many numbers ComfyUI keeps in one element of a weight of this quantisation; None if it does not know."""
    try:
        layout = quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
        quantised = quant_ops.QuantizedTensor.from_float(torch.ones(SAMPLE, SAMPLE), layout)
        return SAMPLE // quantised.state_dict("weight")["weight"].shape[-1]
    except Exception:
        # Whatever an older or newer ComfyUI lacks: then what is known here has to do.
        return None


_inspect_taef2 = keep(inspect_taef2)


@keep
def _inspect(file: str, name: str) -> Checkpoint:
    return inspect(file, name=name, values=values)


@keep
def _inspect_folder(index: str, *_: str) -> Folder:
    return inspect_folder(Path(index).parent, values=values)


def check_inside(files: Iterable[str]) -> None:
    """Refuse files that a link leads out of ComfyUI's folders: docs/decisions/links.md.

    Raises:
        CheckpointError: names the first of them.
    """
    folders = [folder_paths.models_dir]
    for registered, *_ in folder_paths.folder_names_and_paths.values():
        folders += registered
    folders = set(map(os.path.realpath, folders))
    for file in files:
        target = Path(os.path.realpath(file))
        if not any(target.is_relative_to(folder) for folder in folders):
            raise CheckpointError(
                f"{os.path.basename(file)} is a link that leads out of ComfyUI's model folders. "
                "Klein Loader loads it, but this route does not follow it."
            )


def fitting(model: Checkpoint, role: str) -> tuple[list[Checkpoint], list[CheckpointError]]:
    """The installed checkpoints that fit a Klein, best first; and why others were left out, the likeliest to fit first."""
    found, left_out = [], []
    for name in listed(role):
        try:
            checkpoint = inspect_listed(role, name)[0][role]
        except CheckpointError as error:
            left_out.append((pairing.likeness(model, role, name), error))
            continue
        if pairing.matches(model, role, checkpoint):
            try:
                if role == TEXT_ENCODER:
                    check_layers(checkpoint, trim=True, family=family_of(model))
                found.append(checkpoint)
            except CheckpointError as error:
                left_out.append((float("inf"), error))
    left_out.sort(key=lambda pair: -pair[0])
    return sorted(found, key=lambda checkpoint: pairing.rank(model, checkpoint)), [error for _, error in left_out]


def choose(model: Checkpoint, role: str, name: str, bundled: dict[str, Checkpoint]) -> Checkpoint:
    """The text encoder or VAE for a Klein: the one named; with `auto` the one it comes with, or the best installed.

    Raises:
        CheckpointError: the one named does not fit, or none is installed that does.
    """
    if name != AUTO:
        checkpoint = inspect_listed(role, name)[0][role]
        if pairing.fits(model, role, checkpoint, named=True):
            return checkpoint
        raise pairing.misfit(model, role, checkpoint, [other.name for other in fitting(model, role)[0]])
    if role in bundled and pairing.fits(model, role, bundled[role]):
        return bundled[role]
    found, left_out = fitting(model, role)
    if not found:
        raise pairing.misfit(model, role, None, [], left_out)
    return found[0]


def klein_listed(diffusion_model: str) -> tuple[dict[str, Checkpoint], bool | None]:
    """What is installed under the name of a Klein, as `inspect_listed` returns it.

    Raises:
        CheckpointError: it is missing, damaged, or no Klein.
    """
    bundled, says = inspect_listed(MODEL, diffusion_model)
    pairing.check_model(bundled[MODEL])
    return bundled, says


def partners(bundled: dict[str, Checkpoint], text_encoder: str, vae: str, trim: bool) -> tuple[Checkpoint, Checkpoint]:
    """The text encoder and the VAE that the inputs of Klein Loader mean, checked against the Klein from their headers.

    Args:
        bundled: what is installed under the name of the Klein, itself included.
        text_encoder, vae, trim: inputs of the node.
    Raises:
        CheckpointError: says of each of the two what is wrong with it.
    """
    klein, chosen, problems = bundled[MODEL], [], []
    for role, name in ((TEXT_ENCODER, text_encoder), (VAE, vae)):
        try:
            chosen.append(choose(klein, role, name, bundled))
            if role == TEXT_ENCODER:
                check_layers(chosen[0], trim=trim, family=family_of(klein))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(" ".join(problems))
    return chosen[0], chosen[1]


def resolve(
    diffusion_model: str, text_encoder: str, vae: str, trim: bool
) -> tuple[Checkpoint, Checkpoint, Checkpoint, bool | None]:
    """What the inputs of Klein Loader mean: the Klein, its text encoder and its VAE, and what its folder says of the variant.

    Raises:
        CheckpointError: as of `klein_listed` and `partners`.
    """
    bundled, says = klein_listed(diffusion_model)
    return bundled[MODEL], *partners(bundled, text_encoder, vae, trim), says


def fingerprint(diffusion_model: str | None, text_encoder: str | None, vae: str | None, trim: bool | None) -> str:
    """What changes when Klein Loader has to load anew: the size and the time of each of its files.

    Args:
        diffusion_model, text_encoder, vae, trim: inputs of the node; None for one that comes through a link. ComfyUI does
            not say here what such an input will be, so every file counts that it may mean.
    """
    names = {MODEL: diffusion_model, TEXT_ENCODER: text_encoder, VAE: vae}
    if None in names.values():
        wanted = [(role, each) for role, name in names.items() for each in (listed(role) if name in (None, AUTO) else [name])]
        return str([_state_of_listed(role, name) for role, name in wanted])
    try:
        *checkpoints, _ = resolve(diffusion_model, text_encoder, vae, trim is not False)
        files = [*files_of(MODEL, diffusion_model), *(file for checkpoint in checkpoints for file in checkpoint.files)]
        return str([file_state(file) for file in files])
    except (CheckpointError, OSError) as error:
        return str(error)


def _state_of_listed(role: str, name: str) -> tuple[str, object]:
    try:
        return name, [file_state(file) for file in files_of(role, name)]
    except (CheckpointError, OSError) as error:
        return name, str(error)


def missing(diffusion_model: str | None, text_encoder: str | None) -> str | None:
    """What to install where a file is missing: a sentence for it, and for a text encoder and a VAE if there is none either.

    Args:
        diffusion_model, text_encoder: inputs of Klein Loader; None for one that is not known yet.
    Returns:
        The sentences, or None: both are there.
    """
    sentences, encoders = [], [AUTO, *listed(TEXT_ENCODER)]
    if text_encoder is not None and text_encoder not in encoders:
        # ComfyUI repeats all of this at every input that it asks about, so this names its own.
        given = not_listed(TEXT_ENCODER, text_encoder).removesuffix(".")
        sentences.append(sentence("text_encoder", f"one of {', '.join(encoders)}", given))
    if diffusion_model is not None and diffusion_model not in listed(MODEL):
        sentences.insert(0, not_listed(MODEL, diffusion_model))
        # A folder brings its own.
        if str(diffusion_model).lower().endswith((".safetensors", ".sft", ENDING)):
            sentences += [
                pairing.none_installed(role, diffusion_model)
                for role in (TEXT_ENCODER, VAE)
                if not any(_usable(role, name, pairing.family_by_name(diffusion_model)) for name in listed(role))
            ]
    return " ".join(sentences) or None


def _usable(role: str, name: str, family: Family) -> bool:
    """Whether a listed file is a text encoder or a VAE of any Klein of a family."""
    try:
        return pairing.usable(role, inspect_listed(role, name)[0][role], family)
    except CheckpointError:
        return False
