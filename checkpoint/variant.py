"""Distilled, base or KV: the three have the same keys and shapes, so a name or a note decides."""

import re
from dataclasses import dataclass

# The names that Black Forest Labs and Comfy-Org publish.
OFFICIAL = re.compile(r"flux-2-klein-(base-)?(4b|9b)(-kv)?(-fp8|-nvfp4)?")


@dataclass(frozen=True)
class Variant:
    """What a Klein was trained for: `distilled`, or not (base); `kv`, a distilled one that reuses a reference picture's
    keys and values; and how that was decided, in words."""

    distilled: bool
    reason: str
    kv: bool = False

    @property
    def name(self):
        return "KV" if self.kv else "distilled" if self.distilled else "base"

    @property
    def steps(self):
        return 4 if self.distilled else 50

    @property
    def cfg(self):
        return 1.0 if self.distilled else 4.0


def decide(name, metadata, *, folder_says=None):
    """Decide the variant of a Klein: from its diffusers folder, else its name, else its metadata.

    Args:
        name: the file's or the folder's.
        metadata: the strings in its header; `is_distilled` ("true", "false") counts.
        folder_says: `is_distilled` of a diffusers folder's `model_index.json`, or None.
    Returns:
        `Variant`.
    """
    stem = re.split(r"[\\/]", name)[-1].removesuffix(".safetensors").lower()
    words = re.split(r"[^a-z0-9]+", stem)
    kv = "kv" in words
    if folder_says is not None:
        return Variant(folder_says, "its model_index.json says so", kv and folder_says)
    if OFFICIAL.fullmatch(stem):
        return Variant("base" not in words, "by its official name", kv)
    says = {"true": True, "false": False}.get(metadata.get("is_distilled", "").lower())
    if "klein" in stem and "base" in words:
        note = ", though its metadata say distilled" if says else ""
        return Variant(False, "its name says base" + note)
    if "klein" in stem and kv:
        return Variant(True, "its name says KV", True)
    if says is not None:
        return Variant(says, "its metadata say so", kv and says)
    if "klein" in stem:
        return Variant(
            True, "a guess: its name says klein without base, and nothing else tells; set `variant` if that is wrong"
        )
    return Variant(False, "a guess: neither its name nor its metadata tell; set `variant` if that is wrong")
