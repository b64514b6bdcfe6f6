"""Klein References in the real ComfyUI, with nano's VAE, which is TAEF2's."""

import pytest
import torch
from inpainting import cells, mask_of
from loader import load
from sampling import comfy_run, conditioning, embeddings, latent_noise, warnings

NODE = "KleinKitReferences"


@pytest.fixture(scope="module")
def vae(comfy, models, run_node):
    return load(run_node, models["base"].name)[2]


@pytest.fixture
def prompts():
    return [conditioning(embeddings(192, seed)[:, :8], prompt=name) for seed, name in enumerate(("positive", "negative"))]


@pytest.fixture
def refer(run_node, vae, prompts):
    """Run the node on pictures: `refer(picture, …, size=…)`."""

    def refer(*pictures, **inputs):
        defaults = dict(
            positive=prompts[0],
            negative=prompts[1],
            vae=vae,
            images={f"image_{number}": one for number, one in enumerate(pictures, 1)},
            size={"size": "megapixels", "megapixels": 1.0},
            latent_from={"latent_from": "first picture"},
        )
        return run_node(NODE, **{**defaults, **inputs})

    return refer


def picture(width, height, seed=0, channels=3, batch=1):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def references(prompt):
    [[_, values]] = prompt
    return values["reference_latents"]


def sizes(prompt):
    """Width and height in pixels of each reference."""
    return [(16 * one.shape[3], 16 * one.shape[2]) for one in references(prompt)]


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("earlier", [{}, {"reference_latents": [latent_noise(2, 2)]}], ids=["none", "one"])
def test_it_is_a_chain_of_reference_latent_in_both_prompts(run_node, vae, refer, prompts, count, earlier):
    pictures = [picture(32 + 16 * (seed % 3), 48, seed) for seed in range(count)]
    prompts = [[[text, values | earlier]] for [[text, values]] in prompts]
    made = refer(*pictures, positive=prompts[0], negative=prompts[1])
    for chain, ours in zip(prompts, made):
        for one in pictures:
            [latent] = run_node("VAEEncode", pixels=one, vae=vae)
            [chain] = run_node("ReferenceLatent", conditioning=chain, latent=latent)
        [[text, values]], [[our_text, our_values]] = chain, ours
        assert torch.equal(our_text, text) and our_values["prompt"] == values["prompt"] and our_values.keys() == values.keys()
        assert len(references(ours)) == count + len(earlier)
        assert all(map(torch.equal, references(ours), references(chain)))


def test_a_picture_is_encoded_once(refer, vae, monkeypatch):
    encode, encoded = type(vae).encode, []
    monkeypatch.setattr(type(vae), "encode", lambda self, pixels: encoded.append(pixels.shape) or encode(self, pixels))
    positive, negative, _, _, _ = refer(picture(64, 48), picture(32, 32), picture(16, 80, batch=2), mask=torch.ones(1, 48, 64))
    assert encoded == [(1, 48, 64, 3), (1, 32, 32, 3), (1, 80, 16, 3), (1, 80, 16, 3)]
    assert all(one is other for one, other in zip(references(positive), references(negative), strict=True))


def test_progress_is_shown_a_picture_at_a_time(refer, monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *others, **more: shown.append((value, total)))
    refer(picture(32, 32, batch=2))
    assert shown == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "latent_from", [{"latent_from": "first picture"}, dict(latent_from="width and height", width=100, height=70)]
)
@pytest.mark.parametrize("size", [{"size": "keep"}, dict(size="megapixels", megapixels=0.01)], ids=lambda size: size["size"])
def test_the_latent_is_empty_and_of_the_size(run_node, refer, size, latent_from):
    positive, _, latent, width, height = refer(picture(199, 120), picture(50, 60), size=size, latent_from=latent_from)
    # 0.01 megapixels are 10485 pixels: 199 × 120 becomes 131 × 79.
    first = (192, 112) if size["size"] == "keep" else (128, 64)
    assert sizes(positive) == [first, (48, 48)]
    assert (width, height) == ((96, 64) if "width" in latent_from else first)
    [empty] = run_node("EmptyFlux2LatentImage", width=width, height=height, batch_size=1)
    assert latent.keys() == empty.keys() and torch.equal(latent["samples"], empty["samples"])


