"""The node that loads a Klein: its model, its text encoder and its VAE."""

import logging
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..checkpoint.families.family import Family
from ..checkpoint.info import paragraph
from ..checkpoint.inspection import MODEL, TEXT_ENCODER, VAE, Checkpoint
from ..checkpoint.variant import AUTO, VARIANTS, Variant, variant_of
from ..checks import names_itself, one_of
from ..engine import gguf, loading, native
from ..engine.conflicts import is_flow
from ..engine.installed import fingerprint, klein_listed, listed, missing, partners
from ..engine.sampling import with_hooks, with_rule
from ..guidance.distilled import Distilled

# As ComfyUI's UNETLoader maps them.
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
DISTILLED_CFG = "ignore", "allow"


def guarded(model: ModelPatcher, found: Variant, ignore_cfg: bool) -> ModelPatcher:
    """The model with the guard of a distilled one; of a family that has flow maps, at least with hooks that know one."""
    if found.distilled and ignore_cfg:
        return with_rule(model, Distilled())
    # Which sampling a ComfyUI that loads FLUX 3 gives it is not known here; without hooks it samples as ComfyUI has it.
    return with_hooks(model) if found.family.flow_map and is_flow(model) else model


def load_text_encoder(encoder: Checkpoint, family: Family, trim: bool) -> CLIP:
    """The CLIP of a text encoder, by what loads its file and its family."""
    if encoder.gguf:
        return gguf.load_text_encoder(encoder, family, trim)
    return native.load_text_encoder(encoder, family, trim) if family.comfyui else loading.load_text_encoder(encoder, trim)


def load_model(klein: Checkpoint, family: Family, weight_dtype: str) -> ModelPatcher:
    """The MODEL of a Klein, by what loads its file and its family."""
    model_options = dict(WEIGHT_DTYPES[weight_dtype])
    if klein.gguf:
        return gguf.load_model(klein)
    if family.comfyui:
        return native.load_model(klein, weight_dtype, model_options)
    return loading.load_model(klein, model_options)


@names_itself
class KleinKitLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitLoader",
            display_name="Klein Loader",
            category="KleinKit/loaders",
            description="Loads a FLUX.2 [klein] or FLUX 3 Klein with the text encoder and the VAE that fit it, "
            "and says which it is. Layers of the text encoder that Klein never uses, a quarter with FLUX.2, are neither read "
            "nor kept nor run.",
            search_aliases=[
                "load klein",
                "flux2 klein",
                "flux3 klein",
                "unet loader",
                "clip loader",
                "checkpoint loader",
                "diffusers loader",
                "gguf loader",
                "gguf",
                "モデルローダー",
                "加载模型",
            ],
            inputs=[
                io.Combo.Input(
                    "diffusion_model",
                    options=listed(MODEL),
                    tooltip="A file in models/diffusion_models, or a folder of models/diffusers (ends in model_index.json). "
                    "FLUX 3 needs ComfyUI 0.41.0.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=[AUTO, *listed(TEXT_ENCODER)],
                    default=AUTO,
                    tooltip="In models/text_encoders: Qwen3 4B for Klein 4B, 8B for Klein 9B, Qwen3-VL 4B for FLUX 3. "
                    "auto takes one that fits.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[AUTO, *listed(VAE)],
                    default=AUTO,
                    tooltip="FLUX.2's VAE in models/vae, or taef2. auto takes one that fits.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default=AUTO,
                    tooltip="Sets the outputs steps and cfg. auto goes by the file's name and metadata, FLUX 3 by its tensors; "
                    "info says how it decided.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="The dtype to keep the model's weights in. default: the file's own.",
                ),
                io.Combo.Input(
                    "distilled_cfg",
                    options=list(DISTILLED_CFG),
                    default="ignore",
                    advanced=True,
                    tooltip="On a distilled model, ignore: a cfg above 1 counts as 1, as in diffusers. allow: it is applied.",
                ),
                io.Boolean.Input(
                    "trim_text_encoder",
                    default=True,
                    advanced=True,
                    tooltip="Leave out the layers of the text encoder that Klein never uses. "
                    "Pictures stay the same. Turn it off to generate text with the encoder, or to save it.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The Klein."),
                io.Clip.Output(tooltip="Its text encoder."),
                io.Vae.Output(tooltip="Its VAE."),
                io.Int.Output("steps", tooltip="Steps that suit the model: distilled 4, base 50; FLUX 3: 16 and 50."),
                io.Float.Output("cfg", tooltip="cfg that suits the model: distilled 1, base 4; FLUX 3: 1 and 3.5."),
                io.String.Output("info", tooltip="What was loaded, and how its variant was told."),
            ],
        )

    @classmethod
    def validate_inputs(cls, diffusion_model: str | None = None, text_encoder: str | None = None) -> bool | str:
        # An input that is named here loses ComfyUI's own check of the list. One that comes through a link is not known yet.
        return missing(diffusion_model, text_encoder) or True

    @classmethod
    def fingerprint_inputs(
        cls,
        diffusion_model: str | None = None,
        text_encoder: str | None = None,
        vae: str | None = None,
        trim_text_encoder: bool | None = None,
        **_: Any,
    ) -> str:
        return fingerprint(diffusion_model, text_encoder, vae, trim_text_encoder)

    @classmethod
    def execute(
        cls,
        diffusion_model: str,
        text_encoder: str,
        vae: str,
        variant: str,
        weight_dtype: str,
        distilled_cfg: str,
        trim_text_encoder: bool,
    ) -> io.NodeOutput:
        # ComfyUI checks what is chosen in a widget, not what comes through a link.
        one_of("variant", VARIANTS, variant)
        one_of("weight_dtype", WEIGHT_DTYPES, weight_dtype)
        one_of("distilled_cfg", DISTILLED_CFG, distilled_cfg)
        bundled, says = klein_listed(diffusion_model)
        klein = bundled[MODEL]
        found = variant_of(klein, variant, says)
        native.check_release(klein, found)
        encoder, picture = partners(bundled, text_encoder, vae, trim_text_encoder)
        ignore_cfg = distilled_cfg == "ignore"
        info = paragraph(
            klein,
            encoder,
            picture,
            found,
            trim=trim_text_encoder,
            ignore_cfg=ignore_cfg,
            chosen={role for role, name in ((TEXT_ENCODER, text_encoder), (VAE, vae)) if name == AUTO},
            weight_dtype=weight_dtype,
        )
        logging.info("Klein Loader: %s", info)
        # ComfyUI may take the text encoder for another: then nothing else has been loaded.
        clip = load_text_encoder(encoder, found.family, trim_text_encoder)
        model = load_model(klein, found.family, weight_dtype)
        model = guarded(model, found, ignore_cfg)
        return io.NodeOutput(model, clip, loading.load_vae(picture), found.steps, found.cfg, info)


NODES = [KleinKitLoader]
