"""Whole runs of FLUX 3: ComfyUI with KleinKit on diffusers' transformer, against diffusers' own blocks or a plain loop.

`flux3.stand_in` says what of ComfyUI's own FLUX 3 is assumed.
"""

import numpy as np
import pytest
import torch
from flux3 import blocks_of_diffusers, encoded_by_diffusers, euler, stand_in, text, transformer, velocity
from PIL import Image
from sampling import comfy_run, conditioning, latent_noise, with_nodes
from sigmas import scheduler_inputs

NOISE = latent_noise(64, 96)
REFERENCES = latent_noise(64, 64, seed=3), latent_noise(32, 96, seed=4)
STEPS, CFG, LIMIT = 4, 3.5, 1e-5


@pytest.fixture(scope="module")
def base():
    return transformer()


@pytest.fixture(scope="module")
def distilled():
    return transformer(flow_map=True)


@pytest.fixture
def sigmas(run_node, comfy):
    def of(steps=STEPS):
        inputs = scheduler_inputs(steps=steps, width=96, height=64, shift={"shift": "auto"})
        return run_node("KleinKitScheduler", **inputs, model=stand_in())[0]

    return of


def ours(model, sigmas, cfg=CFG, references=(), windows=(1, 1), noise=NOISE, sampler="euler"):
    values = {"reference_latents": list(references)} if references else {}
    prompts = (conditioning(text(seed, count), **values) for seed, count in zip((1, 2), windows))
    return comfy_run(model, sigmas, noise, *prompts, cfg, sampler)


def agree(given, wanted):
    assert wanted.std() > 0.1
    assert (given - wanted).abs().max() <= LIMIT * wanted.abs().max()


@pytest.mark.parametrize("count", [0, 1, 2])
class TestAgainstDiffusersBlocks:
    def test_base(self, run_node, base, sigmas, count):
        theirs = blocks_of_diffusers(base, STEPS, NOISE, text(1), text(2), REFERENCES[:count], CFG)
        constant = ("KleinKitCFG", {"schedule": {"schedule": "constant"}, "unguided": "conditional"})
        agree(ours(with_nodes(run_node, stand_in(), constant), sigmas(), references=REFERENCES[:count]), theirs)

    def test_distilled(self, pack, distilled, sigmas, count):
        guard = pack("guidance.distilled").Distilled()
        model = pack("engine.sampling").with_rule(stand_in(flow_map=True), guard)
        theirs = blocks_of_diffusers(distilled, STEPS, NOISE, text(1), references=REFERENCES[:count])
        agree(ours(model, sigmas(), references=REFERENCES[:count]), theirs)


# Width and height: one picture of whole tokens, which diffusers takes as it is, and two that both are cropped.
SIZES = {1: [(96, 64)], 2: [(101, 79), (50, 67)]}


@pytest.fixture(scope="module")
def vae():
    """FLUX.2's, with random weights."""
    from diffusers import AutoencoderKLFlux2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2()
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 1.5)
    return vae.eval()


