"""Graphs that are not the usual two prompts and one sampler: ours are ComfyUI's own skip-layer node, and the log is right."""

import re

import numpy as np
import pytest
import torch
from guidance_nodes import skips
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
STEPS = len(SIGMAS) - 1
LATE = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"))
LATE_NEGATIVE = ("KleinKitCFG", LATE[1] | {"unguided": "unconditional"})
CONSTANT = ("KleinKitCFG", LATE[1] | {"schedule": {"schedule": "constant"}})
SKIP, COMFYUI_SKIP = skips("0")
ZERO_STAR = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1))
ADAPTIVE = ("KleinKitAdaptiveGuidance", dict(threshold=0.9))
ONE, TWO, NEGATIVE = (embeddings(192, seed) for seed in (1, 3, 2))
HALF = torch.zeros(1, 64, 64)
HALF[:, :, :32] = 1.0


def prompt(*parts):
    """A conditioning of `(text, values)` parts, as the Conditioning nodes make it."""
    return [pair for text, values in parts for pair in conditioning(text, **values)]


def area(y, x, height=2, width=4):
    return {"area": (height, width, y, x), "strength": 1.0, "set_area_to_bounds": False}


REFERENCE = {"reference_latents": [latent_noise(32, 32, seed=3)]}
PROMPTS = {
    "two positives": (prompt((ONE, {}), (TWO, {})), prompt((NEGATIVE, {}))),
    "areas": (prompt((ONE, area(0, 0)), (TWO, area(2, 0))), prompt((NEGATIVE, {}))),
    "one area": (prompt((ONE, area(0, 0))), prompt((NEGATIVE, {}))),
    "area in the negative": (prompt((ONE, {})), prompt((NEGATIVE, area(1, 0)))),
    "masks": (
        prompt((ONE, {"mask": HALF, "mask_strength": 0.8}), (TWO, {"mask": 1.0 - HALF, "mask_strength": 1.0})),
        prompt((NEGATIVE, {})),
    ),
    "two prompts in a batch": (conditioning(embeddings(192, 1, batch=2)), prompt((NEGATIVE, {}))),
    "one after the other": (
        prompt((ONE, {"start_percent": 0.0, "end_percent": 0.4}), (TWO, {"start_percent": 0.4, "end_percent": 1.0})),
        prompt((NEGATIVE, {})),
    ),
    "no positive at first": (prompt((ONE, {"start_percent": 0.25, "end_percent": 1.0})), prompt((NEGATIVE, {}))),
    "no negative later": (prompt((ONE, {})), prompt((NEGATIVE, {"start_percent": 0.0, "end_percent": 0.4}))),
    "a reference in the positive": (prompt((ONE, REFERENCE)), prompt((NEGATIVE, {}))),
    "a reference in the negative": (prompt((ONE, {})), prompt((NEGATIVE, REFERENCE))),
    "an empty negative": (prompt((ONE, {})), []),
    "an empty positive": ([], prompt((NEGATIVE, {}))),
    "the same prompt twice": (prompt((ONE, {})), prompt((ONE, {}))),
}
# Prompts without a conditioning in a step that needs one, here the step in which the negative runs alone too.
SILENT = {
    "no positive at first": "positive",
    "no negative later": "negative",
    "an empty negative": "negative",
    "an empty positive": "positive",
}
PROMPTS["one conditioning for both"] = (PROMPTS["one area"][0], PROMPTS["one area"][0])


