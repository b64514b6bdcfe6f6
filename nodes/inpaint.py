"""A small part of a picture made anew at full size: cut out around a mask, and put back."""

from typing import Any

import torch
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io

from ..checks import names_itself, sentence
from ..engine.native import call
from ..pictures.crop import Crop, covering, filling, region
from ..pictures.reference import MEGAPIXEL, check_finite, in_colour, prepared_size

CROP = io.Custom("KLEINKIT_CROP")


@names_itself
class KleinKitInpaintCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitInpaintCrop",
            display_name="Klein Inpaint Crop",
            category="KleinKit/editing",
            description="Cuts out the part around a mask and enlarges it, so that a small part is made anew with all the "
            "detail of a whole picture. Klein Inpaint Stitch puts it back.",
            search_aliases=["inpaint", "crop and stitch", "mask crop", "padding mask crop", "detailer", "bounding box"],
            inputs=[
                io.Image.Input("image", tooltip="The picture, at its full size."),
                io.Mask.Input("mask", tooltip="White is made anew. A mask of another size is scaled to the picture."),
                io.Int.Input(
                    "padding",
                    default=32,
                    min=0,
                    max=16384,
                    tooltip="How much of the picture around the mask is cut out with it, in pixels on each side. The model "
                    "sees no more of the picture than that.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The part, at the size of the picture: at most 1 megapixel, sides multiples of 16.",
                ),
                io.Mask.Output(display_name="mask", tooltip="Its mask, black and white, of the same size."),
                CROP.Output(display_name="crop", tooltip="For Klein Inpaint Stitch: the picture, and where the part was."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, mask: torch.Tensor, padding: int) -> io.NodeOutput:
        pictures = in_colour("image", image)
        count, rows, columns, _ = pictures.shape
        check_finite("mask", mask)
        mask = mask.float().reshape(-1, *mask.shape[-2:])
        if len(mask) not in (1, count):
            raise ValueError(sentence("mask", f"one mask, or one for each picture ({count})", f"got {len(mask)} masks"))
        if mask.shape[1:] != (rows, columns):
            mask = torch.nn.functional.interpolate(mask[:, None], size=(rows, columns), mode="bilinear")[:, 0]
        width, height = prepared_size(columns, rows, MEGAPIXEL)
        left, top, right, bottom = box = region(mask.amax(0), width, height, padding)
        part, masked = (
            torch.stack([filling(one[top:bottom, left:right], width, height) for one in batch]) for batch in (pictures, mask)
        )
        return io.NodeOutput(part, (masked >= 0.5).float(), Crop(pictures, mask, box))


@names_itself
class KleinKitInpaintStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitInpaintStitch",
            display_name="Klein Inpaint Stitch",
            category="KleinKit/editing",
            description="Puts what was made of a part back into its picture. Where the mask is black, the picture stays as it "
            "was, to the last bit.",
            search_aliases=["inpaint", "crop and stitch", "uncrop", "paste back", "composite", "overlay"],
            inputs=[
                io.Image.Input("image", tooltip="What was made of the part, of any size."),
                CROP.Input("crop", tooltip="From Klein Inpaint Crop."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The whole picture, at its full size.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, crop: Crop) -> io.NodeOutput:
        left, top, right, bottom = crop.box
        parts = in_colour("image", image)
        whole: dict[str, Any] = dict(
            destination=repeat_to_batch_size(crop.pictures, len(parts)),
            source=torch.stack([covering(one, right - left, bottom - top) for one in parts]),
            mask=crop.masks[:, top:bottom, left:right],
        )
        return io.NodeOutput(call("ImageCompositeMasked", x=left, y=top, resize_source=False, **whole))


NODES = [KleinKitInpaintCrop, KleinKitInpaintStitch]
