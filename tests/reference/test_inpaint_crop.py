"""Klein Inpaint Crop and Stitch against diffusers' `VaeImageProcessor`, and its processor of FLUX.2 pictures."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from kleinkit.pictures.crop import region
from PIL import Image

# Of Flux2KleinInpaintPipeline.
FLUX2 = dict(vae_scale_factor=16, vae_latent_channels=32)
OF_MASKS = dict(do_normalize=False, do_binarize=True, do_convert_rgb=False, do_convert_grayscale=True)


@st.composite
def masks(draw):
    height, width = draw(st.integers(16, 90)), draw(st.integers(16, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = draw(st.integers(1, 255))
    return mask


@given(masks(), st.integers(0, 100))
@settings(max_examples=200)
def test_the_region_is_that_of_diffusers(mask, padding):
    width, height = (side // 16 * 16 for side in reversed(mask.shape))
    theirs = VaeImageProcessor().get_crop_region(Image.fromarray(mask), width, height, padding)
    assert region(torch.from_numpy(mask), width, height, padding) == theirs


def scene(width, height, box, soft):
    """`(IMAGE, MASK, picture, mask)`: noise, and a mask of a box; soft: with an edge between black and white."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 255
    if soft:
        mask[top : top + 3, left:right] = [[60], [130], [200]]
    tensors = (torch.from_numpy(part).float()[None] / 255 for part in (pixels, mask))
    return *tensors, Image.fromarray(pixels), Image.fromarray(mask)


SCENES = (
    (96, 64, (20, 30, 50, 44), False),
    (64, 96, (0, 0, 9, 5), True),
    (90, 70, (33, 21, 61, 60), True),
    (83, 120, (70, 100, 83, 120), False),
    (100, 70, (0, 0, 100, 70), True),
)


@pytest.mark.parametrize("width, height, box, soft", SCENES)
@pytest.mark.parametrize("padding", (0, 32))
def test_both_nodes_are_padding_mask_crop(run_node, width, height, box, soft, padding):
    image, mask, picture, painted = scene(width, height, box, soft)
    part, masked, crop = run_node("KleinKitInpaintCrop", image=image, mask=mask, padding=padding)
    size = height // 16 * 16, width // 16 * 16
    found = VaeImageProcessor().get_crop_region(painted, size[1], size[0], padding)
    fill = dict(crops_coords=found, resize_mode="fill")
    theirs = Flux2ImageProcessor(**FLUX2).preprocess(picture, *size, **fill)
    assert torch.equal(part.movedim(-1, 1) * 2 - 1, theirs)
    assert torch.equal(masked[:, None], Flux2ImageProcessor(**FLUX2, **OF_MASKS).preprocess(painted, *size, **fill))
    made = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    # Not FLUX.2's own: its resize mode `crop` takes the middle of what was made, and does not scale it back.
    stitched = VaeImageProcessor().apply_overlay(painted, picture, made, found)
    (ours,) = run_node("KleinKitInpaintStitch", image=torch.from_numpy(np.array(made)).float()[None] / 255, crop=crop)
    off = (ours[0] * 255 - torch.from_numpy(np.array(stitched))).abs()
    grey = (mask[0] > 0) & (mask[0] < 1)
    # diffusers rounds to 8 bits three times where it mixes.
    assert off[~grey].max() <= 1e-4 and off.max() <= 1.5
    assert torch.equal(ours[mask == 0], image[mask == 0])
