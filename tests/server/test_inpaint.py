"""The chains of docs/editing.md over HTTP on the nano family: a masked part, with a crop and without, and a border."""

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api
from PIL import Image

SIZE = WIDTH, HEIGHT = 70, 53
# Left, top, right and bottom of the mask, in pixels.
BOX = 21, 9, 40, 30
INPAINTED = (["references", 0], ["references", 1], ["references", 2])


def inpainting(sampled, shown, **nodes):
    """A prompt that makes a part of a picture anew.

    Args:
        sampled: links to the positive and the negative prompt and the latent.
        shown: link to the pictures that are saved, beside the photo.
        nodes: `name=(type, inputs)` of those that differ.
    """
    left, top, right, bottom = BOX
    positive, negative, latent = sampled
    schedule = dict(steps=2, width=64, height=64, denoise=1.0, denoise_mode="strength", shift="auto", spacing="uniform")
    run = dict(model=["loader", 0], add_noise=True, noise_seed=1, cfg=4.0, sampler=["euler", 0], sigmas=["sigmas", 0])
    drawn = {
        "blue": ("EmptyImage", dict(width=WIDTH, height=HEIGHT, batch_size=1, color=0x2060C0)),
        "gold": ("EmptyImage", dict(width=30, height=HEIGHT, batch_size=1, color=0xE0A020)),
        "photo": ("ImageCompositeMasked", dict(destination=["blue", 0], source=["gold", 0], x=40, y=0, resize_source=False)),
        "black": ("SolidMask", dict(value=0.0, width=WIDTH, height=HEIGHT)),
        "white": ("SolidMask", dict(value=1.0, width=right - left, height=bottom - top)),
        "mask": ("MaskComposite", dict(destination=["black", 0], source=["white", 0], x=left, y=top, operation="add")),
        "euler": ("KSamplerSelect", dict(sampler_name="euler")),
        "sigmas": ("KleinKitScheduler", schedule | dict(terminal=0.0, latent=latent, model=["loader", 0])),
        "sampler": ("SamplerCustom", run | dict(positive=positive, negative=negative, latent_image=latent)),
        "seen": ("SaveImage", dict(images=["photo", 0], filename_prefix="photo")),
        "save": ("SaveImage", dict(images=shown, filename_prefix="lab")),
    }
    more = {key: {"class_type": node, "inputs": inputs} for key, (node, inputs) in (drawn | nodes).items()}
    wanted = {key: node for key, node in prompts.prompt(fault=None).items() if key not in ("shift", "latent")}
    return wanted | more


def references(image, **mask):
    """Klein References of one picture that keeps its size."""
    links = {"positive": ["positive", 0], "negative": ["negative", 0], "vae": ["loader", 2], "images.image_1": image}
    return "KleinKitReferences", links | {"size": "keep", "latent_from": "first picture"} | mask


def cropped(mask=("mask", 0)):
    return inpainting(
        INPAINTED,
        ["stitch", 0],
        crop=("KleinKitInpaintCrop", dict(image=["photo", 0], mask=list(mask), padding=8)),
        references=references(["crop", 0], mask=["crop", 1]),
        stitch=("KleinKitInpaintStitch", dict(image=["picture", 0], crop=["crop", 2])),
    )


def whole():
    composite = dict(destination=["photo", 0], source=["picture", 0], x=0, y=0, resize_source=True, mask=["mask", 0])
    return inpainting(
        INPAINTED,
        ["composite", 0],
        references=references(["photo", 0], mask=["mask", 0]),
        composite=("ImageCompositeMasked", composite),
    )


def pixels(server, wanted):
    """The photo, and what was made of it, as arrays of 8 bits."""
    outcome = api.queue(server, wanted)
    assert outcome.error is None, api.sentences(outcome.error)
    paths = {path.name.split("_")[0]: path for path in api.pictures(server, outcome)}
    return [np.asarray(Image.open(paths[name]).convert("RGB")) for name in ("photo", "lab")]


@pytest.mark.parametrize("chain", [cropped, whole])
def test_what_is_masked_changes_and_nothing_else(server, chain):
    photo, made = pixels(server, chain())
    left, top, right, bottom = BOX
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[top:bottom, left:right] = True
    assert np.array_equal(made[~inside], photo[~inside])
    assert (made[inside] != photo[inside]).mean() > 0.5


def test_a_picture_is_extended(server):
    sides = dict(left=16, top=0, right=0, bottom=16, feathering=0)
    composite = dict(destination=["padded", 0], source=["picture", 0], x=0, y=0, resize_source=False, mask=["padded", 1])
    wanted = inpainting(
        (["extended", 0], ["extended", 1], ["extended", 2]),
        ["composite", 0],
        fitting=("ImageCrop", dict(image=["photo", 0], width=64, height=48, x=0, y=0)),
        padded=("ImagePadForOutpaint", dict(image=["fitting", 0], **sides)),
        references=references(["fitting", 0]),
        extended=(
            "InpaintModelConditioning",
            dict(
                positive=["references", 0],
                negative=["references", 1],
                vae=["loader", 2],
                pixels=["padded", 0],
                mask=["padded", 1],
                noise_mask=True,
            ),
        ),
        composite=("ImageCompositeMasked", composite),
    )
    photo, made = pixels(server, wanted)
    assert made.shape == (64, 80, 3)
    assert np.array_equal(made[:48, 16:], photo[:48, :64])
    grey = (made == 127).all(-1) | (made == 128).all(-1)
    assert not grey[:, :16].all() and not grey[48:].all()


@pytest.mark.parametrize(
    "mask, says",
    [
        (
            ("black", 0),
            "Expected `mask` to be white where the picture is to change, but nothing of it is masked: paint a mask.",
        ),
        (("three", 0), "Expected `mask` to be one mask, or one for each picture (1), but got 3 masks."),
    ],
    ids=["black", "three"],
)
def test_a_mask_that_does_not_fit(server, mask, says):
    wanted = cropped(mask)
    three = dict(image=["stack", 0], channel="red")
    wanted["stack"] = {"class_type": "EmptyImage", "inputs": dict(width=WIDTH, height=HEIGHT, batch_size=3, color=0xFF0000)}
    wanted["three"] = {"class_type": "ImageToMask", "inputs": three}
    [sentence] = api.sentences(api.queue(server, wanted).error)
    assert sentence == f"KleinKitInpaintCrop: {says}"