@pytest.fixture
def run(klein, caplog):
    """`model → latent`: it is finite, and what the log counts is what the model saw. `run.said` holds the warnings."""
    caplog.set_level("INFO")

    def sample(model, positive=None, negative=None, cfg=4.0, sigmas=SIGMAS, batch=1, **kwargs):
        caplog.clear()
        rows, noise = [], latent_noise(64, 64, batch)
        positive = conditioning(ONE) if positive is None else positive
        negative = conditioning(NEGATIVE) if negative is None else negative
        hook = klein.model.diffusion_model.register_forward_pre_hook(
            lambda module, args: rows.append(args[0].shape[0] // batch)
        )
        try:
            done = comfy_run(model, sigmas, noise, positive, negative, cfg, **kwargs)
        finally:
            hook.remove()
        sample.said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert torch.isfinite(done).all()
        for passes in re.findall(r"KleinKit: \d+ steps, (\d+) passes", caplog.text):
            assert int(passes) == sum(rows)
        return done

    return sample


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(klein, run_node, run, name):
    positive, negative = PROMPTS[name]
    batch = 2 if name == "two prompts in a batch" else 1
    theirs, ours, _ = (
        run(with_nodes(run_node, klein, *nodes), positive, negative, batch=batch)
        for nodes in ((LATE, COMFYUI_SKIP), (LATE, SKIP), (LATE_NEGATIVE, SKIP))
    )
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert [f"The {SILENT.get(name)} prompt has no conditioning" in said for said in run.said] == [True] * (name in SILENT)


@pytest.fixture(scope="module")
def twin(comfy):
    """The same weights in another object."""
    return small_klein(double_blocks=1, single_blocks=1)


@pytest.mark.parametrize("name", PROMPTS)
def test_the_negative_of_odd_prompts_runs_on_the_base(klein, twin, run_node, run, name):
    positive, negative = PROMPTS[name]
    batch = 2 if name == "two prompts in a batch" else 1
    rows = []
    hook = twin.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    model = with_nodes(run_node, klein, ("KleinKitBaseUncond", {"base_model": twin}))
    ours = comfy_run(model, SIGMAS, latent_noise(64, 64, batch), positive, negative, 4.0)
    hook.remove()
    plain = run(klein, positive, negative, batch=batch)
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert rows if name != "an empty negative" else not rows


def test_every_sampler_with_all_rules(klein, run_node, run, comfy):
    import comfy.samplers

    for sampler in comfy.samplers.SAMPLER_NAMES:
        run(with_nodes(run_node, klein, ZERO_STAR, ADAPTIVE, SKIP), sampler=sampler)
        wants_both = "cfg_pp" in sampler
        assert ["asks for both passes" in said for said in run.said] == [True] * wants_both, sampler


def test_a_sampler_that_wants_the_negative_in_every_step_is_warned_of(klein, run_node, run):
    for schedule in (LATE, LATE_NEGATIVE):
        run(with_nodes(run_node, klein, schedule), sampler="euler_cfg_pp")
        [said] = run.said
        assert "asks for both passes in every step" in said
    run(with_nodes(run_node, klein, CONSTANT), sampler="euler_cfg_pp")
    assert not run.said


@pytest.mark.parametrize("differential", (False, True))
def test_inpainting(klein, run_node, run, differential):
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 0.5 if differential else 1.0
    latent = latent_noise(64, 64, seed=9)
    model = with_nodes(run_node, klein, ("DifferentialDiffusion", {})) if differential else klein
    ours, theirs = (
        run(with_nodes(run_node, model, LATE, skip), latent=latent, denoise_mask=mask) for skip in (SKIP, COMFYUI_SKIP)
    )
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert torch.allclose(ours[..., 2:], latent[..., 2:], atol=1e-4)


def test_slices_of_ksampler_advanced(klein, run_node):
    def sliced(model):
        latents = [{"samples": torch.zeros(1, 128, 4, 4)}]
        inputs = dict(model=model, noise_seed=1, steps=6, cfg=4.0, sampler_name="euler", scheduler="simple")
        inputs |= dict(positive=conditioning(ONE), negative=conditioning(NEGATIVE))
        for noise, start, end, left in (("enable", 0, 3, "enable"), ("disable", 3, 10000, "disable")):
            step = dict(add_noise=noise, start_at_step=start, end_at_step=end, return_with_leftover_noise=left)
            latents.append(run_node("KSamplerAdvanced", latent_image=latents[-1], **inputs, **step)[0])
        return latents[-1]

    ours, theirs = (sliced(with_nodes(run_node, klein, skip))["samples"] for skip in (SKIP, COMFYUI_SKIP))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_guider_and_a_model_run_again(klein, run_node, run):
    import comfy.samplers

    model = with_nodes(run_node, klein, LATE, ZERO_STAR, ADAPTIVE, SKIP)
    assert torch.equal(run(model), run(model))
    (guider,) = run_node("CFGGuider", model=model, positive=conditioning(ONE), negative=conditioning(NEGATIVE), cfg=4.0)
    noise, euler = latent_noise(64, 64), comfy.samplers.sampler_object("euler")
    first, second = (
        guider.sample(noise, torch.zeros_like(noise), euler, SIGMAS.clone(), disable_pbar=True, seed=0) for _ in range(2)
    )
    assert torch.equal(first, second) and guider.cfg == 4.0


def test_a_run_without_steps(klein, run_node, run):
    run(with_nodes(run_node, klein, LATE, ZERO_STAR, ADAPTIVE, SKIP), sigmas=SIGMAS[2:3])
    assert not run.said


def test_a_cfg_of_numpy_is_a_cfg(klein, run_node, run):
    """As nodes of other packs output it through a link."""
    model = with_nodes(run_node, klein, LATE, SKIP)
    ours, wanted = (run(model, cfg=cfg) for cfg in (np.float32(4.0), 4.0))
    assert torch.equal(ours, wanted) and not run.said


@pytest.fixture(scope="module")
def from_file(models):
    """A Klein that ComfyUI can load once more, as LoRA hooks of a prompt ask."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(models["base"]), model_options={"dtype": torch.float32})


def test_a_lora_on_one_prompt(from_file, run_node):
    import comfy.hooks

    weight = from_file.model.diffusion_model.single_blocks[0].linear1.weight
    down, up = (
        torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 0.3
        for shape in ((2, weight.shape[1]), (weight.shape[0], 2))
    )
    layer = "diffusion_model.single_blocks.0.linear1"
    lora = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    width = from_file.model.diffusion_model.txt_in.weight.shape[1]
    hooked, plain = (conditioning(embeddings(width, 1), **values) for values in ({"hooks": hooks}, {}))
    negative = conditioning(embeddings(width, 2))

    def sampled(positive, *nodes):
        return comfy_run(with_nodes(run_node, from_file, *nodes), SIGMAS, latent_noise(64, 64), positive, negative, 4.0)

    ours, theirs = (sampled(hooked, LATE, skip) for skip in (SKIP, COMFYUI_SKIP))
    assert (ours - sampled(plain, LATE, SKIP)).abs().max() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
