"""Which ComfyUI the pack needs."""

import logging
import re

try:
    from comfyui_version import __version__ as COMFYUI
except ImportError:
    # Not every installation has the file: then it is taken to be new.
    COMFYUI = None

OLDEST = "0.16.3"
# The newest that every test was run with. A newer one is not refused.
NEWEST_TESTED = "0.30.0"


def is_new_enough(version: str | None = COMFYUI) -> bool:
    """Whether a ComfyUI of this version is one that the pack works with; if not, the log says so."""
    if version is None:
        return True
    if numbers(version) >= numbers(OLDEST):
        if numbers(version) > numbers(NEWEST_TESTED):
            logging.info("KleinKit was tested with ComfyUI up to %s; this is %s.", NEWEST_TESTED, version)
        return True
    logging.warning("KleinKit needs ComfyUI %s or newer, and this is %s: it adds no nodes. Update ComfyUI.", OLDEST, version)
    return False


def numbers(version: str) -> list[int]:
    """The first three numbers of a version, to compare it with others."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