@pytest.mark.parametrize("count", SIZES)
class TestFromPictures:
    """Klein References in front, and diffusers' own preparation and VAE."""

    @pytest.fixture
    def pixels(self, count):
        random = np.random.default_rng(count)
        return [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in SIZES[count]]

    @pytest.fixture
    def theirs(self, vae, pixels):
        return encoded_by_diffusers(vae, [Image.fromarray(picture) for picture in pixels])

    @pytest.fixture
    def prompts(self, comfy):
        return [conditioning(text(seed, windows)) for seed, windows in ((1, 2), (2, 1))]

    @pytest.fixture
    def referred(self, run_node, vae, pixels, prompts):
        import comfy.sd

        return run_node(
            "KleinKitReferences",
            positive=prompts[0],
            negative=prompts[1],
            vae=comfy.sd.VAE(sd=dict(vae.state_dict())),
            images={f"image_{place}": torch.from_numpy(one)[None] / 255 for place, one in enumerate(pixels, 1)},
            size={"size": "megapixels", "megapixels": 1.0},
            latent_from={"latent_from": "first picture"},
        )

    def test_prompts_are_those_of_a_chain_of_reference_latent(self, run_node, referred, prompts, theirs):
        [[_, values]] = referred[0]
        latents = values["reference_latents"]
        for latent, wanted in zip(latents, theirs, strict=True):
            agree(latent, wanted)
        for chain, made in zip(prompts, referred):
            for latent in latents:
                [chain] = run_node("ReferenceLatent", conditioning=chain, latent={"samples": latent})
            [[words, values]], [[our_words, ours]] = chain, made
            assert torch.equal(our_words, words) and ours.keys() == values.keys()
            assert all(map(torch.equal, ours["reference_latents"], values["reference_latents"]))

    @pytest.mark.parametrize("flow_map", [False, True], ids=["base", "distilled"])
    def test_a_run(self, request, sigmas, referred, prompts, theirs, flow_map):
        positive, negative, latent, width, height = referred
        noise = latent_noise(height, width)
        assert noise.shape == latent["samples"].shape == (1, 128, *theirs[0].shape[2:])
        model = request.getfixturevalue("distilled" if flow_map else "base")
        cfg, negative_words = (1.0, None) if flow_map else (CFG, text(2))

        def run(positive, negative):
            return comfy_run(stand_in(flow_map), sigmas(), noise, positive, negative, cfg)

        wanted = blocks_of_diffusers(model, STEPS, noise, text(1, 2), negative_words, theirs, cfg)
        agree(run(positive, negative), wanted)
        assert (run(*prompts) - wanted).abs().max() > 100 * LIMIT * wanted.abs().max()


def test_distilled_in_its_16_steps(distilled, sigmas):
    theirs = blocks_of_diffusers(distilled, 16, NOISE, text(1))
    agree(ours(stand_in(flow_map=True), sigmas(16), cfg=1.0), theirs)


