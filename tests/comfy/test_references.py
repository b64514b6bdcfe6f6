"""Klein References in the real ComfyUI."""

import pytest
import torch
from loader import load


@pytest.fixture(scope="module")
def vae(comfy, models, run_node):
    return load(run_node, models["base"].name)[2]


def picture(width, height, seed=0, channels=3, batch=1):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 10])
def test_it_is_a_chain_of_reference_latent(run_node, vae, count):
    pictures = [picture(32, 48, seed) for seed in range(count)]
    prompts = [[[torch.rand(1, 4, 8), {"name": name}]] for name in "pn"]
    made = run_node(
        "KleinKitReferences",
        positive=prompts[0],
        negative=prompts[1],
        vae=vae,
        images={f"image_{i + 1}": one for i, one in enumerate(pictures)},
        size={"size": "keep"},
        latent_from={"latent_from": "first picture"},
    )
    for prompt, ours in zip(prompts, made):
        for one in pictures:
            (latent,) = run_node("VAEEncode", pixels=one, vae=vae)
            (prompt,) = run_node("ReferenceLatent", conditioning=prompt, latent=latent)
        assert torch.equal(prompt[0][0], ours[0][0]) and prompt[0][1].keys() == ours[0][1].keys()
        for ref, our in zip(prompt[0][1]["reference_latents"], ours[0][1]["reference_latents"], strict=True):
            assert torch.equal(ref, our)
    print(made[2], made[3:])
