"""What the editor shows of the references of a run before it runs."""

from typing import Any

from ..checks import expected, in_node, number, one_of
from ..pictures.reference import FIRST, MEGAPIXELS, check_count, given_size, most_pixels, prepared_size
from ..scheduler.schedule import picture_tokens
from .sigmas import inputs_of

SETTINGS = "pictures", "size", "latent_from"
# More than ComfyUI reads.
LONGEST_SIDE = 10**6


def sized(width: int, height: int) -> dict[str, int]:
    return {"width": width, "height": height, "tokens": picture_tokens(width, height)}


def size_of(given: Any) -> tuple[int, int]:
    """Width and height of a picture.

    Raises:
        ValueError: not of that form.
    """
    if not (isinstance(given, list) and len(given) == 2):
        raise expected("pictures", "a list of [width, height], null where that is not known", given)
    for name, side in zip(("width", "height"), given):
        number(name, side, 1, LONGEST_SIDE)
    return given[0], given[1]


def preview(settings: dict[str, Any]) -> dict[str, Any]:
    """What `KleinKitReferences` makes of its pictures, and how many of the run's tokens they are.

    Args:
        settings: `pictures`, of each `[width, height]` in pixels, or None where that is not known; and `size`,
            `size.megapixels`, `latent_from`, `latent_from.width` and `latent_from.height` as in a prompt of ComfyUI's API.
            Those that are left out have their defaults.
    Returns:
        dict: `pictures`, of each `width`, `height` and `tokens` as prepared, or None; `made`, the same of the picture that
        is made, or None; `references`, the tokens of all references, and `total`, with those of the picture that is made:
        None where one of them is not known.
    Raises:
        ValueError: no such setting, or a value that does not fit.
    """
    settings, of_size = inputs_of("size", settings)
    settings, of_latent = inputs_of("latent_from", settings)
    for name in settings:
        one_of("setting", SETTINGS, name)
    pictures = settings.get("pictures")
    if not isinstance(pictures, list):
        raise expected("pictures", "a list", pictures)
    check_count(len(pictures))
    most = most_pixels(settings.get("size", MEGAPIXELS), of_size)
    given = given_size(settings.get("latent_from", FIRST), of_latent)
    prepared: list[dict[str, int] | None] = []
    for place, picture in enumerate(pictures, 1):
        with in_node(f"Picture {place}"):
            prepared.append(None if picture is None else sized(*prepared_size(*size_of(picture), most)))
    made = sized(*given) if given else prepared[0]
    known = [picture["tokens"] for picture in prepared if picture]
    references = sum(known) if len(known) == len(prepared) else None
    total = made["tokens"] + references if made and references else None
    return {"pictures": prepared, "made": made, "references": references, "total": total}
