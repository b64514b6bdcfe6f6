"""What the editor's previews ask about a model file: what it was trained for, and how many layers it has."""

from typing import Any

from ..checkpoint.inspection import MODEL
from ..checkpoint.klein import blocks_of
from ..checkpoint.variant import AUTO, VARIANTS, variant_of
from ..checks import one_of
from ..engine.installed import check_inside, files_of, klein_listed


def suited(settings: dict[str, Any]) -> dict[str, Any]:
    """What Klein Loader knows of a model, for the editor's previews: of its file only the header is read.

    Args:
        settings: `{input: value}` as in a prompt of ComfyUI's API: `diffusion_model` and `variant`.
    Returns:
        dict: `steps` and `cfg`, as the loader's outputs; `distilled`; `double_layers` and `single_layers`, how many; `shift`,
            the choice of Klein Scheduler that suits the model.
    Raises:
        ValueError: no such setting or file, a file that is no Klein, or a link out of ComfyUI's folders.
    """
    for name in settings:
        one_of("setting", ("diffusion_model", "variant"), name)
    variant = settings.get("variant", AUTO)
    one_of("variant", VARIANTS, variant)
    name = settings.get("diffusion_model")
    check_inside(files_of(MODEL, name))
    bundled, says = klein_listed(name)
    found = variant_of(bundled[MODEL], variant, says)
    return {
        "steps": found.steps,
        "cfg": found.cfg,
        "distilled": found.distilled,
        "double_layers": blocks_of(bundled[MODEL], "double_blocks."),
        "single_layers": blocks_of(bundled[MODEL], "single_blocks."),
        "shift": found.family.shift,
    }
