"""Klein Inpaint Crop and Stitch in the real ComfyUI: what diffusers does not take, and pictures above its megapixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inpainting import mask_of

RED = torch.tensor([1.0, 0.0, 0.0])


def noise(height, width, batch=1, channels=3):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def crop(run_node):
    return lambda image, mask, padding=8: run_node("KleinKitInpaintCrop", image=image, mask=mask, padding=padding)


@pytest.fixture
def stitch(run_node):
    return lambda image, crop: run_node("KleinKitInpaintStitch", image=image, crop=crop)[0]


def test_a_part_of_a_large_picture_is_cut_out_at_full_detail(crop, stitch):
    image, mask = noise(1024, 2048), mask_of(100, 200, 612, 1224, size=(1024, 2048))
    part, masked, where = crop(image, mask, 0)
    # The size of a whole picture: a megapixel of the same shape. Here it is a little more than the part.
    assert part.shape == (1, 720, 1440, 3) and masked.shape == (1, 720, 1440) and where.box == (200, 100, 1224, 612)
    made = stitch(RED.expand_as(part), where)
    assert torch.equal(made, torch.where(mask[..., None] > 0, RED, image))


def test_a_part_of_the_size_of_a_picture_is_not_scaled(crop, stitch):
    image, mask = noise(64, 96), mask_of(20, 10, 60, 90, size=(64, 96))
    part, masked, where = crop(image, mask, 32)
    assert torch.equal(masked, mask) and (part - image).abs().max() <= 0.5 / 255 + 1e-6
    assert (stitch(part, where) - image).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("shape", [(1, 64, 96), (64, 96), (1, 1, 64, 96)])
def test_a_white_mask_is_the_whole_picture(crop, shape):
    assert crop(noise(64, 96), torch.ones(shape))[2].box == (0, 0, 96, 64)


def test_a_mask_of_another_size_is_scaled_to_the_picture(crop):
    half, whole = mask_of(10, 8, 20, 24, size=(32, 48)), mask_of(20, 16, 40, 48, size=(64, 96))
    ours, theirs = (crop(noise(64, 96), mask) for mask in (half, whole))
    assert (ours[2].masks - whole).abs().max() < 0.5 and ours[1].shape == theirs[1].shape


def test_every_picture_of_a_batch_has_its_mask_and_all_of_them_one_box(crop, stitch):
    image = noise(64, 64, batch=2)
    masks = torch.cat([mask_of(8, 8, 16, 16, size=(64, 64)), mask_of(24, 24, 40, 40, size=(64, 64))])
    part, masked, where = crop(image, masks, 0)
    assert where.box == (8, 8, 40, 40) and part.shape[0] == masked.shape[0] == 2
    assert torch.equal(stitch(RED.expand_as(part), where), torch.where(masks[..., None] > 0, RED, image))


def test_several_pictures_made_of_one_part_are_all_put_back(crop, stitch):
    image, mask = noise(64, 64), mask_of(8, 8, 24, 24, size=(64, 64))
    part, _, where = crop(image, mask)
    made = stitch(torch.stack([part[0] * share for share in (0.0, 0.5, 1.0)]), where)
    assert made.shape == (3, 64, 64, 3)
    assert torch.equal(made[:, mask[0] == 0], image.expand_as(made)[:, mask[0] == 0])
    assert made[0][mask[0] > 0].max() == 0.0 < made[1][mask[0] > 0].max() < made[2][mask[0] > 0].max()


@pytest.mark.parametrize("channels", [1, 4])
def test_a_grey_picture_or_one_with_an_alpha_channel_is_taken_as_colour(crop, stitch, channels):
    part, _, where = crop(noise(48, 48, channels=channels), mask_of(8, 8, 24, 24, size=(48, 48)))
    assert part.shape[-1] == stitch(part, where).shape[-1] == 3


@pytest.mark.parametrize(
    "image, mask, says",
    [
        ((48, 48), torch.zeros(1, 48, 48), "`mask` to be white where the picture is to change, but nothing of it is masked"),
        ((48, 48), torch.ones(2, 48, 48), r"`mask` to be one mask, or one for each picture \(1\), but got 2 masks"),
        ((12, 48), torch.ones(1, 12, 48), "a picture of at least 16 × 16 pixels, but got 48 × 12"),
        ((16, 70000), torch.ones(1, 1, 1), "a picture of .*, but got 70000 × 16, which a cap of 1 MP makes 67731 × 15"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(crop, image, mask, says):
    with pytest.raises(ValueError, match=f"^Klein Inpaint Crop: Expected {says}"):
        crop(noise(*image), mask)


@pytest.mark.parametrize("shape", [(0, 48, 48, 3), (48, 48, 3)])
def test_what_holds_no_picture_gets_one_sentence(crop, stitch, shape):
    mask = mask_of(8, 8, 24, 24, size=(48, 48))
    says = "Expected `image` to be an IMAGE [batch, height, width, channels], but got [" + ", ".join(map(str, shape)) + "]."
    where = crop(noise(48, 48), mask)[2]
    for title, run in (("Crop", lambda none: crop(none, mask)), ("Stitch", lambda none: stitch(none, where))):
        with pytest.raises(ValueError) as error:
            run(torch.zeros(shape))
        assert str(error.value) == f"Klein Inpaint {title}: {says}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_gets_one_sentence(crop, stitch, value):
    def spoilt(pixels):
        pixels = pixels.clone()
        pixels[0, 30, 3] = value
        return pixels

    image, mask = noise(48, 48), mask_of(8, 8, 24, 24, size=(48, 48))
    part, _, where = crop(image, mask)
    for title, name, run in (
        ("Crop", "image", lambda: crop(spoilt(image), mask)),
        ("Crop", "mask", lambda: crop(image, spoilt(mask))),
        ("Stitch", "image", lambda: stitch(spoilt(part), where)),
    ):
        with pytest.raises(ValueError) as error:
            run()
        assert str(error.value) == (
            f"Klein Inpaint {title}: Expected `{name}` to be of finite numbers, but some are NaN or infinite: "
            "look at the node that it comes from."
        )


def test_what_has_another_shape_than_the_part_by_far_gets_one_sentence(crop, stitch):
    """To cover the part, it would have to be scaled to 4000 × 1 000 000 pixels: 12 GB."""
    where = crop(noise(16, 4000), torch.ones(1, 16, 4000))[2]
    with pytest.raises(ValueError) as error:
        stitch(noise(4000, 16), where)
    assert str(error.value) == (
        "Klein Inpaint Stitch: Expected `image` to be of about the shape of the part, 4000 × 16, but got 16 × 4000."
    )


@given(st.integers(16, 400), st.integers(16, 400), st.integers(0, 40), st.data())
@settings(max_examples=40)
def test_a_part_is_never_refused(run_node, width, height, padding, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    mask = mask_of(top, left, bottom, right, size=(height, width))
    part, _, where = run_node("KleinKitInpaintCrop", image=noise(height, width), mask=mask, padding=padding)
    assert run_node("KleinKitInpaintStitch", image=part, crop=where)[0].shape == (1, height, width, 3)


@pytest.mark.parametrize("size", [(48, 48), (24, 24)])
def test_a_mask_of_yes_and_no_is_black_and_white(crop, stitch, size):
    image, mask = noise(48, 48), mask_of(8, 8, 16, 16, size=size)
    ours, theirs = (crop(image, one) for one in (mask.bool(), mask))
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], theirs[:2]))
    assert torch.equal(*(stitch(RED.expand_as(one[0]), one[2]) for one in (ours, theirs)))
