"""What the editor's previews ask about a model file: the steps and the cfg that it was trained for."""

from ..checkpoint import pairing
from ..checkpoint.inspection import MODEL
from ..checks import one_of
from ..engine.installed import AUTO, VARIANTS, look, trained


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
