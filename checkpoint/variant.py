"""Distilled, base or KV: the three have the same keys and shapes, so a name or a note decides."""

import re
from dataclasses import dataclass

# The names that Black Forest Labs and Comfy-Org publish.
OFFICIAL = re.compile(r"flux[.-]2-klein-(base-)?(4b|9b)(-kv)?(-fp8|-nvfp4)?")
LETTERS_OR_NUMBER = re.compile(r"[A-Za-z]+|\d+")
ONE_CASE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# What model sites glue together: bbase (of 9bbase) is b, base. A database is not made of these.
GLUED = re.compile(r"flux|klein|base|distilled|distill|un|de|non|kv|nvfp|mxfp|fp|bf|int|model|merge|mix|edit|b|v")
NOT = {"un", "de", "non", "not"}
DISTILLED = {"distilled", "distill"}


@dataclass(frozen=True)
class Variant:
    """What a Klein was trained for, and how that was decided.

    distilled: or else base.
    reason: in words.
    kv: a distilled one that reuses the keys and values of a reference picture.
    """

    distilled: bool
    reason: str
    kv: bool = False

    @property
    def name(self) -> str:
        return "KV" if self.kv else "distilled" if self.distilled else "base"

    @property
    def steps(self) -> int:
        return 4 if self.distilled else 50

    @property
    def cfg(self) -> float:
        return 1.0 if self.distilled else 4.0


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
    """Decide the variant of a Klein: from its diffusers folder, else its name, else its metadata.

    Args:
        name: the file's, or the folder's, as in ComfyUI's list.
        metadata: the strings in its header; `is_distilled` ("true", "false") counts.
        folder_says: `is_distilled` of a diffusers folder's `model_index.json`, or None.
    Returns:
        `Variant`.
    """
    path = re.sub(r"[\\/](transformer|model_index\.json)$", "", name)
    stem = re.sub(r"\.(safetensors|sft)$", "", re.split(r"[\\/]", path)[-1], flags=re.IGNORECASE)
    words = words_of(stem)
    klein, kv = "klein" in stem.lower(), "kv" in words
    if folder_says is not None:
        return Variant(folder_says, "its model_index.json says so", kv and folder_says)
    if OFFICIAL.fullmatch(stem.lower()):
        return Variant("base" not in words, "by its official name", kv)
    says = {"true": True, "false": False}.get(metadata.get("is_distilled", "").lower())
    distilled = [number for number, word in enumerate(words) if word in DISTILLED]
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
