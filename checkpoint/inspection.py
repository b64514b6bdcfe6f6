"""What a model file holds: told from the names, dtypes and shapes in its header."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .families import FAMILIES
from .families.family import FLUX2_VAE, QWEN3, QWEN3_VL, TAEF2, Family
from .gguf import ARCHITECTURE, ENDING, read_gguf
from .header import QUANTISATION, CheckpointError, Header, Tensor, read_header

MODEL, TEXT_ENCODER, VAE = "diffusion model", "text encoder", "VAE"
# Those that ComfyUI's UNETLoader takes off (model_detection.py, `unet_prefix_from_state_dict`).
PREFIXES = "", "model.diffusion_model.", "model.model.", "net.", "model."
# The first key that a file has names its architecture, as in ComfyUI's model_detection.py and sd.py.
MODEL_KEYS = {
    "distilled_guidance_layer.norms.0.scale": "Chroma",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": "HunyuanVideo",
    "double_blocks.0.img_mod.lin.weight": "FLUX.1",
    "transformer_blocks.0.img_mod.1.weight": "Qwen-Image",
    "joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    "cap_embedder.1.weight": "Z-Image or Lumina 2",
    "blocks.0.cross_attn.k.weight": "Wan",
    "label_emb.0.0.weight": "SDXL",
    "input_blocks.0.0.weight": "Stable Diffusion 1 or 2",
    "emb_in.video.weight": "FLUX 3 Video or Action",
    "content_mode_blocks.video.0.norm.query_norm.scale": "FLUX 3 Video or Action",
    "transformer_blocks.0.attn.add_q_proj.weight": "FLUX.1 or Stable Diffusion 3 with diffusers' key names",
}
ENCODER_KEYS = {
    "text_model.encoder.layers.0.mlp.fc1.weight": "CLIP",
    "encoder.block.0.layer.0.SelfAttention.k.weight": "T5",
    "model.layers.0.post_feedforward_layernorm.weight": "Gemma",
    "model.language_model.layers.0.post_feedforward_layernorm.weight": "Gemma",
    "model.layers.0.linear_attn.A_log": "Qwen3.5",
    "model.language_model.layers.0.linear_attn.A_log": "Qwen3.5",
    "model.layers.0.self_attn.k_proj.bias": "Qwen2.5",
    "model.language_model.layers.0.self_attn.q_norm.weight": QWEN3_VL,
    "model.layers.0.self_attn.q_norm.weight": QWEN3,
    "model.layers.0.post_attention_layernorm.weight": "Llama or Mistral",
}
VAE_KEYS = {
    "decoder.middle.0.residual.0.gamma": "Wan's or Qwen-Image's VAE",
    "taesd_decoder.1.weight": "a TAESD of another model",
}
# LoRA by its several names, LoKr, LoHa, OFT.
OF_A_LORA = re.compile(r"[._]lora[._]|\.(lokr_|hada_|oft_)")
# How many numbers lie in one element of a weight, by the names of comfy/quant_ops.py.
VALUES = {
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "mxfp8": 1,
    "int8_tensorwise": 1,
    "nvfp4": 2,
    "convrot_w4a4": 2,
    "asym_w4a8_int8": 2,
}
# What a user reads for a format that a mark names; the others go by their own names.
MARKS = {"float8_e4m3fn": "fp8 scaled", "float8_e5m2": "fp8 scaled", "mxfp8": "fp8 scaled", "int8_tensorwise": "int8"}
# What lies beside a weight of any format.
BESIDE = {"weight", "bias", "input_scale", "comfy_quant"}
WHOLE = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
DTYPES = {**WHOLE, "F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2", "I8": "int8"}


@dataclass(frozen=True)
class Part:
    """One model inside a file.

    role: `MODEL`, `TEXT_ENCODER` or `VAE`.
    architecture: the name of a family in `FAMILIES`, `QWEN3`, `QWEN3_VL`, `FLUX2_VAE`, `TAEF2`, or what it is instead.
    prefix: what its keys begin with in the file.
    weights: the dtype or quantisation of most of its bytes.
    bytes: of its tensors.
    width: hidden size; 0 of a VAE.
    layers: of a Klein, the blocks of each stack of its family; or (layers,).
    text_width: of a diffusion model, the width of the text that it takes; 0 where its format does not tell.
    text_weights: how the layer that takes the text is stored, where its format is unknown.
    diffusers_keys: the keys are diffusers', not the original ones.
    distilled: whether its tensors say that it is; None: they do not tell.
    """

    role: str
    architecture: str
    prefix: str
    weights: str
    bytes: int
    width: int = 0
    layers: tuple[int, ...] = ()
    text_width: int = 0
    text_weights: str = ""
    diffusers_keys: bool = False
    distilled: bool | None = None

    @property
    def size(self) -> str:
        """Of a Klein: "4B", "9B", or its shape if it has another size."""
        published = FAMILIES[self.architecture].sizes.get((*self.layers, self.width))
        return published or f"{'+'.join(map(str, self.layers))} blocks of width {self.width}"

    @property
    def quantised(self) -> bool:
        """Whether most of its bytes are of another kind than plain floats of 16 or 32 bits."""
        return self.weights not in WHOLE.values()


@dataclass(frozen=True)
class Checkpoint:
    """What one model file, or the shards of one model, holds.

    name: as ComfyUI's lists show it.
    files: the safetensors files, or the GGUF file.
    tensors: `{key: Tensor}` of all of them.
    metadata: the strings in the header.
    parts: `{role: Part}`; empty if nothing known was found.
    """

    name: str
    files: tuple[Path, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    parts: dict[str, Part]

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.files[0].suffix.lower() == ENDING

    def what(self, role: str) -> str:
        """In words, what the file is, for someone who expected the role: "FLUX.1 (a diffusion model)", "a LoRA"."""
        part = self.parts.get(role) or next(iter(self.parts.values()), None)
        if part is None and ARCHITECTURE in self.metadata:
            return f"a GGUF file of {self.metadata[ARCHITECTURE][:80]!r}"
        if part is None:
            return "a LoRA" if any(map(OF_A_LORA.search, self.tensors)) else "nothing that KleinKit knows"
        if part.role == VAE:
            return part.architecture
        if part.architecture in FAMILIES:
            return f"{part.architecture} {part.size}"
        if part.role == TEXT_ENCODER and part.width:
            return f"{part.architecture} of width {part.width} and {part.layers[0]} layers"
        return f"{part.architecture} (a {part.role})"


def family_of(klein: Checkpoint) -> Family:
    """The family of a Klein."""
    return FAMILIES[klein.parts[MODEL].architecture]


def inspect(*files: str | Path, name: str | None = None, values: Callable[[str], int | None] = VALUES.get) -> Checkpoint:
    """Tell what a file holds, from its header.

    Args:
        files: one safetensors or GGUF file, or all shards of one model.
        name: for messages; the first file's name if not given.
        values: tells of a quantisation, by ComfyUI's name for it, how many numbers lie in one element of a weight; None if
            it does not know.
    Returns:
        `Checkpoint`.
    Raises:
        CheckpointError: a file is damaged.
    """
    paths = tuple(map(Path, files))
    tensors, metadata, formats = {}, {}, Formats(values)
    for path in paths:
        header = (read_gguf if path.suffix.lower() == ENDING else read_header)(path)
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise CheckpointError(f"{path.name} holds {min(twice)!r} a second time ({path}).")
        tensors |= header.tensors
        metadata |= header.metadata
        formats.add(header)
    parts = (_model(tensors, formats), _text_encoder(tensors, formats), _vae(tensors, formats))
    return Checkpoint(name or paths[0].name, paths, tensors, metadata, {part.role: part for part in parts if part})


def inspect_taef2(encoder: str | Path, decoder: str | Path) -> Checkpoint:
    """`Checkpoint` of TAEF2, the small VAE for FLUX.2, which lies in two files.

    Raises:
        CheckpointError: a file is damaged, or is another model's.
    """
    headers = [read_header(encoder), read_header(decoder)]
    # TAEF2 has 32 channels before the 2×2 patching, and a pool in its middle blocks (comfy/taesd/taesd.py).
    sides = (("14.weight", 0, "11.pool.0.weight"), ("1.weight", 1, "3.pool.0.weight"))
    for header, (key, axis, pool) in zip(headers, sides, strict=True):
        tensor = header.tensors.get(key)
        if tensor is None or len(tensor.shape) != 4 or tensor.shape[axis] != 32 or pool not in header.tensors:
            raise CheckpointError(f"{header.path.name} is not {TAEF2}'s ({header.path}).")
    tensors = {
        f"{side}.{key}": tensor
        for side, header in zip(("encoder", "decoder"), headers, strict=True)
        for key, tensor in header.tensors.items()
    }
    part = _part(tensors, Formats(VALUES.get), VAE, TAEF2, "")
    return Checkpoint("taef2", (Path(encoder), Path(decoder)), tensors, {}, {VAE: part})


def _part(tensors: dict[str, Tensor], formats: "Formats", role: str, architecture: str, prefix: str, **found: Any):
    mine = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return Part(
        role, architecture, prefix, _weights(mine, formats), sum(tensor.end - tensor.begin for tensor in mine.values()), **found
    )


def _first(tensors: dict[str, Tensor], names: dict[str, str], prefixes: Iterable[str]):
    """(architecture, prefix) of the first of `names` that the file has under one of the prefixes."""
    for prefix in prefixes:
        for key, architecture in names.items():
            if prefix + key in tensors:
                return architecture, prefix
    return None


def _count(tensors: dict[str, Tensor], prefix: str):
    """How many different numbers follow the prefix: blocks, layers."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in tensors if key.startswith(prefix)})


