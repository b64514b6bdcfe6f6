"""References are the pictures that diffusers' Klein pipelines hand to the VAE."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from kleinkit.pictures.reference import most_pixels, prepare, prepared_size, scaled_size
from PIL import Image

# diffusers takes none of less than 64 pixels a side, and no side more than 8 times the other.
SIZES = [(64, 64), (100, 67), (1023, 129), (1024, 1024), (1025, 1024), (1500, 1003), (700, 2999), (2400, 300), (1448, 1448)]


class Prepared(Exception):
    pass


class Pipeline(Flux2KleinPipeline):
    """diffusers' pipeline, up to its VAE: what that would get."""

    def prepare_image_latents(self, images, **others):
        raise Prepared(images)

    def prepare_latents(self, height, width, **others):
        self.made = width, height
        return None, None


@pytest.fixture(scope="module")
def pipeline():
    transformer = Flux2Transformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=1, axes_dims_rope=(4, 4, 4, 4)
    )
    vae = AutoencoderKLFlux2(block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=1, latent_channels=4)
    return Pipeline(scheduler=None, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)


def photo(size, seed=0):
    """A picture of smooth parts, edges and noise."""
    noise = np.random.RandomState(seed)
    coarse = Image.fromarray(noise.randint(0, 256, (9, 12, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = noise.randint(-20, 21, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse) + fine * (fine > 10)).clip(0, 255).astype(np.uint8))


def ours(picture, most):
    width, height = picture.size
    pixels = torch.from_numpy(np.array(picture)).float() / 255
    prepared = prepare(pixels, scaled_size(width, height, most))
    assert prepared.shape == (*prepared_size(width, height, most)[::-1], 3)
    return prepared


def test_every_picture_is_theirs(pipeline):
    pictures = [photo(size, seed) for seed, size in enumerate(SIZES)]
    with pytest.raises(Prepared) as stopped:
        pipeline(image=pictures, prompt_embeds=torch.zeros(1, 8, 192), guidance_scale=1.0)
    [theirs] = stopped.value.args
    made = [ours(picture, most_pixels("megapixels", {})) for picture in pictures]
    assert pipeline.made == (made[0].shape[1], made[0].shape[0])
    for size, mine, picture in zip(SIZES, made, theirs, strict=True):
        assert torch.equal(mine.movedim(-1, 0)[None] * 2 - 1, picture), size


@pytest.mark.parametrize("size", [(1500, 1003), (100, 67)])
def test_several_of_flux3_are_the_same(size):
    picture = photo(size)
    theirs, _ = Flux3ImageProcessor().preprocess(picture, resize_mode="crop")
    assert torch.equal(ours(picture, most_pixels("megapixels", {})).movedim(-1, 0)[None] * 2 - 1, theirs)


@pytest.mark.parametrize("size", [(64, 64), (1008, 672), (1600, 2560)])
def test_a_single_one_of_flux3_is_the_same_where_it_is_whole_tokens(size):
    picture = photo(size)
    theirs, ends = Flux3ImageProcessor().preprocess(picture, resize_mode="fill")
    assert ends["reference_crop"] == (0, 0, *size)
    assert torch.equal(ours(picture, most_pixels("keep", {})).movedim(-1, 0)[None] * 2 - 1, theirs)


def test_another_single_one_of_flux3_is_filled_up_where_ours_is_cropped():
    picture = photo((100, 67))
    theirs, ends = Flux3ImageProcessor().preprocess(picture, resize_mode="fill")
    assert theirs.shape[2:] == (80, 112) and ends["reference_crop"] == (6, 6, 106, 73)
    cropped = ours(picture, None).movedim(-1, 0)[None] * 2 - 1
    left, top = 6 + 100 % 16 // 2, 6 + 67 % 16 // 2
    assert torch.equal(cropped, theirs[..., top : top + 64, left : left + 96])


@pytest.mark.parametrize("megapixels", [0.25, 2.0])
def test_another_cap_is_their_target_area(pipeline, megapixels):
    picture = photo((1700, 1301))
    scaled = pipeline.image_processor._resize_to_target_area(picture, int(megapixels * 1024 * 1024))
    theirs = pipeline.image_processor._resize_and_crop(scaled, *(side // 16 * 16 for side in scaled.size))
    mine = ours(picture, most_pixels("megapixels", {"megapixels": megapixels}))
    assert torch.equal((mine * 255).round(), torch.from_numpy(np.array(theirs)).float())