def test_a_crop_keeps_the_middle(refer, run_node, vae):
    photo = picture(45, 37)
    [[reference], [middle]] = (
        references(refer(photo)[0]),
        run_node("VAEEncode", pixels=photo[:, 2:34, 6:38].contiguous(), vae=vae),
    )
    assert torch.equal(reference, middle["samples"])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_and_alpha(refer, channels):
    odd = picture(120, 110, channels=channels)
    plain = odd[..., :3] if channels == 4 else odd[..., :1].repeat(1, 1, 1, 3)
    for size in ({"size": "keep"}, dict(size="megapixels", megapixels=0.01)):
        [[reference], [wanted]] = references(refer(odd, size=size)[0]), references(refer(plain, size=size)[0])
        assert torch.equal(reference, wanted)


def test_a_gap_between_the_inputs_is_no_picture(refer):
    images = {"image_3": picture(32, 16), "image_1": picture(16, 32), "image_2": None}
    assert sizes(refer(images=images)[0]) == [(16, 32), (32, 16)]


@pytest.mark.parametrize(
    "images, says",
    [
        ({}, "Expected `images` to be 1 to 10 pictures, of which each of a batch is one, but got 0."),
        ({"image_1": picture(16, 16, batch=11)}, "but got 11."),
        ({"image_1": picture(16, 16, batch=9), "image_2": picture(16, 16, batch=2)}, "but got 11."),
        (
            {"image_1": picture(16, 16), "image_2": picture(1, 1)},
            "`images.image_2`: Expected a picture of at least 16 × 16 pixels, but got 1 × 1: scale it up, or crop it.",
        ),
        (
            {"image_1": picture(4000, 16)},
            "`images.image_1`: Expected a picture of at least 16 × 16 pixels, but got 4000 × 16, which a cap of 0.04 MP makes "
            "3238 × 12: scale it up, or crop it.",
        ),
        (
            {"image_1": torch.rand(16, 16, 3)},
            "Expected `images.image_1` to be an IMAGE [batch, height, width, channels], but got [16, 16, 3].",
        ),
        (
            {"image_1": picture(16, 16, batch=0), "image_2": picture(16, 16)},
            "Expected `images.image_1` to be an IMAGE [batch, height, width, channels], but got [0, 16, 16, 3].",
        ),
        ({"image_1": "a.png"}, "Expected `images.image_1` to be an IMAGE [batch, height, width, channels], but got 'a.png'."),
    ],
)
def test_pictures_that_do_not_fit(refer, images, says):
    with pytest.raises(ValueError) as error:
        refer(images=images, size={"size": "megapixels", "megapixels": 0.04})
    assert str(error.value).startswith("Klein References: ") and says in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["images.image_1", "images.image_2", "mask"])
def test_what_is_no_number_is_named_before_anything_is_encoded(refer, vae, monkeypatch, place, value):
    encoded = []
    monkeypatch.setattr(type(vae), "encode", lambda self, pixels: encoded.append(pixels.shape))
    inputs = {"images.image_1": picture(32, 32), "images.image_2": picture(48, 32, batch=2), "mask": torch.ones(1, 32, 32)}
    inputs[place][-1, 20, 9] = value
    with pytest.raises(ValueError) as error:
        refer(*(inputs[f"images.image_{number}"] for number in (1, 2)), mask=inputs["mask"])
    assert str(error.value) == (
        f"Klein References: Expected `{place}` to be of finite numbers, but some are NaN or infinite: "
        "look at the node that it comes from."
    )
    assert not encoded


def test_an_alpha_channel_may_be_anything(refer):
    odd = picture(32, 32, channels=4)
    odd[..., 3] = float("nan")
    [[reference], [wanted]] = references(refer(odd)[0]), references(refer(odd[..., :3])[0])
    assert torch.equal(reference, wanted)


def test_another_vae_is_refused(refer, vae, monkeypatch):
    monkeypatch.setattr(type(vae), "encode", lambda self, pixels: torch.zeros(1, 16, 4, 4))
    with pytest.raises(ValueError, match=r"^Klein References: Expected `vae` to be FLUX.2's, .* \[1, 16, 4, 4\]"):
        refer(picture(32, 32))


