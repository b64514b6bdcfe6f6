"""Inpainting in the real ComfyUI under every guidance node, with every kind of mask, and outpainting."""

from pathlib import Path

import pytest
import torch
from flux3 import stand_in, text
from guidance_nodes import EVERY_NODE
from inpainting import cells, mask_of
from kleinkit.nano.build import knows_taef2
from loader import load
from releases import may_lack
from sampling import comfy_run, conditioning, embeddings, far, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([0.9, 0.7, 0.4, 0.0])
SIZE = 64, 64
PICTURE, NOISE = latent_noise(*SIZE, seed=5), latent_noise(*SIZE)
# Of 2×1 of the 4×4 cells.
MASK = mask_of(16, 16, 48, 32, size=SIZE)
INSIDE = cells(MASK, PICTURE.shape) == 1


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=2, single_blocks=2)


@pytest.fixture(scope="module")
def base(comfy):
    return small_klein(seed=5, double_blocks=2, single_blocks=2)


@pytest.fixture(scope="module")
def plain_euler(run_node):
    """Euler whose last step takes the prediction as it is: its kept cells have the source's bits."""
    (sampler,) = run_node("SamplerEulerAncestral", eta=0.0, s_noise=1.0)
    return sampler


def run(model, mask=None, sampler="euler", picture=PICTURE, noise=NOISE, **others):
    prompts = [conditioning(embeddings(192, seed)[:, :32], reference_latents=[PICTURE]) for seed in (1, 2)]
    masked = {} if mask is None else {"denoise_mask": mask[:, None]}
    return comfy_run(model, SIGMAS, noise, *prompts, 4.0, sampler, picture, **masked, **others)


def kept_by_hand(mask):
    """A sampler: Euler, and after each step the noisy source where the mask is 0, as diffusers' pipeline."""
    from comfy.samplers import KSAMPLER

    def euler(model, x, sigmas, extra_args, callback, disable):
        for here, there in zip(sigmas, sigmas[1:]):
            v = (x - model(x, here * x.new_ones(len(x)), **extra_args)) / here
            x = mask * (x + v * (there - here)) + (1 - mask) * (there * NOISE + (1 - there) * PICTURE)
        return x

    return KSAMPLER(euler)


@pytest.mark.parametrize("name", [None, *EVERY_NODE])
def test_every_guidance_node_does_in_the_mask_what_it_does(klein, base, run_node, plain_euler, name):
    inputs = EVERY_NODE.get(name, {}) | ({"base_model": base} if name == "KleinKitBaseUncond" else {})
    guided = with_nodes(run_node, klein, (name, inputs)) if name else klein
    made = run(guided, MASK, plain_euler)
    assert torch.equal(made[:, :, ~INSIDE[0, 0]], PICTURE[:, :, ~INSIDE[0, 0]])
    assert far(made, run(guided, sampler=kept_by_hand(cells(MASK, PICTURE.shape)))) <= 1e-5
    assert name is None or far(made, run(klein, MASK, plain_euler)) >= 1e-4


@pytest.mark.parametrize("flow_map", [False, True], ids=["base", "distilled"])
def test_flux_3_does_in_the_mask_what_it_does(comfy, plain_euler, flow_map):
    prompts = [conditioning(text(seed), reference_latents=[PICTURE]) for seed in (1, 2)]
    cfg = 1.0 if flow_map else 4.0

    def made(sampler, **masked):
        return comfy_run(stand_in(flow_map=flow_map), SIGMAS, NOISE, *prompts, cfg, sampler, PICTURE, **masked)

    ours = made(plain_euler, denoise_mask=MASK[:, None])
    assert torch.equal(ours[:, :, ~INSIDE[0, 0]], PICTURE[:, :, ~INSIDE[0, 0]])
    assert far(ours, made(kept_by_hand(cells(MASK, PICTURE.shape)))) <= 1e-5
    assert far(ours, PICTURE) > 0.01


def painted(node, mask, picture):
    """The latent with a mask by ComfyUI's node."""
    return node("SetLatentNoiseMask", samples={"samples": picture}, mask=mask)[0]["noise_mask"][:, 0]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "lcm", "er_sde"])
def test_a_white_mask_is_no_mask_and_a_black_one_keeps_the_picture(klein, run_node, sampler):
    apg = with_nodes(run_node, klein, ("KleinKitAPG", EVERY_NODE["KleinKitAPG"]))
    white, black = (painted(run_node, torch.full((1, *SIZE), value), PICTURE) for value in (1.0, 0.0))
    assert torch.equal(run(apg, white, sampler), run(apg, None, sampler))
    # What Euler takes away and adds again is the same but for the last bit.
    assert far(run(apg, black, sampler), PICTURE) <= (1e-6 if sampler == "euler" else 0.0)


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (4, 4)])
def test_a_mask_of_another_size_is_stretched_over_the_picture(klein, run_node, size):
    rows, columns = size[0] // 4, size[1] // 4
    other = mask_of(rows, columns, 3 * rows, 2 * columns, size=size)
    assert torch.equal(run(klein, painted(run_node, other, PICTURE)), run(klein, MASK))


def test_few_cells_of_a_circle_are_neither_black_nor_white():
    """docs/editing.md has the numbers."""
    places = torch.arange(1024) + 0.5 - 512
    circle = (places[:, None].square() + places.square() <= 200**2).float()
    found = cells(circle[None], (1, 128, 64, 64))
    between, some = int((found % 1 > 0).sum()), int((found > 0).sum())
    page = (Path(__file__).parents[2] / "docs" / "editing.md").read_text("utf-8")
    assert f"circle 400\n  pixels wide in the middle of 1024×1024, {between} of {some}." in page


