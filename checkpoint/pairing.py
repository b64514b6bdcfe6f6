"""Which text encoder and VAE fit a Klein: told from headers, before any weight is read."""

from collections.abc import Sequence

from ..checks import sentence
from .header import CheckpointError
from .inspection import FLUX2_VAE, KLEIN, MODEL, QWEN3, QWEN3_VL, TAEF2, TEXT_ENCODER, VAE, Checkpoint
from .klein import check_tensors
from .qwen3 import LAYERS_READ, config
from .variant import words_of

# Klein reads three hidden states of its text encoder, side by side.
STATES = 3
# The names that Comfy-Org publishes, best first; text encoders by their hidden size.
OFFICIAL_ENCODERS = {
    2560: ("qwen_3_4b", "qwen_3_4b_fp8mixed", "qwen_3_4b_fp4_flux2"),
    4096: ("qwen_3_8b", "qwen_3_8b_fp8mixed", "qwen_3_8b_fp4mixed"),
}
OFFICIAL_VAES = ("flux2-vae", "full_encoder_small_decoder")


def check_model(checkpoint: Checkpoint) -> None:
    """Refuse what is not a whole Klein.

    Raises:
        CheckpointError: names the file and what it is, or what it lacks.
    """
    part = checkpoint.parts.get(MODEL)
    if part is None or part.architecture != KLEIN:
        but = f"{checkpoint.name} is {checkpoint.what(MODEL)}"
        raise CheckpointError(sentence("diffusion_model", f"a {KLEIN}", but))
    check_tensors(checkpoint)
    if not part.text_width:
        raise CheckpointError(
            f"{checkpoint.name} cannot be loaded by this ComfyUI: its text input is stored in a quantisation that is unknown "
            f"here ({part.weights}); update ComfyUI, or take another file."
        )
    if part.text_width % STATES:
        raise CheckpointError(
            f"{checkpoint.name} is damaged: its text input is {part.text_width} wide, not {STATES} × a hidden size."
        )


def usable(role: str, checkpoint: Checkpoint) -> bool:
    """Whether a file holds a text encoder or a VAE of any Klein, be it whole or not: a Qwen3; FLUX.2's VAE or TAEF2."""
    part = checkpoint.parts.get(role)
    return part is not None and part.architecture in ((FLUX2_VAE, TAEF2) if role == VAE else (QWEN3, QWEN3_VL))


def matches(model: Checkpoint, role: str, checkpoint: Checkpoint) -> bool:
    """Whether a file holds the kind of text encoder or VAE that a Klein needs, be it whole or not.

    Args:
        model: the Klein's `Checkpoint`.
        role: `TEXT_ENCODER`: a Qwen3 whose three hidden states fill the text input; or `VAE`: FLUX.2's, which every Klein
            uses.
        checkpoint: of the file.
    """
    if not usable(role, checkpoint):
        return False
    return role == VAE or STATES * checkpoint.parts[role].width == model.parts[MODEL].text_width


def fits(model: Checkpoint, role: str, checkpoint: Checkpoint) -> bool:
    """Whether a Klein can use a file as its text encoder or VAE: it `matches`, and has the layers that Klein reads.

    Raises:
        CheckpointError: it would fit, but lacks tensors.
    """
    if not matches(model, role, checkpoint):
        return False
    if role == TEXT_ENCODER:
        if checkpoint.parts[role].layers[0] < LAYERS_READ:
            return False
        config(checkpoint, trim=True)
    return True


def stem_of(name: str) -> str:
    """The name of a file without its folders and its ending."""
    return name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def rank(model: Checkpoint, checkpoint: Checkpoint) -> tuple:
    """Sort key of the files that fit: Qwen3-VL and TAEF2 last, the official names first, then the shortest name."""
    stem = stem_of(checkpoint.name)
    official = (*official_encoders(model), *OFFICIAL_VAES)
    last = any(part.architecture in (QWEN3_VL, TAEF2) for part in checkpoint.parts.values())
    return last, official.index(stem) if stem in official else len(official), len(checkpoint.name), checkpoint.name


def official_encoders(model: Checkpoint) -> tuple[str, ...]:
    """The published text encoders that fit a Klein, best first; none for a Klein of another size."""
    return OFFICIAL_ENCODERS.get(model.parts[MODEL].text_width // STATES, ())


def likeness(model: Checkpoint, role: str, name: str) -> int:
    """How many words, and pairs of words, a file's name shares with the published name of what a Klein needs."""
    official = (official_encoders(model) or ("qwen_3",))[:1] if role == TEXT_ENCODER else OFFICIAL_VAES
    return max(len(_words_and_pairs(stem_of(name)) & _words_and_pairs(other)) for other in official)


def _words_and_pairs(stem: str) -> set[str | tuple[str, str]]:
    words = words_of(stem)
    return {*words, *zip(words, words[1:], strict=False)}


def none_installed(role: str, model_name: str) -> str:
    """The sentence for a text encoder or a VAE of which none is installed, before the model is: only its name is known."""
    if role == VAE:
        return f"No VAE of FLUX.2 is installed: put {OFFICIAL_VAES[0]}.safetensors into models/vae."
    words = words_of(stem_of(model_name))
    encoders = [names[0] for size, (_, names) in zip("49", OFFICIAL_ENCODERS.items(), strict=True) if size in words]
    wanted = encoders or [names[0] for names in OFFICIAL_ENCODERS.values()]
    return f"No Qwen3 is installed: put {' or '.join(f'{name}.safetensors' for name in wanted)} into models/text_encoders."


def misfit(
    model: Checkpoint,
    role: str,
    checkpoint: Checkpoint | None,
    fitting: Sequence[str],
    damaged: Sequence[CheckpointError] = (),
) -> CheckpointError:
    """The error for a text encoder or VAE that does not fit, or for none that does.

    Args:
        model: the Klein's `Checkpoint`.
        role: `TEXT_ENCODER` or `VAE`.
        checkpoint: the file that was given, or None when none was found.
        fitting: names of the installed files that fit.
        damaged: errors of installed files that were left out, the likeliest to have fitted first.
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
    return CheckpointError(sentence(name, needs, f"{given}; {remedy}"))