def test_ksampler_needs_no_node_of_ours(run_node, distilled):
    from comfy.sample import prepare_noise

    inputs = dict(seed=0, steps=STEPS, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    prompts = dict(positive=conditioning(text(1)), negative=conditioning(text(2)))
    latent = {"samples": torch.zeros(1, 128, 4, 6)}
    given = run_node("KSampler", model=stand_in(flow_map=True), latent_image=latent, **inputs, **prompts)[0]["samples"]
    agree(given, blocks_of_diffusers(distilled, STEPS, prepare_noise(latent["samples"], 0), text(1)))


def flat(v):
    return v.double().flatten(1)


def slerp(v):
    cond, uncond = v["cond"], v["uncond"]
    theta = torch.acos((flat(cond) * flat(uncond)).sum(1) / flat(cond).norm(dim=1) / flat(uncond).norm(dim=1))
    of_cond, of_uncond = (torch.sin(w * theta) / torch.sin(theta) for w in (CFG, 1 - CFG))
    return of_cond[:, None, None, None] * cond.double() + of_uncond[:, None, None, None] * uncond.double()


def plain(v, cfg=CFG):
    return v["uncond"].double() + cfg * (v["cond"].double() - v["uncond"].double())


def zero_star(v):
    alpha = (flat(v["cond"]) * flat(v["uncond"])).sum(1) / flat(v["uncond"]).square().sum(1)
    return plain({**v, "uncond": alpha[:, None, None, None] * v["uncond"].double()})


def renormed(v):
    guided = plain(v)
    factor = (v["cond"].double().norm(dim=1, keepdim=True) / guided.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return guided * (0.25 + 0.75 * factor)


def image_cfg(v):
    none, image, both = v["image"].double(), v["uncond"].double(), v["cond"].double()
    return none + 2.5 * (image - none) + CFG * (both - image)


def skip(v):
    return plain(v) + 2.5 * (v["cond"].double() - v["skip"].double())


RULES = {
    "plain": ((), lambda v, step: plain(v)),
    "interval": (
        (("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional")),),
        lambda v, step: plain(v) if step < 2 else v["cond"],
    ),
    "CFG-Zero*": (
        (("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1)),),
        lambda v, step: zero_star(v) if step else 0.0 * v["cond"],
    ),
    "slerp": ((("KleinKitSlerpCFG", {}),), lambda v, step: slerp(v)),
    "renorm": ((("KleinKitRenorm", dict(mode="token", strength=0.75, shrink_only=True)),), lambda v, step: renormed(v)),
    "image CFG": ((("KleinKitImageCFG", {"image_scale": 2.5}),), lambda v, step: image_cfg(v)),
    "skip-layer": (
        (("KleinKitSkipLayerGuidance", dict(scale=2.5, double_layers="", single_layers="1-2", start=0.0, end=0.5,
                                            mode="block", rescale=0.0)),),
        lambda v, step: skip(v) if step < 2 else plain(v),
    ),
}  # fmt: skip


class TestRulesOnBase:
    """Each rule against its formula in float64, on predictions of diffusers' transformer in a plain loop."""

    # Text windows are multiples of 80 tokens, and the two prompts need not have the same. Image CFG needs a reference.
    @pytest.mark.parametrize(
        "name, references, windows",
        [
            (name, references, windows)
            for name in RULES
            for references, windows in ((0, (1, 1)), (1, (1, 3)), (2, (2, 1)))
            if references or name != "image CFG"
        ],
    )
    def test_rule(self, run_node, base, sigmas, name, references, windows):
        nodes, formula = RULES[name]
        some, noise = REFERENCES[:references], latent_noise(64, 96, batch=2)
        cut = transformer()
        del cut.single_transformer_blocks[1:3]
        cond, uncond = (text(seed, count) for seed, count in zip((1, 2), windows))

        def predict(x, sigma, target, step):
            passes = {
                "cond": velocity(base, x, sigma, cond, some),
                "uncond": velocity(base, x, sigma, uncond, some),
                "image": velocity(base, x, sigma, uncond),
                "skip": velocity(cut, x, sigma, cond, some),
            }
            return formula(passes, step).float()

        theirs = euler(sigmas(), noise, predict)
        model = with_nodes(run_node, stand_in(), *nodes)
        agree(ours(model, sigmas(), references=some, windows=windows, noise=noise), theirs)

    def test_base_uncond(self, run_node, base, sigmas):
        other = transformer(seed=5)

        def predict(x, sigma, target, step):
            cond, uncond = velocity(base, x, sigma, text(1)), velocity(other, x, sigma, text(2))
            return uncond + CFG * (cond - uncond)

        model = run_node("KleinKitBaseUncond", model=stand_in(), base_model=stand_in(seed=5))[0]
        agree(ours(model, sigmas()), euler(sigmas(), NOISE, predict))

    def test_adaptive(self, run_node, base, sigmas):
        cosines = []

        def predict(x, sigma, target, step):
            cond = velocity(base, x, sigma, text(1))
            if cosines and max(cosines) >= threshold:
                return cond
            uncond = velocity(base, x, sigma, text(2))
            cosines.append(float(torch.cosine_similarity(flat(cond), flat(uncond)).min()))
            return uncond + CFG * (cond - uncond)

        threshold = 2.0
        euler(sigmas(), NOISE, predict)
        # Guidance that ends in the middle of the run.
        threshold = max(cosines[:2]) - 1e-4
        ends = next(i for i, cosine in enumerate(cosines) if cosine >= threshold)
        cosines.clear()
        theirs = euler(sigmas(), NOISE, predict)
        assert len(cosines) == ends + 1 < STEPS
        agree(ours(run_node("KleinKitAdaptiveGuidance", model=stand_in(), threshold=threshold)[0], sigmas()), theirs)

    def test_two_passes_of_one_window_share_a_call(self, sigmas):
        for windows, rows in (((1, 1), [2] * STEPS), ((1, 3), [1] * 2 * STEPS)):
            model = stand_in()
            ours(model, sigmas(), windows=windows)
            assert [count for *_, count in model.model.diffusion_model.calls] == rows