def test_masks_of_a_batch_belong_to_its_pictures(klein, run_node):
    masks = torch.cat([MASK, MASK.flip(-1)])
    pictures, noise = PICTURE.repeat(2, 1, 1, 1), NOISE.repeat(2, 1, 1, 1)
    each = [run(klein, mask[None]) for mask in masks]
    assert far(run(klein, painted(run_node, masks, pictures), picture=pictures, noise=noise), torch.cat(each)) <= 1e-5
    assert far(run(klein, painted(run_node, MASK, pictures), picture=pictures, noise=noise), each[0].repeat(2, 1, 1, 1)) <= 1e-5
    # ComfyUI takes the first of too many.
    assert torch.equal(run(klein, painted(run_node, masks, PICTURE)), each[0])


class TestOutpainting:
    """A picture of 48×32 pixels, 16 more on the left and 32 more below, through nano's VAE, which sees 8×8 pixels at a time."""

    KEPT = (..., slice(0, 2), slice(1, 4))

    @pytest.fixture(scope="class")
    def vae(self, comfy, models, run_node):
        return load(run_node, models["base"].name)[2]

    @pytest.fixture(scope="class")
    def pixels(self):
        return torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(4))

    @pytest.fixture(scope="class")
    def extend(self, run_node, vae):
        """`(picture, feathering, left, right) → (padded picture, mask, latent with the mask)` by ComfyUI's nodes."""

        def extend(pixels, feathering=0, left=16, right=0):
            sides = dict(left=left, top=0, right=right, bottom=32, feathering=feathering)
            padded, mask = run_node("ImagePadForOutpaint", image=pixels, **sides)
            inputs = dict(positive=[], negative=[], vae=vae, pixels=padded, mask=mask, noise_mask=True)
            return padded, mask, run_node("InpaintModelConditioning", **inputs)[2]

        return extend

    def test_the_picture_is_kept_and_the_border_made(self, klein, run_node, vae, extend, pixels, plain_euler):
        padded, mask, latent = extend(pixels)
        picture, masked = latent["samples"], latent["noise_mask"][:, 0]
        made = run(klein, masked, plain_euler, picture, NOISE)
        kept = torch.zeros(4, 4, dtype=torch.bool)
        kept[self.KEPT] = True
        assert torch.equal(cells(masked, picture.shape)[0, 0] == 0, kept)
        assert torch.equal(made[self.KEPT], picture[self.KEPT])
        assert ((made - picture).abs().amax(1)[0] > 0.01)[~kept].all()
        (whole,) = run_node(
            "ImageCompositeMasked",
            destination=padded,
            source=run_node("VAEDecode", samples={"samples": made}, vae=vae)[0],
            x=0,
            y=0,
            resize_source=False,
            mask=mask,
        )
        assert torch.equal(whole[:, :32, 16:], pixels)

    def test_inpaint_model_conditioning_is_vae_encode_with_the_mask(self, run_node, klein, vae, extend, pixels):
        padded, mask, latent = extend(pixels)
        prompts = [conditioning(embeddings(192, seed)[:, :32]) for seed in (1, 2)]
        *both, one = run_node(
            "InpaintModelConditioning",
            positive=prompts[0],
            negative=prompts[1],
            vae=vae,
            pixels=padded,
            mask=mask,
            noise_mask=True,
        )
        (encoded,) = run_node("VAEEncode", pixels=padded, vae=vae)
        assert torch.equal(one["samples"], encoded["samples"])
        assert torch.equal(painted(run_node, mask, encoded["samples"]), one["noise_mask"][:, 0])
        results = [
            comfy_run(klein, SIGMAS, NOISE, *given, 4.0, latent=encoded["samples"], denoise_mask=mask[:, None])
            for given in (prompts, both)
        ]
        assert torch.equal(*results)

    @pytest.mark.parametrize("feathering, left, right", [(8, 16, 0), (0, 8, 8)])
    def test_feathering_and_borders_of_8_pixels_reach_into_the_picture(self, extend, pixels, feathering, left, right):
        _, _, latent = extend(pixels, feathering, left, right)
        shares = cells(latent["noise_mask"][:, 0], latent["samples"].shape)
        assert ((shares > 0) & (shares < 1)).any()

    def test_the_border_is_not_seen_from_sigma_1_on(self, klein, vae, run_node, extend, pixels, comfyui):
        padded, mask, latent = extend(pixels)
        other = torch.where(mask[..., None] > 0, 0.9, padded)
        (dyed,) = run_node("VAEEncode", pixels=other, vae=vae)
        prompts = [conditioning(embeddings(192, seed)[:, :32], reference_latents=[PICTURE]) for seed in (1, 2)]

        def made(picture, first):
            sigmas = torch.cat([torch.tensor([first]), SIGMAS[1:]])
            return comfy_run(klein, sigmas, NOISE, *prompts, 4.0, latent=picture["samples"], denoise_mask=mask[:, None])

        # Nano's other VAE norms over the whole picture, so that what is kept is another latent in the last digits.
        limit = 1e-5 if may_lack("0.24.1", knows_taef2(comfyui)) else 0.0
        assert far(made(latent, 1.0), made(dyed, 1.0)) <= limit
        assert far(made(latent, 0.9), made(dyed, 0.9)) > 1e-3
