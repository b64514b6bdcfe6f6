"""The nano family's VAEs in the real ComfyUI: what KleinKitLoader loads, and the format that older releases need."""

import pytest
import torch
from kleinkit.nano.vae import flux2
from loader import load


@pytest.fixture(scope="module")
def picture():
    """Colours of 8×8 pixel cells."""
    cells = torch.rand(1, 6, 4, 3, generator=torch.Generator().manual_seed(0))
    return cells.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.fixture(scope="module")
def vaes(comfy, models, run_node):
    from comfy.sd import VAE

    own = VAE(sd={key: torch.from_numpy(array) for key, array in flux2().items()})
    return {"installed": load(run_node, models["base"].name)[2], "FLUX.2's format": own}


@pytest.mark.parametrize("which", ["installed", "FLUX.2's format"])
def test_cells_come_back(vaes, picture, which):
    vae = vaes[which]
    assert (vae.decode(vae.encode(picture)) - picture).abs().max() < 0.02


def test_latents_are_the_same(vaes, picture):
    first, second = (vae.encode(picture) for vae in vaes.values())
    assert first.shape == (1, 128, 3, 2) and first.std() > 0.05
    assert (first - second).abs().max() < 0.001
