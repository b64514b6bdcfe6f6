"""Which text encoder and VAE fit a Klein: told from headers, before any weight is read."""

from collections.abc import Sequence

from ..checks import sentence
from .families import FAMILIES, FLUX2_KLEIN
from .families.family import FLUX2_VAE, QWEN3, QWEN3_VL, TAEF2, Family
from .header import MARK, QUANTISATION, CheckpointError
from .inspection import MODEL, TEXT_ENCODER, VAE, Checkpoint, Part, family_of
from .klein import check_tensors
from .qwen3 import check_layers
from .variant import words_of

# Of files that were left out: the likeliest to have fitted may have a name that does not say so.
MOST_REASONS = 3


def check_model(checkpoint: Checkpoint) -> Family:
    """Refuse what is not a whole Klein.

    Returns:
        The Klein's family.
    Raises:
        CheckpointError: names the file and what it is, or what it lacks.
    """
    part = checkpoint.parts.get(MODEL)
    if part is None or part.architecture not in FAMILIES:
        meant = next(
            (family for family in FAMILIES.values() if part and part.architecture in family.siblings.values()), FLUX2_KLEIN
        )
        raise CheckpointError(sentence("diffusion_model", f"a {meant.name}", f"{checkpoint.name} is {checkpoint.what(MODEL)}"))
    family = family_of(checkpoint)
    engine = family.made_for.get(checkpoint.metadata.get("quantization", ""))
    if engine and QUANTISATION not in checkpoint.metadata and not any(key.endswith(MARK) for key in checkpoint.tensors):
        raise CheckpointError(
            f"{checkpoint.name} is {family.name} quantised for {engine}, which ComfyUI does not load: "
            f"take a file that is made for ComfyUI ({checkpoint.files[0]})."
        )
    if checkpoint.gguf and part.diffusers_keys:
        raise CheckpointError(
            f"{checkpoint.name} has diffusers' names of tensors, and ComfyUI-GGUF loads the original ones: "
            f"take a file that is made for ComfyUI ({checkpoint.files[0]})."
        )
    check_tensors(checkpoint)
    if not part.text_width:
        raise CheckpointError(
            f"{checkpoint.name} cannot be loaded by this ComfyUI: its text input is stored in a quantisation that is unknown "
            f"here ({part.text_weights}); update ComfyUI, or take another file."
        )
    if part.text_width % family.states:
        raise CheckpointError(
            f"{checkpoint.name} is damaged: its text input is {part.text_width} wide, not {family.states} × a hidden size."
        )
    return family


def text_width_of(model: Checkpoint) -> int:
    """The hidden size of the text encoder that a Klein needs."""
    return model.parts[MODEL].text_width // family_of(model).states


def usable(role: str, checkpoint: Checkpoint, family: Family) -> bool:
    """Whether a file holds a text encoder or a VAE of a family, be it whole or not."""
    part = checkpoint.parts.get(role)
    return part is not None and part.architecture in ((FLUX2_VAE, TAEF2) if role == VAE else family.encoders)


def matches(model: Checkpoint, role: str, checkpoint: Checkpoint, *, named: bool = False) -> bool:
    """Whether a file holds the kind of text encoder or VAE that a Klein needs, be it whole or not.

    Args:
        model: the Klein's `Checkpoint`.
        role: `TEXT_ENCODER`: one whose hidden states, side by side, fill the text input; or `VAE`: FLUX.2's, which every Klein
            uses.
        checkpoint: of the file.
        named: the user chose the file. Then it may also be one that `may_be_cut`, or one that the family tolerates and no
            other family is made for.
    """
    family = family_of(model)
    if role == VAE:
        return usable(role, checkpoint, family)
    if named and may_be_cut(model, checkpoint):
        return True
    if not usable(role, checkpoint, family) or checkpoint.parts[role].width != text_width_of(model):
        return False
    part = checkpoint.parts[role]
    if part.architecture == family.encoders[0]:
        return True
    other = _made_for(part)
    return named and not (other and part.layers[0] >= other.layers_read)


def may_be_cut(model: Checkpoint, checkpoint: Checkpoint) -> bool:
    """Whether a file may be the Qwen3-VL of a Klein, without its vision part and cut behind the last layer that Klein reads.

    Then nothing but that number tells it from a Qwen3: its tensors have the same names and shapes.
    """
    family, part = family_of(model), checkpoint.parts.get(TEXT_ENCODER)
    return (
        part is not None
        and (part.architecture, family.encoders) == (QWEN3, (QWEN3_VL,))
        and (part.width, part.layers) == (text_width_of(model), (family.layers_read,))
    )


