"""KleinKitScheduler in the real ComfyUI, against its own schedulers."""

import numpy as np
import pytest
import torch
from flux3 import stand_in
from kleinkit.nano.in_comfyui import random_klein
from sigmas import ksampler_inputs, recorder, scheduler_inputs

LIMIT = 1e-6
SHIFTS = [
    {"shift": "flux2"},
    {"shift": "flux2_continuous"},
    {"shift": "flux3"},
    {"shift": "flux1", "base_shift": 0.5, "max_shift": 1.15},
    {"shift": "fixed", "mu": 1.15},
    {"shift": "linear", "linear_shift": 3.0},
    {"shift": "none"},
]
SPACINGS = ("uniform", "karras", "exponential", "beta", "linear_quadratic")


@pytest.fixture
def klein(run_node):
    return lambda **changes: run_node("KleinKitScheduler", **scheduler_inputs(**changes))


def agree(given, wanted):
    assert given.dtype == torch.float32 and given.shape == wanted.shape
    assert (given - wanted).abs().max() <= LIMIT


@pytest.mark.parametrize(
    "width, height",
    [
        (16, 16),
        (512, 768),
        (1024, 1024),
        (1040, 1024),
        (1088, 1024),
        (2048, 1536),
        (4096, 4096),
        (591, 1773),
        (1000, 1000),
        (17, 16),
        (1023, 1025),
        (1049, 1049),
    ],
)
def test_flux2_scheduler(klein, run_node, width, height):
    for steps in (1, 2, 4, 20, 50, 128):
        theirs = run_node("Flux2Scheduler", steps=steps, width=width, height=height)[0]
        agree(klein(steps=steps, width=width, height=height)[0], theirs)


def test_numbers_of_numpy(klein, run_node):
    """As nodes of other packs output them; ComfyUI hands a linked value on as it is."""
    whole = dict(steps=np.int64(4), width=np.int32(591), height=np.int64(1773))
    agree(klein(**whole)[0], run_node("Flux2Scheduler", **whole)[0])
    agree(klein(**whole, denoise=np.float32(0.5))[0], klein(steps=4, width=591, height=1773, denoise=0.5)[0])
    with pytest.raises(ValueError, match="Expected `steps` to be a whole number"):
        klein(steps=np.float32(4.0))


def test_linear_quadratic(klein):
    from comfy.samplers import linear_quadratic_schedule

    class Sampling:
        sigma_max = torch.tensor(1.0)

    for steps in range(1, 101):
        agree(klein(steps=steps, spacing="linear_quadratic")[0], linear_quadratic_schedule(Sampling, steps))


@pytest.mark.parametrize("denoise", [0.05, 0.3, 0.5, 1.0])
def test_denoise_as_basic_scheduler_cuts(klein, run_node, denoise):
    from comfy_extras.nodes_flux import compute_empirical_mu, generalized_time_snr_shift

    even = torch.linspace(1, 0, int(8 / denoise) + 1)
    agree(klein(steps=8, denoise=denoise)[0], generalized_time_snr_shift(even, compute_empirical_mu(4096, 8), 1.0)[-9:])


@pytest.mark.parametrize("mode", ["ksampler", "strength", "sigma"])
@pytest.mark.parametrize("steps", [4, 20, 50, 100])
def test_mu_is_that_of_the_steps_at_every_denoise(klein, mode, steps):
    assert klein(steps=steps, denoise=0.2, denoise_mode=mode)[1] == klein(steps=steps)[1]


@pytest.mark.parametrize("mode", ["ksampler", "strength", "sigma"])
def test_denoise_of_nothing(klein, mode):
    assert klein(denoise=0.0, denoise_mode=mode)[0].tolist() == []


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows, columns", [(1, 1), (64, 64), (36, 90), (1024, 1024)])
def test_the_size_of_the_latent_wins(klein, batch, rows, columns):
    latent = {"samples": torch.zeros(1, 1, 1, 1).expand(batch, 128, rows, columns)}
    given, mu = klein(width=256, height=512, latent=latent)
    wanted = klein(width=columns * 16, height=rows * 16)
    assert torch.equal(given, wanted[0]) and mu == wanted[1]