class Formats:
    """How the layers of a file are quantised: `{layer: format}` as its metadata and its marks say, by ComfyUI's names."""

    def __init__(self, values: Callable[[str], int | None]):
        self.values, self.metadata, self.marks = values, {}, {}

    def add(self, header: Header) -> None:
        self.metadata |= _in_metadata(header)
        self.marks |= header.formats

    def of(self, tensors: dict[str, Tensor], layer: str) -> str | None:
        """The format of a layer: as the file says, else as its tensors look; None: not quantised, or in a format unknown."""
        said = self.metadata.get(layer) or self.marks.get(layer)
        return said or _looks_like(tensors, layer)

    def packs(self, form: str) -> int | None:
        """How many numbers lie in one element of a weight of this format; None if nobody knows."""
        return self.values(form) or VALUES.get(form)

    def columns(self, tensors: dict[str, Tensor], layer: str) -> int:
        """The width of what a linear layer takes; 0 where its format is unknown."""
        weight, form = tensors[layer + ".weight"], self.of(tensors, layer)
        if form is None:
            return weight.shape[-1] if weight.dtype not in ("U8", "I8") else 0
        return weight.shape[-1] * (self.packs(form) or 0)

    def unknown(self, tensors: dict[str, Tensor], layer: str) -> str:
        """In words, the format of a linear layer whose width it does not tell; "" where it does."""
        if self.columns(tensors, layer):
            return ""
        form, dtype = self.of(tensors, layer), tensors[layer + ".weight"].dtype
        return self.called(form) if form else f"an unknown format of {DTYPES.get(dtype, dtype)}"

    def called(self, form: str) -> str:
        """A format as a user reads it."""
        return form if self.packs(form) else f"the unknown format {form}"