class TestMask:
    """With a mask the latent is the first picture, of which a part is made anew."""

    def test_it_is_set_latent_noise_mask(self, refer, run_node):
        mask = picture(64, 48, seed=5)[..., 0]
        positive, _, latent, *size = refer(picture(64, 48), picture(32, 32), mask=mask)
        [wanted] = run_node("SetLatentNoiseMask", samples={"samples": references(positive)[0]}, mask=mask)
        assert size == [64, 48] and latent.keys() == wanted.keys()
        assert all(torch.equal(latent[name], wanted[name]) for name in wanted)

    def test_it_is_scaled_and_cropped_with_its_picture(self, refer, run_node, vae):
        """As a picture whose colours are the mask."""
        mask = (picture(150, 101, seed=5)[..., 0] > 0.7).float()
        size = {"size": "megapixels", "megapixels": 0.01}
        as_picture = refer(mask[..., None], size=size)
        latent = refer(picture(150, 101), size=size, mask=mask)[2]
        assert latent["noise_mask"].shape == (1, 1, 80, 112)
        [seen] = run_node("VAEEncode", pixels=latent["noise_mask"][:, 0, ..., None].repeat(1, 1, 1, 3), vae=vae)
        assert torch.equal(seen["samples"], references(as_picture[0])[0])

    @pytest.mark.parametrize("mask", [torch.ones(64, 64), torch.ones(1, 5, 9), torch.ones(3, 200, 7)])
    def test_one_of_another_size_is_stretched(self, refer, mask):
        latent = refer(picture(50, 35), mask=mask)[2]
        assert latent["noise_mask"].shape == (mask.shape[0] if mask.ndim == 3 else 1, 1, 32, 48)
        assert (latent["noise_mask"] == 1).all()

    @pytest.mark.parametrize(
        "mask",
        [torch.zeros(1, 64, 64), mask_of(16, 0, 20, 48, size=(35, 48)), mask_of(34, 0, 35, 48, size=(35, 48))],
        ids=["black", "a line beside the middle of cells", "in what is cropped"],
    )
    def test_one_that_changes_no_cell_is_named(self, refer, caplog, mask):
        latent = refer(picture(48, 35), mask=mask)[2]
        assert not cells(latent["noise_mask"][:, 0], latent["samples"].shape).any()
        assert warnings(caplog) == [
            "Klein References: The mask is black in the middle of every cell of 16 × 16 pixels, so nothing is made anew. "
            "Paint more of it, or disconnect it."
        ]

    def test_one_that_changes_a_cell_is_not(self, refer, caplog):
        refer(picture(48, 35), mask=torch.cat([torch.zeros(1, 35, 48), mask_of(16, 0, 26, 48, size=(35, 48))]))
        assert not warnings(caplog)

    def test_one_of_yes_and_no_is_black_and_white(self, refer, run_node):
        mask = mask_of(0, 0, 16, 32, size=(32, 48))
        ours, theirs = (refer(picture(48, 32), mask=one)[2]["noise_mask"] for one in (mask.bool(), mask))
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)

    @pytest.mark.parametrize("shape", [(0, 32, 48), (1, 0, 0)])
    def test_none_at_all_is_refused(self, refer, shape):
        with pytest.raises(ValueError, match="^Klein References: Expected `mask` to be one mask or more, but got none"):
            refer(picture(48, 32), mask=torch.zeros(shape))

    def test_a_latent_of_another_size_is_refused(self, refer):
        with pytest.raises(ValueError, match="^Klein References: A `mask` belongs to the first picture: choose first picture"):
            refer(
                picture(32, 32),
                mask=torch.ones(1, 32, 32),
                latent_from=dict(latent_from="width and height", width=64, height=64),
            )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_run_with_image_cfg(comfy, models, run_node, refer, scale):
    """The prompts are what guidance nodes need: with a scale for the pictures too."""
    import comfy.sd

    klein = comfy.sd.load_diffusion_model(str(models["base"]), {"dtype": torch.float32})
    positive, negative, _, width, height = refer(picture(45, 37), picture(32, 16))
    sigmas, noise = torch.tensor([1.0, 0.5, 0.0]), latent_noise(height, width)
    model = run_node("KleinKitImageCFG", model=klein, image_scale=scale)[0]
    ours = comfy_run(model, sigmas, noise, positive, negative, 4.0)
    plain = comfy_run(klein, sigmas, noise, positive, negative, 4.0)
    assert torch.equal(ours, plain) == (scale == 1.0)


def test_an_image_scale_as_high_as_cfg_is_what_pictures_behind_the_positive_alone_do(comfy, models, run_node, refer):
    import comfy.sd

    klein = comfy.sd.load_diffusion_model(str(models["base"]), {"dtype": torch.float32})
    positive, negative, _, width, height = refer(picture(45, 37))
    without = [[text, {name: value for name, value in more.items() if name != "reference_latents"}] for text, more in negative]
    sigmas, noise = torch.tensor([1.0, 0.5, 0.0]), latent_noise(height, width)
    model = run_node("KleinKitImageCFG", model=klein, image_scale=4.0)[0]
    ours = comfy_run(model, sigmas, noise, positive, negative, 4.0)
    torch.testing.assert_close(ours, comfy_run(klein, sigmas, noise, positive, without, 4.0), rtol=1e-4, atol=1e-4)
    assert (ours - comfy_run(klein, sigmas, noise, positive, negative, 4.0)).abs().max() > 1e-2
