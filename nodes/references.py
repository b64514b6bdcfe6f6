"""Pictures that the model edits or goes by: the references of both prompts."""

from typing import Any

import torch
from comfy.sd import VAE
from comfy_api.latest import io

from ..checks import brought, names_itself, no_choice, sentence
from ..engine.references import empty, encoded, inpainting, pictures_of, referring
from ..pictures.reference import GRID, LATENTS, MOST, SIZES, Choices, check_finite, given_size, most_pixels

IMAGES = tuple(f"image_{number}" for number in range(1, MOST + 1))
TOOLTIPS = {
    "megapixels": "A picture with more pixels is scaled down to this many, in units of 1024 × 1024.",
    "width": "Of the picture that is made, in pixels.",
    "height": "Of the picture that is made, in pixels.",
}


def _choice(id: str, choices: Choices, tooltip: str) -> io.DynamicCombo.Input:
    """The input of a choice, with the numbers that each brings."""

    def input_of(id: str, default: float, low: float, high: float) -> io.Int.Input | io.Float.Input:
        kind, step = (io.Int, GRID) if isinstance(default, int) else (io.Float, low)
        return kind.Input(id, default=default, min=low, max=high, step=step, tooltip=TOOLTIPS[id])

    options = [
        io.DynamicCombo.Option(choice, [input_of(one, *limits) for one, limits in inputs.items()])
        for choice, inputs in choices.items()
    ]
    return io.DynamicCombo.Input(id, options=options, tooltip=tooltip)


@names_itself
class KleinKitReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitReferences",
            display_name="Klein References",
            category="KleinKit/editing",
            description="For edits: shows pictures to FLUX.2 [klein] or FLUX 3 Klein, behind both prompts. Each is scaled and "
            "cropped as diffusers does it, and encoded once.",
            search_aliases=[
                "edit",
                "image edit",
                "flux klein edit",
                "reference latent",
                "reference image",
                "multi reference",
                "combine images",
                "inpaint",
                "kontext",
                "画像編集",
                "インペイント",
                "图像编辑",
                "局部重绘",
            ],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt that says what is to change."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. It gets the pictures too."),
                io.Vae.Input("vae", tooltip="FLUX.2's VAE, which is FLUX 3's too."),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=list(IMAGES), min=1),
                    tooltip=f"1 to {MOST} pictures in the order in which the prompt may count them. Each of a batch is one.",
                ),
                _choice(
                    "size",
                    SIZES,
                    "megapixels: a picture with more pixels is scaled down, as diffusers does it at 1.0. keep: each keeps its "
                    "size. Either way it is cropped to multiples of 16 pixels.",
                ),
                _choice(
                    "latent_from",
                    LATENTS,
                    "The size of the picture that is made. first picture: that of the first, scaled and cropped. width and "
                    "height: your own.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="For inpainting: white is made anew, black stays as it is in the first picture. It is scaled and "
                    "cropped as that is.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the pictures."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the pictures."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="An empty latent for the sampler; with a mask, the first picture and what of it is made anew.",
                ),
                io.Int.Output(display_name="width", tooltip="Width of the latent in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the latent in pixels."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        vae: Any = None,
        images: dict[str, Any] | None = None,
        size: Any = False,
        latent_from: Any = False,
    ) -> bool | str:
        # ComfyUI hands over each input that grows or brings others. It reports an answer only at inputs that arrive: `vae`.
        # One that is linked arrives as None.
        if size is False:
            return no_choice("size", SIZES)
        return no_choice("latent_from", LATENTS) if latent_from is False else True

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
        size, latent_from = brought("size", size), brought("latent_from", latent_from)
        most, given = most_pixels(size.pop("size"), size), given_size(latent_from.pop("latent_from"), latent_from)
        if mask is not None:
            if given:
                raise ValueError(
                    "A `mask` belongs to the first picture: choose first picture in `latent_from`, or disconnect `mask`."
                )
            check_finite("mask", mask)
        named = {f"images.{name}": images[name] for name in IMAGES if images.get(name) is not None}
        pictures = pictures_of(named, most)
        references = encoded(vae, pictures)
        _, scaled = pictures[0]
        width, height = given or (scaled[0] // GRID * GRID, scaled[1] // GRID * GRID)
        latent = empty(width, height) if mask is None else inpainting(references[0], mask, scaled)
        return io.NodeOutput(referring(positive, references), referring(negative, references), latent, width, height)


NODES = [KleinKitReferences]