def _looks_like(tensors: dict[str, Tensor], layer: str) -> str | None:
    """The format of a layer in which integers are stored, by what lies beside its weight, in files that do not say it."""
    weight = tensors[layer + ".weight"]
    beside = {key.rpartition(".")[2] for key in tensors if key.startswith(layer + ".")} - BESIDE
    scale = tensors.get(layer + ".weight_scale")
    if weight.dtype == "U8" and beside <= {"weight_scale", "weight_scale_2", "pre_quant_scale"}:
        return "nvfp4" if scale is None or scale.dtype in ("F8_E4M3", "U8") else None
    if weight.dtype == "I8" and "weight_s_rel" in beside:
        return "asym_w4a8_int8"
    # One scale for the weight, or for a row: with more of them, several numbers may lie in a byte.
    if weight.dtype == "I8" and beside <= {"weight_scale"} and not (scale and math.prod(scale.shape[1:]) > 1):
        return "convrot_w4a4" if scale and len(scale.shape) == 1 else "int8_tensorwise"
    return None


def _model(tensors: dict[str, Tensor], formats: Formats):
    for prefix in PREFIXES:
        for family in FAMILIES.values():
            for diffusers_keys in (False, True):
                part = _of_family(tensors, formats, family, prefix, diffusers_keys)
                if part:
                    return part
    found = _first(tensors, MODEL_KEYS, PREFIXES)
    return found and _part(tensors, formats, MODEL, *found)