def fits(model: Checkpoint, role: str, checkpoint: Checkpoint, *, named: bool = False) -> bool:
    """Whether a Klein can use a file as its text encoder or VAE: it `matches`, and has the layers that Klein reads.

    Raises:
        CheckpointError: it would fit, but lacks tensors.
    """
    if not matches(model, role, checkpoint, named=named):
        return False
    if role == TEXT_ENCODER:
        family = family_of(model)
        if checkpoint.parts[role].layers[0] < family.layers_read:
            return False
        check_layers(checkpoint, trim=True, family=family)
    return True


def stem_of(name: str) -> str:
    """The name of a file without its folders and its ending."""
    return name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def rank(model: Checkpoint, checkpoint: Checkpoint) -> tuple:
    """Sort key of the files that fit: TAEF2 last, official names first, then the shortest name."""
    stem, family = stem_of(checkpoint.name), family_of(model)
    official = (*official_encoders(model), *family.official_vaes)
    last = any(part.architecture == TAEF2 for part in checkpoint.parts.values())
    return last, official.index(stem) if stem in official else len(official), len(checkpoint.name), checkpoint.name


def official_encoders(model: Checkpoint) -> tuple[str, ...]:
    """The published text encoders that fit a Klein, best first; none for a Klein of another size."""
    return family_of(model).official_encoders.get(text_width_of(model), ())


def likeness(model: Checkpoint, role: str, name: str) -> int:
    """How many words, and pairs of words, a file's name shares with the published name of what a Klein needs."""
    family = family_of(model)
    encoders = official_encoders(model) or next(iter(family.official_encoders.values()))
    official = encoders[:1] if role == TEXT_ENCODER else family.official_vaes
    return max(len(_words_and_pairs(stem_of(name)) & _words_and_pairs(other)) for other in official)


def _words_and_pairs(stem: str) -> set[str | tuple[str, str]]:
    words = words_of(stem)
    return {*words, *zip(words, words[1:], strict=False)}


def family_by_name(model_name: str) -> Family:
    """The family of a model of which only the name is known: FLUX.2's unless the name says another."""
    words = words_of(stem_of(model_name))
    pairs = {first + second for first, second in zip(words, words[1:], strict=False)}
    return next((family for family in FAMILIES.values() if family.clip_type in pairs), FLUX2_KLEIN)


def none_installed(role: str, model_name: str) -> str:
    """The sentence for a text encoder or a VAE of which none is installed, before the model is: only its name is known."""
    family, words = family_by_name(model_name), words_of(stem_of(model_name))
    if role == VAE:
        return f"No VAE of FLUX.2 is installed: put {family.official_vaes[0]}.safetensors into models/vae."
    names = [names[0] for names in family.official_encoders.values()]
    sized = [name for size, name in zip(family.sizes.values(), names, strict=True) if size.removesuffix("B") in words]
    wanted = " or ".join(f"{name}.safetensors" for name in sized or names)
    return f"No {family.encoders[0]} is installed: put {wanted} into models/text_encoders."


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
    klein, family = model.parts[MODEL], family_of(model)
    if role == TEXT_ENCODER:
        name, folder, official = "text_encoder", "text_encoders", official_encoders(model)
        needs = (
            f"a {family.encoders[0]} of width {text_width_of(model)} and at least {family.layers_read} layers "
            f"for {model.name} ({family.name} {klein.size}, text input {klein.text_width} wide)"
        )
    else:
        name, folder, official = "vae", "vae", family.official_vaes
        needs = f"{FLUX2_VAE} (32 latent channels and `bn.running_mean`) or {TAEF2} for {model.name}"
    if checkpoint:
        given = f"{checkpoint.name} is {checkpoint.what(role)}{_reason(model, role, checkpoint)}"
    else:
        reasons = "; ".join(str(error).removesuffix(".") for error in damaged[:MOST_REASONS])
        given = f"none is installed ({reasons})" if reasons else "none is installed"
    if fitting:
        remedy = f"these fit: {', '.join(fitting)}"
    elif official:
        remedy = f"put {official[0]}.safetensors into models/{folder}"
    else:
        remedy = f"put one that fits into models/{folder}"
    return CheckpointError(sentence(name, needs, f"{given}; {remedy}"))


def _made_for(encoder: Part) -> Family | None:
    """The family that a text encoder belongs to first of all."""
    for family in FAMILIES.values():
        if encoder.architecture == family.encoders[0] and encoder.width in family.official_encoders:
            return family
    return None


def _reason(model: Checkpoint, role: str, checkpoint: Checkpoint) -> str:
    """Why a file that looks right is not: ", which …", or nothing."""
    family, part = family_of(model), checkpoint.parts.get(role)
    if part is None or role == VAE:
        return ""
    if part.architecture in family.mistaken:
        return f", {family.mistaken[part.architecture]}"
    other = _made_for(part)
    if other and other is not family and part.width == text_width_of(model):
        return (
            f", which has the same shapes but another rope θ ({other.rope_theta:,}, not {family.rope_theta:,}), "
            "so the pictures would be wrong"
        )
    return ""
