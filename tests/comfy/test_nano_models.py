"""The trained nano models in the real ComfyUI: they load like any Klein, and guidance finds what a prompt says."""

import json

import numpy as np
import pytest
import torch
from kleinkit.nano import edits, in_comfyui, metrics, world
from kleinkit.nano.build import SHIPPED
from kleinkit.nano.train import pictures
from safetensors import safe_open
from safetensors.torch import load_file
from sampling import comfy_run, conditioning, diffusers_run, diffusers_transformer, diffusers_velocity
from sigmas import scheduler_inputs

COUNT = 6
LIMIT = 1e-5


@pytest.fixture(scope="module")
def scenes():
    unknown = world.scenes()[1]
    return unknown[np.random.RandomState(3).choice(len(unknown), COUNT, replace=False)]


@pytest.fixture(scope="module")
def family(comfy, models, run_node):
    """`{role: (model by UNETLoader, CLIP and VAE by KleinKitLoader)}`."""
    return {
        role: (
            *run_node("UNETLoader", unet_name=models[role].name, weight_dtype="default"),
            *run_node(
                "KleinKitLoader",
                diffusion_model=models[role].name,
                text_encoder="auto",
                vae="auto",
                variant="auto",
                weight_dtype="default",
                distilled_cfg="ignore",
                trim_text_encoder=True,
            )[1:3],
        )
        for role in ("base", "distilled")
    }


@pytest.fixture(scope="module")
def texts(family, run_node, scenes):
    """Embeddings of the prompts [COUNT, 512, 192], and of the empty one."""
    clip = family["base"][1]
    *encoded, empty = (run_node("CLIPTextEncode", clip=clip, text=text)[0][0][0] for text in [*map(world.prompt, scenes), ""])
    return torch.cat(encoded), empty.expand(COUNT, -1, -1)


@pytest.fixture(scope="module")
def noise():
    return torch.from_numpy(np.random.RandomState(4).standard_normal((COUNT, 128, 8, 8)).astype(np.float32))


def sigmas_of(run_node, steps):
    return run_node("KleinKitScheduler", **scheduler_inputs(steps=steps, width=128, height=128))[0]


@pytest.fixture(scope="module")
def right(family, texts, noise, scenes, run_node):
    """The share of right attributes at a role, cfg and number of steps."""

    def share(role, cfg, steps):
        latent = comfy_run(family[role][0], sigmas_of(run_node, steps), noise, *map(conditioning, texts), cfg)
        return metrics.adherence(metrics.from_signed(pictures(latent.flatten(2).transpose(1, 2))), scenes)["all"]

    return share


def test_guidance_finds_what_the_prompt_says(right):
    assert right("base", 2.0, 6) >= right("base", 1.0, 6) + 0.1


def test_distilled_draws_the_prompt_in_four_steps(right):
    assert right("distilled", 1.0, 4) >= 0.75


def test_distilled_does_what_an_edit_asks(family, run_node):
    """Pictures through the VAE and Klein References, as a user's graph has them."""
    model, clip, vae = family["distilled"]
    some = edits.held_out(COUNT, np.random.RandomState(6))
    rng = np.random.RandomState(7)
    drawn = [metrics.from_signed(part) for part in edits.drawn(some, rng)]
    shown = [torch.from_numpy(part.repeat(world.CELL, 1).repeat(world.CELL, 2)).float() for part in drawn]
    made = []
    for i, sentence in enumerate(some.sentences()):
        images = [part[i : i + 1] for part in shown[: 1 + (some.kind[i] == edits.PAIR)]]
        positive, negative, latent, width, height = run_node(
            "KleinKitReferences",
            positive=run_node("CLIPTextEncode", clip=clip, text=sentence)[0],
            negative=run_node("CLIPTextEncode", clip=clip, text="")[0],
            vae=vae,
            images={f"image_{number}": picture for number, picture in enumerate(images, 1)},
            size={"size": "keep"},
            latent_from={"latent_from": "first picture"},
        )
        assert (width, height) == (128, 128) and latent["samples"].shape == (1, 128, 8, 8)
        noise = torch.from_numpy(rng.standard_normal(latent["samples"].shape).astype(np.float32))
        made.append(comfy_run(model, sigmas_of(run_node, 4), noise, positive, negative, 1.0))
    cells = metrics.from_signed(pictures(torch.cat(made).flatten(2).transpose(1, 2)))
    found = metrics.edited(cells, drawn[2], some)
    assert found["asked"] >= 0.6 and found["kept"] >= 0.7


@pytest.mark.parametrize("role", ["base", "distilled"])
def test_same_run_as_diffusers(role, family, models, texts, noise, run_node):
    transformer = diffusers_transformer(load_file(models[role]))
    sigmas = sigmas_of(run_node, 4)
    cond, empty, start = (tensor[:2] for tensor in (*texts, noise))

    def velocity(x, sigma, _):
        v_c, v_u = (diffusers_velocity(transformer, x, sigma, text) for text in (cond, empty))
        return v_u + 4.0 * (v_c - v_u)

    ours = comfy_run(family[role][0], sigmas, start, conditioning(cond), conditioning(empty), 4.0)
    theirs = diffusers_run(sigmas, start, velocity)
    assert (ours - theirs).abs().max() <= LIMIT * theirs.abs().max()


def test_a_thinned_model_guides_as_the_whole_one(family, texts, noise):
    """What the study saves: 464 tokens of padding in each block."""
    model, lengths = family["base"][0], []
    block = model.model.diffusion_model.double_blocks[0]
    hook = block.register_forward_pre_hook(lambda _, __, inputs: lengths.append(inputs["txt"].shape[1]), with_kwargs=True)
    conds = [*map(conditioning, texts)]

    def guidance(model):
        drawn = [comfy_run(model, torch.tensor([0.8, 0.0]), noise, cond, cond, 1.0) for cond in conds]
        return drawn[0] - drawn[1]

    whole, thinned = guidance(model), guidance(in_comfyui.thinned(model))
    hook.remove()
    assert lengths == [512, 512, 48, 48]
    assert (thinned - whole).norm() <= 0.04 * whole.norm()


def test_vae_shows_what_the_latent_says(family, scenes, run_node):
    """What the metrics read from a latent is what a user sees."""
    drawn = metrics.from_signed(world.draw(scenes))
    pixels = torch.from_numpy(drawn.repeat(world.CELL, 1).repeat(world.CELL, 2).astype(np.float32))
    vae = family["base"][2]
    [latent] = run_node("VAEEncode", vae=vae, pixels=pixels)
    [shown] = run_node("VAEDecode", vae=vae, samples=latent)
    assert np.abs(metrics.cells(shown.detach().float().numpy()) - drawn).max() < 0.02
    assert np.abs(metrics.from_signed(pictures(latent["samples"].detach().flatten(2).transpose(1, 2))) - drawn).max() < 0.02


@pytest.mark.parametrize("role", ["base", "distilled"])
def test_file_is_small_and_says_how_it_was_made(role):
    assert SHIPPED[role].stat().st_size <= 6e6
    with safe_open(SHIPPED[role], "np") as file:
        made = json.loads(file.metadata()["kleinkit"])
        assert file.metadata()["is_distilled"] == str(role == "distilled").lower()
    assert {"seed", "steps", "data_version", "code_version"} <= made.keys()
