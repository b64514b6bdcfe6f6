"""KleinKitDynamicShift over the API queue."""

import numpy as np
import pytest
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from kleinkit.harness import server as api
from PIL import Image

WIDTH, HEIGHT, STEPS = 160, 96, 5
COMMON = {
    "model": (
        "KleinKitLoader",
        dict(
            diffusion_model="flux-2-klein-nano-base.safetensors",
            text_encoder="auto",
            vae="auto",
            variant="auto",
            weight_dtype="default",
            distilled_cfg="ignore",
            trim_text_encoder=True,
        ),
    ),
    "positive": ("CLIPTextEncode", dict(clip=["model", 1], text="a red circle")),
    "negative": ("CLIPTextEncode", dict(clip=["model", 1], text="")),
    "latent": ("EmptyFlux2LatentImage", dict(width=WIDTH, height=HEIGHT, batch_size=1)),
    "dynamic": (
        "KleinKitDynamicShift",
        {"model": ["model", 0], "shift": "flux1", "shift.base_shift": 0.3, "shift.max_shift": 1.5},
    ),
    "picture": ("VAEDecode", dict(samples=["sampler", 0], vae=["model", 2])),
    "save": ("SaveImage", dict(images=["picture", 0], filename_prefix="dynamic")),
}
CONDS = dict(cfg=3.0, positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0])
KSAMPLER = {
    "sampler": (
        "KSampler",
        dict(model=["dynamic", 0], seed=3, steps=STEPS, sampler_name="euler", scheduler="simple", denoise=1.0, **CONDS),
    )
}
CUSTOM = {
    "sigmas": (
        "KleinKitScheduler",
        {
            "steps": STEPS,
            "width": 512,
            "height": 512,
            "denoise": 1.0,
            "denoise_mode": "ksampler",
            "spacing": "uniform",
            "terminal": 0.0,
            "shift": "flux1",
            "shift.base_shift": 0.3,
            "shift.max_shift": 1.5,
            "latent": ["latent", 0],
        },
    ),
    "euler": ("KSamplerSelect", dict(sampler_name="euler")),
    "sampler": (
        "SamplerCustom",
        dict(model=["model", 0], add_noise=True, noise_seed=3, sampler=["euler", 0], sigmas=["sigmas", 0], **CONDS),
    ),
}


@pytest.fixture(scope="module")
def picture(server):
    """The picture of a prompt, and ComfyUI's log of it; nothing of it comes from a cache, whatever ran before."""

    def run(nodes):
        prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in {**COMMON, **nodes}.items()}
        api.forget(server)
        outcome = api.queue(server, prompt)
        assert outcome.error is None, api.sentences(outcome.error)
        [path] = api.pictures(server, outcome)
        return np.asarray(Image.open(path)), outcome.log

    return run


def test_ksampler_gives_the_picture_of_klein_scheduler(picture):
    plain = {"sampler": ("KSampler", {**KSAMPLER["sampler"][1], "model": ["model", 0]})}
    (ours, log), (wanted, _), (static, _) = map(picture, (KSAMPLER, CUSTOM, plain))
    assert f"tokens and {STEPS} steps" in log
    assert np.array_equal(ours, wanted)
    assert not np.array_equal(ours, static)


def test_queued_again_with_the_same_pixels(picture):
    (first, _), (again, log) = picture(KSAMPLER), picture(KSAMPLER)
    assert f"tokens and {STEPS} steps" in log
    assert np.array_equal(first, again)


def test_sigmas_of_klein_scheduler_are_not_shifted_twice(picture):
    both = {**CUSTOM, "sampler": ("SamplerCustom", {**CUSTOM["sampler"][1], "model": ["dynamic", 0]})}
    ours, log = picture(both)
    assert "they are used unchanged" in log
    assert np.array_equal(ours, picture(CUSTOM)[0])


@pytest.mark.parametrize(
    "node, inputs",
    [
        ("KleinKitDynamicShift", {"model": ["model", 0]}),
        (
            "KleinKitScheduler",
            {
                "steps": 4,
                "width": 512,
                "height": 512,
                "denoise": 1.0,
                "denoise_mode": "ksampler",
                "spacing": "uniform",
                "terminal": 0.0,
            },
        ),
    ],
)
@pytest.mark.parametrize("shift", [{"shift": "flux4"}, {}], ids=str)
def test_no_such_shift(server, node, inputs, shift):
    kind, model = COMMON["model"]
    outcome = api.queue(
        server,
        {
            "model": {"class_type": kind, "inputs": model},
            "node": {"class_type": node, "inputs": {**inputs, **shift}},
            "show": {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}},
        },
    )
    assert outcome.outputs == {}
    [sentence] = api.sentences(outcome.error)
    assert sentence.startswith(f"{node}: ")
    choices = "flux2, flux2_continuous, flux1, fixed, linear, none"
    if node == "KleinKitScheduler":
        choices = "auto, flux2, flux2_continuous, flux3, flux1, fixed, linear, none"
    assert f"Expected `shift` to be one of {choices}" in sentence


SIGMAS = {**CUSTOM["sigmas"][1], "shift": "flux2"}
for name in ("shift.base_shift", "shift.max_shift", "latent"):
    del SIGMAS[name]


def mu_of(server, latent=None, **changes):
    """What a prompt with Klein Scheduler alone says: mu, or the error."""
    prompt = {
        "sigmas": {"class_type": "KleinKitScheduler", "inputs": {**SIGMAS, **changes}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 1]}},
    }
    if latent:
        prompt["latent"] = {"class_type": "EmptyFlux2LatentImage", "inputs": latent}
        prompt["sigmas"]["inputs"]["latent"] = ["latent", 0]
    outcome = api.queue(server, prompt)
    return float(outcome.outputs["show"]["text"][0]) if outcome.error is None else api.sentences(outcome.error)


@pytest.mark.parametrize("width, height", [(591, 1773), (1000, 1000), (1023, 1025)])
def test_sizes_that_flux2_scheduler_takes(server, width, height):
    assert mu_of(server, width=width, height=height) == pytest.approx(compute_empirical_mu(round(width * height / 256), STEPS))
    latent = dict(width=512, height=512, batch_size=1)
    assert mu_of(server, latent, width=width, height=height) == pytest.approx(compute_empirical_mu(1024, STEPS))


@pytest.mark.parametrize("name, value", [("width", 8), ("height", 20000)])
def test_a_size_that_does_not_fit_is_said_once_at_its_input(server, name, value):
    [sentence] = mu_of(server, **{name: value})
    assert sentence.startswith("KleinKitScheduler: Value ") and sentence.endswith(f": {name}")


@pytest.mark.parametrize("value", [-0.5, 1.0])
def test_a_terminal_that_does_not_fit_is_said_once(server, value):
    [sentence] = mu_of(server, terminal=value)
    assert f"Expected `terminal` to be a number between 0.0 and 0.99, but got {value}." in sentence
