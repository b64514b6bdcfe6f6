"""What the editor's previews ask about a model file: what it was trained for, and how many layers it has."""

from typing import Any

from ..checkpoint import pairing
from ..checkpoint.inspection import MODEL
from ..checks import one_of
from ..engine.installed import AUTO, VARIANTS, check_inside, files_of, inspect_listed, trained


def suited(settings: dict[str, Any]) -> dict[str, Any]:
    """What Klein Loader knows of a model, for the editor's previews: of its file only the header is read.

    Args:
        settings: `{input: value}` as in a prompt of ComfyUI's API: `diffusion_model` and `variant`.
    Returns:
        dict: `steps` and `cfg`, as the loader's outputs; `distilled`; `double_layers` and `single_layers`, how many.
    Raises:
        ValueError: no such setting or file, a file that is no Klein, or a link out of ComfyUI's folders.
    """
    for name in settings:
        one_of("setting", ("diffusion_model", "variant"), name)
    variant = settings.get("variant", AUTO)
    one_of("variant", VARIANTS, variant)
    name = settings.get("diffusion_model")
    check_inside(files_of(MODEL, name))
    checkpoints, says = inspect_listed(MODEL, name)
    pairing.check_model(checkpoints[MODEL])
    found = trained(checkpoints[MODEL], says, variant)
    double_layers, single_layers = checkpoints[MODEL].parts[MODEL].layers
    return {
        "steps": found.steps,
        "cfg": found.cfg,
        "distilled": found.distilled,
        "double_layers": double_layers,
        "single_layers": single_layers,
    }
