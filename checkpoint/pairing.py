"""Which text encoder and VAE fit a Klein: told from headers, before any weight is read."""

from .header import CheckpointError
from .inspection import FLUX2_VAE, KLEIN, MODEL, QWEN3, QWEN3_VL, TAEF2, TEXT_ENCODER, VAE
from .klein import check_tensors
from .qwen3 import LAYERS_READ, config

# Klein reads three hidden states of its text encoder, side by side.
STATES = 3
# The names that Comfy-Org publishes, best first; text encoders by their hidden size.
OFFICIAL_ENCODERS = {
    2560: ("qwen_3_4b", "qwen_3_4b_fp8mixed", "qwen_3_4b_fp4_flux2"),
    4096: ("qwen_3_8b", "qwen_3_8b_fp8mixed", "qwen_3_8b_fp4mixed"),
}
OFFICIAL_VAES = ("flux2-vae", "full_encoder_small_decoder")


def check_model(checkpoint):
    """Refuse what is not a whole Klein.

    Raises:
        CheckpointError: names the file and what it is, or what it lacks.
    """
    part = checkpoint.parts.get(MODEL)
    if part is None or part.architecture != KLEIN:
        raise CheckpointError(f"Expected `diffusion_model` to be a {KLEIN}, but {checkpoint.name} is {checkpoint.what(MODEL)}.")
    check_tensors(checkpoint)
    if part.text_width % STATES:
        raise CheckpointError(
            f"{checkpoint.name} is damaged: its text input is {part.text_width} wide, not {STATES} × a hidden size."
        )


def fits(model, role, checkpoint):
    """Whether a file holds the text encoder or the VAE of a Klein.

    Args:
        model: the Klein's `Checkpoint`.
        role: `TEXT_ENCODER`: its three hidden states fill the text input; or `VAE`: FLUX.2's, which every Klein uses.
    Raises:
        CheckpointError: it would fit, but lacks tensors.
    """
    part = checkpoint.parts.get(role)
    if part is None:
        return False
    if role == VAE:
        return part.architecture in (FLUX2_VAE, TAEF2)
    if part.architecture not in (QWEN3, QWEN3_VL) or part.layers[0] < LAYERS_READ:
        return False
    if STATES * part.width != model.parts[MODEL].text_width:
        return False
    config(checkpoint, trim=True)
    return True


def rank(model, checkpoint):
    """Sort key of the files that fit: Qwen3-VL and TAEF2 last, the official names first, then the shortest name."""
    stem = checkpoint.name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    official = (*official_encoders(model), *OFFICIAL_VAES)
    last = any(part.architecture in (QWEN3_VL, TAEF2) for part in checkpoint.parts.values())
    return last, official.index(stem) if stem in official else len(official), len(checkpoint.name), checkpoint.name


def official_encoders(model):
    """The published text encoders that fit a Klein, best first; none for a Klein of another size."""
    return OFFICIAL_ENCODERS.get(model.parts[MODEL].text_width // STATES, ())


def misfit(model, role, checkpoint, fitting, damaged=()):
    """The error for a text encoder or VAE that does not fit, or for none that does.

    Args:
        model: the Klein's `Checkpoint`.
        role: `TEXT_ENCODER` or `VAE`.
        checkpoint: the file that was given, or None when none was found.
        fitting: names of the installed files that fit.
        damaged: errors of installed files that could not be read.
    Returns:
        `CheckpointError` that says what was given, what is needed, and which file to use.
    """
    klein = model.parts[MODEL]
    if role == TEXT_ENCODER:
        name, folder, official = "text_encoder", "text_encoders", official_encoders(model)
        needs = (
            f"a Qwen3 of width {klein.text_width // STATES} and at least {LAYERS_READ} layers "
            f"for {model.name} ({KLEIN} {klein.size}, text input {klein.text_width} wide)"
        )
    else:
        name, folder, official = "vae", "vae", OFFICIAL_VAES
        needs = f"{FLUX2_VAE} (32 latent channels and `bn.running_mean`) or {TAEF2} for {model.name}"
    if checkpoint:
        given = f"{checkpoint.name} is {checkpoint.what(role)}"
    else:
        given = "none is installed" + "".join(f" ({error})" for error in damaged[:1])
    if fitting:
        remedy = f"these fit: {', '.join(fitting)}"
    elif official:
        remedy = f"put {official[0]}.safetensors into models/{folder}"
    else:
        remedy = f"put one that fits into models/{folder}"
    return CheckpointError(f"Expected `{name}` to be {needs}, but {given}; {remedy}.")