def test_the_latent_of_comfyui(klein, run_node):
    latent = run_node("EmptyFlux2LatentImage", width=1248, height=832, batch_size=2)[0]
    assert torch.equal(klein(latent=latent)[0], klein(width=1248, height=832)[0])


def test_with_a_latent_the_size_is_not_looked_at(klein, run_node):
    latent = run_node("EmptyFlux2LatentImage", width=1248, height=832, batch_size=1)[0]
    for size in (591, 1000, 0, -5, 10**6, None):
        assert torch.equal(klein(width=size, height=size, latent=latent)[0], klein(width=1248, height=832)[0])


class TestEmptyLatentsOfOtherModels:
    """ComfyUI's samplers adapt them, where the node that makes one says its scale."""

    @pytest.mark.parametrize("node", ["EmptyLatentImage", "EmptySD3LatentImage"])
    @pytest.mark.parametrize("width, height", [(1024, 1024), (1000, 600), (1248, 832), (16, 24)])
    def test_tokens_of_what_is_sampled(self, klein, run_node, node, width, height):
        latent = run_node(node, width=width, height=height, batch_size=2)[0]
        rows, columns = self.sampled(run_node, latent).shape[2:]
        wanted = klein(latent={"samples": torch.zeros(1, 128, rows, columns)})
        given = klein(latent=latent)
        assert torch.equal(given[0], wanted[0]) and given[1] == wanted[1]

    def sampled(self, run_node, latent):
        """What KSampler makes of a latent; the run itself is left out."""
        model, _ = recorder(random_klein())
        inputs = {**ksampler_inputs(192), "latent_image": latent}
        return run_node("KSampler", model=model, **inputs)[0]["samples"]

    @pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 16, 64, 48), (1, 32, 10, 20)])
    def test_one_that_does_not_say_its_scale(self, klein, run_node, shape):
        """As empty latents of other packs."""
        latent = {"samples": torch.zeros(shape)}
        assert torch.equal(klein(latent=latent)[0], klein(latent={"samples": self.sampled(run_node, latent)})[0])

    def test_a_picture_is_not_adapted(self, klein, run_node):
        latent = run_node("EmptyLatentImage", width=512, height=512, batch_size=1)[0]
        latent["samples"] += 1.0
        with pytest.raises(ValueError, match="It looks like a latent of Stable Diffusion 1.5 or SDXL"):
            klein(latent=latent)


def test_more_steps_than_flux2_was_fitted_to(klein, caplog):
    klein(steps=200)
    klein(steps=1000, shift={"shift": "flux2_continuous"})
    klein(steps=100, denoise=0.1)
    assert caplog.messages == []
    klein(steps=1000)
    [sentence] = caplog.messages
    assert sentence == (
        "Klein Scheduler: shift flux2 was made for at most 200 steps. At 1000 steps its mu is -3.51, which is of no use. "
        "Choose flux2_continuous: it keeps the mu of 200 steps."
    )


@pytest.mark.parametrize(
    "shape, whose",
    [
        ((1, 4, 64, 64), "Stable Diffusion 1.5 or SDXL"),
        ((2, 16, 64, 64), "FLUX.1"),
        ((1, 16, 9, 60, 104), "Wan 2.1"),
        ((1, 48, 9, 60, 104), "Wan 2.2"),
        ((1, 128, 9, 16, 16), "LTX-Video"),
        ((1, 32, 64, 64), "another model"),
        ((128, 64), "another model"),
        ((64,), "another model"),
    ],
)
def test_the_latent_of_another_model(klein, shape, whose):
    with pytest.raises(ValueError, match=r"^Klein Scheduler: Expected `latent` to be a FLUX\.2 latent") as error:
        klein(latent={"samples": torch.ones(1).expand(shape)})
    assert f"but got {list(shape)}" in str(error.value) and whose in str(error.value)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift["shift"])
def test_every_size_and_step_count_that_comfyui_allows(klein, shift, spacing):
    for width, height in ((16, 16), (16, 16384), (1024, 1024), (16384, 16384)):
        for steps in (1, 2, 1000, 10000):
            for changes in ({}, {"terminal": 0.1}, {"denoise": 0.01}, {"denoise": 0.3, "denoise_mode": "sigma"}):
                sigmas = klein(steps=steps, width=width, height=height, shift=shift, spacing=spacing, **changes)[0]
                assert len(sigmas) == steps + 1 and sigmas[0] <= 1.0 and sigmas[-1] == 0.0
                assert (np.diff(sigmas) < 0).all()