def _of_family(tensors: dict[str, Tensor], formats: Formats, family: Family, prefix: str, diffusers_keys: bool) -> Part | None:
    """The part of a Klein of this family, or of a model with the same signs beside it; None: neither is there."""

    def place(layer: str) -> str:
        return prefix + (family.outside[layer][1] if diffusers_keys else layer)

    def is_there(layer: str) -> bool:
        tensor = tensors.get(place(layer) + ".weight")
        if tensor is None and layer not in (family.image, family.text):
            # As Nunchaku stores some of them.
            tensor = tensors.get(place(layer) + ".qweight")
        return tensor is not None and len(tensor.shape) == 2

    if not all(map(is_there, family.signs)):
        return None
    image = tensors[place(family.image) + ".weight"]
    other = (what for start, what in family.siblings.items() if any(key.startswith(prefix + start) for key in tensors))
    jumps = family.only_distilled
    starts = (stack.diffusers if diffusers_keys else stack.original for stack in family.stacks)
    layers = tuple(_count(tensors, prefix + start) for start in starts)
    return _part(
        tensors,
        formats,
        MODEL,
        next(other, family.name),
        prefix,
        width=image.shape[0],
        text_weights=formats.unknown(tensors, place(family.text)),
        text_width=formats.columns(tensors, place(family.text)) or family.published_text_width((*layers, image.shape[0])),
        layers=layers,
        diffusers_keys=diffusers_keys,
        distilled=any(place(layer) + ".weight" in tensors for layer in jumps) if jumps else None,
    )


def _text_encoder(tensors: dict[str, Tensor], formats: Formats):
    inside = re.compile(r"(text_encoders\.\w+\.transformer\.|\w+\.transformer\.)model\.")
    prefixes = ["", *sorted({match[1] for match in map(inside.match, tensors) if match})]
    found = _first(tensors, ENCODER_KEYS, prefixes)
    if not found:
        return None
    architecture, prefix = found
    if architecture == QWEN3 and any(key.startswith((prefix + "model.visual.", prefix + "visual.")) for key in tensors):
        architecture = QWEN3_VL
    # The layer norms are never quantised, nor packed.
    for layers in (prefix + "model.language_model.layers.", prefix + "model.layers."):
        norm = tensors.get(layers + "0.input_layernorm.weight")
        if norm and len(norm.shape) == 1:
            return _part(
                tensors, formats, TEXT_ENCODER, architecture, prefix, width=norm.shape[0], layers=(_count(tensors, layers),)
            )
    damaged = "damaged " if architecture in (QWEN3, QWEN3_VL) else ""
    return _part(tensors, formats, TEXT_ENCODER, damaged + architecture, prefix)


def _vae(tensors: dict[str, Tensor], formats: Formats):
    for prefix in ("", "vae.", "first_stage_model."):
        latent = tensors.get(prefix + "decoder.conv_in.weight")
        if latent is None or len(latent.shape) != 4:
            continue
        channels = latent.shape[1]
        if channels == 32 and prefix + "bn.running_mean" in tensors:
            architecture = FLUX2_VAE
        else:
            known = {4: "Stable Diffusion 1's or SDXL's VAE", 16: "FLUX.1's or Stable Diffusion 3's VAE"}
            architecture = known.get(channels, f"a VAE of {channels} latent channels")
        return _part(tensors, formats, VAE, architecture, prefix)
    found = _first(tensors, VAE_KEYS, ("", "vae.", "first_stage_model."))
    return found and _part(tensors, formats, VAE, *found)


def _weights(tensors: dict[str, Tensor], formats: Formats) -> str:
    """In words, the quantisation of most layers, if any are quantised, else the dtype of most bytes."""
    for said, words in ((formats.metadata, {}), (formats.marks, MARKS)):
        named = Counter(form for layer, form in said.items() if layer + ".weight" in tensors)
        if named:
            form = named.most_common(1)[0][0]
            return words.get(form) or formats.called(form)
    if any(key.endswith(".weight_scale_2") for key in tensors):
        return "nvfp4"
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.end - tensor.begin
    dtype = sizes.most_common(1)[0][0]
    scales = (".weight_scale", ".scale_weight", "scaled_fp8")
    if dtype.startswith("F8") and any(key.endswith(scales) for key in tensors):
        return "fp8 scaled"
    if dtype not in ("I8", "U8"):
        return DTYPES.get(dtype, dtype)
    looks = Counter(
        _looks_like(tensors, key.removesuffix(".weight")) or ""
        for key, tensor in tensors.items()
        if tensor.dtype == "I8" and key.endswith(".weight")
    )
    form = looks.most_common(1)[0][0] if looks else ""
    return MARKS.get(form, form) or f"an unknown format of {DTYPES.get(dtype, dtype)}"


def _in_metadata(header: Header) -> dict[str, str]:
    """`{layer: format}` of the quantisation metadata that ComfyUI writes."""
    text = header.metadata.get(QUANTISATION)
    if text is None:
        return {}
    try:
        return {layer: str(settings["format"]) for layer, settings in json.loads(text)["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{header.path.name} is damaged: its quantisation metadata cannot be read ({header.path})."
        ) from None
