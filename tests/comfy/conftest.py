"""Fixtures of files that run every rule on the smallest Kleins; a file's own of the same name come first."""

import pytest
from sampling import conditioning, embeddings, latent_noise, small_klein


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=1)


@pytest.fixture(scope="module")
def base(comfy):
    return small_klein(seed=5, double_blocks=1, single_blocks=1)


@pytest.fixture(scope="module")
def prompts():
    """Positive and negative with a reference latent."""
    return [conditioning(embeddings(192, seed)[:, :64], reference_latents=[latent_noise(32, 32, seed=3)]) for seed in (1, 2)]
