"""Distilled, base or KV: FLUX 3's tensors tell; FLUX.2's have the same names and shapes, so a name or a note decides."""

import re
from dataclasses import dataclass

from ..checks import sentence
from .families import FLUX2_KLEIN
from .families.family import Family, Settings
from .header import CheckpointError
from .inspection import MODEL, Checkpoint, family_of

AUTO, DISTILLED, BASE = VARIANTS = "auto", "distilled", "base"
LETTERS_OR_NUMBER = re.compile(r"[A-Za-z]+|\d+")
ONE_CASE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# The words of which names are glued on model sites: 9bbase is 9, b, base. `database` cannot be split into them.
GLUED = re.compile(
    r"flux|klein|base|distillation|distilled|distill|distil|unet|un|de|non|not|no|kv|nvfp|mxfp|fp|bf|int|nf|model|merged|merge|"
    r"mixed|mix|edit|scaled|pruned|ema|full|finetuned|finetune|tuned|lora|turbo|svdq|gguf|comfyui|comfy|checkpoint|ckpt|dit|"
    r"aio|nsfw|sfw|cache|sft|b|e|q|v"
)
# Of GGUF files with the quantisation before it, as whoever makes them writes it: -Q4_K_M, -UD-IQ2_XXS, -BF16.
ENDINGS = re.compile(r"([._-](ud-)?(i?q\d\w*|b?f16|f32|mxfp4\w*))?\.gguf$|\.(safetensors|sft)$", re.IGNORECASE)
# What diffusers calls its files in the folder of every model: then the folder has the name.
IN_A_FOLDER = re.compile(r"[\\/](transformer([\\/]diffusion_pytorch_model[^\\/]*)?|(modular_)?model_index\.json)$")
NOT = {"un", "de", "non", "not", "no", "without"}
DISTILLED_WORDS = {"distilled", "distill", "distil", "distillation"}


@dataclass(frozen=True)
class Variant:
    """What a Klein was trained for, and how that was decided.

    distilled: or else base.
    reason: in words.
    kv: a distilled one that reuses the keys and values of a reference picture.
    family: of the Klein.
    """

    distilled: bool
    reason: str
    kv: bool = False
    family: Family = FLUX2_KLEIN

    @property
    def name(self) -> str:
        return "KV" if self.kv else DISTILLED if self.distilled else BASE

    @property
    def settings(self) -> Settings:
        return self.family.distilled if self.distilled else self.family.base

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def cfg(self) -> float:
        return self.settings.cfg


def variant_of(klein: Checkpoint, wanted: str, folder_says: bool | None) -> Variant:
    """The variant of a Klein: what its tensors say for certain, else what the user wants, else what its names say.

    Args:
        klein: the Klein's `Checkpoint`.
        wanted: one of `VARIANTS`.
        folder_says: as of `decide`.
    Raises:
        CheckpointError: the user wants another than the tensors say.
    """
    part, family = klein.parts[MODEL], family_of(klein)
    if part.distilled is None:
        if wanted == AUTO:
            return decide(klein.name, klein.metadata, folder_says=folder_says)
        return Variant(wanted == DISTILLED, "as `variant` says", family=family)
    has = "it has" if part.distilled else "it lacks"
    reason = f"its tensors say so: {has} {family.flow_map.partition('.')[0]}, which only a distilled one has"
    found = Variant(part.distilled, reason, family=family)
    if wanted not in (AUTO, found.name):
        raise CheckpointError(sentence("variant", AUTO, f"{klein.name} is {found.name} for certain, not {wanted}; {reason}"))
    return found


def words_of(name: str) -> list[str]:
    """The words of a file's name, in lower case: `flux2Klein_9bBase` is flux, 2, klein, 9, b, base."""
    words = []
    for stretch in LETTERS_OR_NUMBER.findall(name):
        words += _glued(stretch) or [word for part in ONE_CASE.findall(stretch) for word in _glued(part) or [part.lower()]]
    return words


def _glued(letters: str) -> list[str] | None:
    parts = GLUED.findall(letters.lower())
    return parts if "".join(parts) == letters.lower() else None


def decide(name: str, metadata: dict[str, str], *, folder_says: bool | None = None) -> Variant:
    """Decide the variant of a FLUX.2 [klein]: from its diffusers folder, else its name, else its metadata.

    Args:
        name: the file's, or the folder's, as in ComfyUI's list.
        metadata: the strings in its header; `is_distilled` ("true", "false") counts.
        folder_says: `is_distilled` of a diffusers folder's `model_index.json`, or None.
    Returns:
        `Variant`.
    """
    path = IN_A_FOLDER.sub("", name)
    stem = ENDINGS.sub("", re.split(r"[\\/]", path)[-1])
    words = words_of(stem)
    klein, kv = "klein" in stem.lower(), "kv" in words
    if folder_says is not None:
        return Variant(folder_says, "its model_index.json says so", kv and folder_says)
    if re.fullmatch(FLUX2_KLEIN.official_models, stem.lower()):
        return Variant("base" not in words, "by its official name", kv)
    says = {"true": True, "false": False}.get(metadata.get("is_distilled", "").lower())
    distilled = [number for number, word in enumerate(words) if word in DISTILLED_WORDS]
    undone = any(number and words[number - 1] in NOT for number in distilled)
    note = ", though its metadata say distilled" if says else ""
    if klein and undone:
        return Variant(False, "its name says that it is not distilled" + note)
    if klein and "base" in words and not distilled:
        return Variant(False, "its name says base" + note)
    if klein and kv:
        return Variant(True, "its name says KV", True)
    if klein and distilled:
        return Variant(True, "its name says distilled" + (", though its metadata say base" if says is False else ""))
    if says is not None:
        return Variant(says, "its metadata say so", kv and says)
    if klein:
        return Variant(
            True, "a guess: its name says klein without base, and nothing else tells; set `variant` if that is wrong"
        )
    return Variant(False, "a guess: neither its name nor its metadata tell; set `variant` if that is wrong")
