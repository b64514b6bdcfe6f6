"""Pictures that the model edits or goes by: the references of both prompts."""

from typing import Any

import torch
from comfy.sd import VAE
from comfy_api.latest import io

from ..checks import names_itself, no_choice, sentence
from ..engine.references import MOST, encoded, referring
from ..pictures.reference import MEGAPIXEL

IMAGES = tuple(f"image_{number}" for number in range(1, MOST + 1))
MEGAPIXELS, KEEP = "megapixels", "keep"
FIRST, GIVEN = "first picture", "width and height"


@names_itself
class KleinKitReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitReferences",
            display_name="Klein References",
            category="KleinKit/editing",
            description="Shows pictures to FLUX.2 [klein] or FLUX 3 Klein: scaled, cropped and encoded as Black Forest Labs "
            "do it, behind both prompts.",
            search_aliases=[
                "edit",
                "reference latent",
                "image edit",
                "kontext",
                "multi reference",
                "inpaint",
                "combine pictures",
            ],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt: what is to change."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Vae.Input("vae", tooltip="FLUX.2's VAE. FLUX 3 has the same."),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=list(IMAGES), min=1),
                    tooltip=f"The pictures, in the order in which a prompt counts them. Each of a batch is one; at most {MOST}.",
                ),
                io.DynamicCombo.Input(
                    "size",
                    options=[
                        io.DynamicCombo.Option(
                            MEGAPIXELS,
                            [
                                io.Float.Input(
                                    "megapixels",
                                    default=1.0,
                                    min=0.01,
                                    max=16.0,
                                    step=0.01,
                                    tooltip="The most that a picture keeps, in units of 1024 × 1024 pixels.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(KEEP, []),
                    ],
                    tooltip="megapixels: what is larger is scaled down, each picture by itself. keep: every picture has its "
                    "size. Both crop to multiples of 16.",
                ),
                io.DynamicCombo.Input(
                    "latent_from",
                    options=[
                        io.DynamicCombo.Option(FIRST, []),
                        io.DynamicCombo.Option(
                            GIVEN,
                            [
                                io.Int.Input("width", default=1024, min=16, max=16384, step=16, tooltip="In pixels."),
                                io.Int.Input("height", default=1024, min=16, max=16384, step=16, tooltip="In pixels."),
                            ],
                        ),
                    ],
                    tooltip="The size of the picture that is made.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is made anew, black stays as it is in the first picture. It is scaled and cropped with it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the pictures."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the pictures."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty; with a mask, the first picture, of which the white part is made anew.",
                ),
                io.Int.Output(display_name="width", tooltip="Of the picture that is made, in pixels."),
                io.Int.Output(display_name="height", tooltip="Of the picture that is made, in pixels."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        vae: Any = None,
        images: dict[str, Any] | None = None,
        size: dict[str, Any] | None = None,
        latent_from: dict[str, Any] | None = None,
    ) -> bool | str:
        # ComfyUI hands over all inputs that grow or bring others, and reports an answer only at inputs that arrive: `vae`.
        if not size:
            return no_choice("size", (MEGAPIXELS, KEEP))
        return True if latent_from else no_choice("latent_from", (FIRST, GIVEN))

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: VAE,
        images: dict[str, torch.Tensor],
        size: dict[str, Any],
        latent_from: dict[str, Any],
        mask: torch.Tensor | None = None,
        **unknown: Any,
    ) -> io.NodeOutput:
        if unknown:
            raise ValueError(sentence("images", f"{IMAGES[0]} to {IMAGES[-1]}", f"got {', '.join(unknown)}"))
        most = int(size["megapixels"] * MEGAPIXEL) if size["size"] == MEGAPIXELS else None
        given = (latent_from["width"], latent_from["height"]) if latent_from["latent_from"] == GIVEN else None
        pictures = [(name, images[name]) for name in IMAGES if images.get(name) is not None]
        references, latent, width, height = encoded(vae, pictures, most, given, mask)
        return io.NodeOutput(referring(positive, references), referring(negative, references), latent, width, height)


NODES = [KleinKitReferences]