class TestAuto:
    """`auto`, which a fresh node begins with, is the shift of the model's family."""

    @pytest.fixture
    def auto(self, klein):
        return lambda **changes: klein(shift={"shift": "auto"}, **changes)

    def agree(self, given, wanted):
        assert torch.equal(given[0], wanted[0]) and given[1] == wanted[1]

    @pytest.mark.parametrize(
        "changes", [{"steps": 4}, {"steps": 50}, {"width": 1536, "height": 1536}, {"denoise": 0.5}], ids=str
    )
    def test_of_flux2_and_without_a_model_it_is_flux2(self, klein, auto, changes):
        wanted = klein(**changes)
        self.agree(auto(**changes), wanted)
        self.agree(auto(**changes, model=random_klein()), wanted)

    @pytest.mark.parametrize("flow_map", [False, True])
    @pytest.mark.parametrize(
        "changes", [{"steps": 16}, {"steps": 50}, {"width": 1536, "height": 1536}, {"denoise": 0.5}], ids=str
    )
    def test_of_flux3_it_is_flux3(self, klein, auto, changes, flow_map):
        given = auto(**changes, model=stand_in(flow_map))
        self.agree(given, klein(**changes, shift={"shift": "flux3"}))
        assert given[1] == pytest.approx(np.log(6.93))

    def test_another_choice_does_not_ask_the_model(self, klein):
        self.agree(klein(model=stand_in()), klein())

    def test_another_model(self, auto):
        model = random_klein()
        model.model.diffusion_model = torch.nn.Linear(1, 1)
        with pytest.raises(ValueError) as error:
            auto(model=model)
        assert str(error.value) == (
            "Klein Scheduler: Expected `model` to be a FLUX.2 or a FLUX 3 model, whose shift `auto` knows, but got Flux2: "
            "choose another `shift`."
        )

    def test_preview(self, pack, auto, klein):
        preview = pack("previews.sigmas").preview
        for choice in ("auto", "flux3"):
            shown, (sigmas, mu) = preview({"steps": 16, "shift": choice}), klein(steps=16, shift={"shift": choice})
            assert (shown["sigmas"], shown["mu"]) == (sigmas.tolist(), mu)


def test_flux3_needs_no_dynamic_shift(comfy, run_node):
    for flow_map in (False, True):
        with pytest.raises(ValueError) as error:
            run_node("KleinKitDynamicShift", model=stand_in(flow_map), shift={"shift": "flux2"})
        assert str(error.value) == "Klein Dynamic Shift: FLUX 3 Image Klein has one shift for every size: remove this node."


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"steps": 0}, "`steps` to be a whole number between 1 and 10000, but got 0."),
        ({"width": 8}, "`width` to be a whole number between 16 and 16384, but got 8."),
        ({"height": 32768}, "`height` to be a whole number between 16 and 16384, but got 32768."),
        ({"denoise": 1.5}, "`denoise` to be a number between 0.0 and 1.0, but got 1.5."),
        ({"denoise": 1e-6}, "`denoise` to be 0.0, or between 0.0001 and 1.0, but got 1e-06."),
        ({"denoise_mode": "sigmas"}, "`denoise_mode` to be one of ksampler, strength, sigma, but got 'sigmas'."),
        ({"spacing": "simple"}, "`spacing` to be one of uniform, karras, exponential, beta, linear_quadratic"),
        ({"shift": {"shift": "flux4"}}, "`shift` to be one of flux2, flux2_continuous, flux3, flux1, fixed, linear, none"),
        ({"shift": {"shift": "fixed", "mu": 99.0}}, "`shift.mu` to be a number between -20.0 and 20.0, but got 99.0."),
        ({"terminal": 0.5, "denoise": 0.3, "denoise_mode": "sigma"}, "`terminal` to be below the first sigma (0.3)"),
        ({"terminal": 0.3, "denoise": 0.3, "denoise_mode": "sigma"}, "`terminal` to be below the first sigma (0.3)"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(klein, changes, sentence):
    with pytest.raises(ValueError) as error:
        klein(**changes)
    assert str(error.value).startswith("Klein Scheduler: Expected ") and sentence in str(error.value)
