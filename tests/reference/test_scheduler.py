"""Sigmas against diffusers: its scheduler in the same configuration, and what its pipelines compute for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.flux3.before_denoise import Flux3SetTimestepsStep
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.flux2.pipeline_flux2_klein_inpaint import Flux2KleinInpaintPipeline
from kleinkit.scheduler.mu import SHIFTS, beyond_fit
from kleinkit.scheduler.schedule import Schedule, choose_shift, make

LIMIT = 1e-6
STEPS = (1, 2, 3, 4, 7, 20, 50, 100)
SIDES = (64, 512, 768, 1024, 1040, 1088, 1536, 2048, 4096)
CONVERSIONS = {
    "uniform": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
GOLDEN = {
    1: [1, 0],
    2: [1, 0.9091107, 0],
    3: [1, 0.9521271, 0.8325565, 0],
    4: [1, 0.96738404, 0.90814394, 0.76719993, 0],
    6: [1, 0.9799441, 0.9513246, 0.9071679, 0.8301074, 0.6615250, 0],
    10: [1, 0.9884957, 0.9744825, 0.9570386, 0.9347291, 0.9051879, 0.8642187, 0.8036000, 0.7047356, 0.5147510, 0],
}

# Of Black Forest Labs' sampling code: σ = 6.93·t / (1 + 5.93·t) of even t, in float32.
GOLDEN_FLUX3 = {
    4: """
        1 0.9541074 0.8738966 0.69788516 0
    """,
    16: """
        1 0.99047166 0.97980207 0.96777314 0.9541074 0.9384464 0.9203186 0.8990919 0.8738966 0.8435055 0.80612642
        0.75903606 0.69788516 0.61527073 0.49748743 0.31600547 0
    """,
    50: """
        1 0.99706376 0.99402344 0.9908734 0.98760766 0.98421961 0.9807024 0.9770484 0.97324955 0.96929693 0.96518111
        0.96089172 0.95641756 0.95174646 0.94686508 0.94175887 0.93641204 0.93080711 0.92492491 0.91874439 0.91224217
        0.90539259 0.89816707 0.89053357 0.8824566 0.8738966 0.86480868 0.85514247 0.84484088 0.83383948 0.8220641
        0.80943018 0.79584026 0.78118157 0.76532298 0.74811083 0.72936404 0.70886767 0.68636513 0.66154641 0.63403481
        0.60336655 0.56896549 0.53010601 0.48586118 0.43502828 0.37601733 0.30668241 0.22405429 0.12390487 0
    """,
}
MOST_ULPS = 4


def tokens_of(width, height):
    return (width // 16) * (height // 16)


def ours(tokens, shift="flux2", numbers=None, **settings):
    return make(Schedule(shift=choose_shift(shift, **(numbers or {})), **settings), tokens)[0]


def theirs(steps, mu=None, **config):
    """The sigmas of diffusers' scheduler as `Flux2KleinPipeline` sets it."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler.sigmas


def dynamic(**config):
    return {"use_dynamic_shifting": True, **config}


def agree(given, wanted):
    given, wanted = (np.asarray(sigmas, np.float64) for sigmas in (given, wanted))
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max() <= LIMIT


@pytest.mark.parametrize("width", SIDES)
@pytest.mark.parametrize("height", (512, 1024, 1088))
def test_flux2(width, height):
    for steps in STEPS:
        tokens = tokens_of(width, height)
        agree(ours(tokens, steps=steps), theirs(steps, compute_empirical_mu(tokens, steps), **dynamic()))


@pytest.mark.parametrize("steps", (1, 2, 10, 199, 200, 201, 1000, 10000))
@pytest.mark.parametrize("tokens", (1, 256, 4095, 4096, 4299, 4300, 4301, 8192, 65536, 1048576))
def test_mu_of_flux2(tokens, steps):
    assert SHIFTS["flux2"](tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), abs=1e-9)


@pytest.mark.parametrize("steps", (200, 201))
@pytest.mark.parametrize("tokens", (1, 4300, 4301, 8192))
def test_flux2_warns_above_200_steps_where_they_change_its_mu(tokens, steps):
    warns = steps > 200 and compute_empirical_mu(tokens, steps) != compute_empirical_mu(tokens, 200)
    assert (beyond_fit(choose_shift("flux2"), tokens, steps) is not None) == warns


@pytest.mark.parametrize("tokens", (1, 256, 1024, 4096, 8192, 1048576))
@pytest.mark.parametrize("base, most", [(0.5, 1.15), (0.3, 2.0), (1.0, 1.0)])
def test_mu_of_flux1(tokens, base, most):
    mu = calculate_shift(tokens, base_shift=base, max_shift=most)
    assert SHIFTS["flux1"](tokens, 20, base_shift=base, max_shift=most) == pytest.approx(mu, abs=1e-9)


@pytest.mark.parametrize("tokens", (256, 4096, 9216))
def test_flux1(tokens):
    for steps in STEPS:
        agree(ours(tokens, "flux1", steps=steps), theirs(steps, calculate_shift(tokens), **dynamic()))


@pytest.mark.parametrize("mu", (-3.0, 0.0, 1.15, 6.0))
def test_fixed_mu(mu):
    for steps in STEPS:
        agree(ours(4096, "fixed", {"mu": mu}, steps=steps), theirs(steps, mu, **dynamic()))


@pytest.mark.parametrize("shift", (0.5, 1.0, 3.0, 12.0))
def test_linear_shift_is_the_static_and_the_linear_dynamic_one(shift):
    for steps in STEPS:
        given = ours(4096, "linear", {"linear_shift": shift}, steps=steps)
        agree(given, theirs(steps, shift=shift))
        agree(given, theirs(steps, shift, **dynamic(time_shift_type="linear")))


def test_no_shift():
    for steps in STEPS:
        agree(ours(4096, "none", steps=steps), theirs(steps, shift=1.0))


@pytest.mark.parametrize("spacing", CONVERSIONS)
@pytest.mark.parametrize("terminal", (0.0, 0.02, 0.1, 0.5))
@pytest.mark.parametrize("tokens", (1024, 4096, 5000))
def test_spacing_and_terminal(spacing, terminal, tokens):
    for steps in STEPS[1:]:
        wanted = theirs(
            steps, compute_empirical_mu(tokens, steps), **dynamic(shift_terminal=terminal or None, **CONVERSIONS[spacing])
        )
        agree(ours(tokens, steps=steps, spacing=spacing, terminal=terminal), wanted)


@pytest.mark.parametrize("spacing", CONVERSIONS)
@pytest.mark.parametrize("strength", [share / 10 for share in range(1, 11)])
def test_strength(spacing, strength):
    for steps in STEPS[1:]:
        scheduler = FlowMatchEulerDiscreteScheduler(**dynamic(**CONVERSIONS[spacing]))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(4096, steps))
        pipeline = SimpleNamespace(scheduler=scheduler)
        timesteps, kept = Flux2KleinInpaintPipeline.get_timesteps(pipeline, steps, strength, "cpu")
        given = ours(4096, steps=steps, spacing=spacing, denoise=strength, denoise_mode="strength")
        assert len(given) == kept + 1
        agree(given[:-1], timesteps / 1000)


@pytest.mark.parametrize("denoise", (0.05, 0.3, 0.5, 0.75, 0.99991, 1.0))
@pytest.mark.parametrize("steps", (1, 4, 20))
def test_ksampler_denoise_is_the_end_of_a_longer_schedule(denoise, steps):
    # As diffusers' get_timesteps: mu is that of the steps that are asked for.
    whole = theirs(int(steps / denoise), compute_empirical_mu(4096, steps), **dynamic())
    agree(ours(4096, steps=steps, denoise=denoise), whole[-(steps + 1) :])


@pytest.mark.parametrize("denoise", (0.05, 0.3, 0.5, 0.99))
@pytest.mark.parametrize("steps", (1, 4, 20))
def test_sigma_denoise_is_the_shift_of_even_steps_down_from_it(denoise, steps):
    mu = compute_empirical_mu(4096, steps)
    shift = FlowMatchEulerDiscreteScheduler(**dynamic()).time_shift
    even = np.linspace(shift(-mu, 1.0, denoise), 0.0, steps + 1)[:-1]
    agree(ours(4096, steps=steps, denoise=denoise, denoise_mode="sigma"), np.append(shift(mu, 1.0, even), 0.0))


@pytest.mark.parametrize("steps", GOLDEN)
def test_golden_values(steps):
    agree(ours(4096, steps=steps), GOLDEN[steps])


def test_golden_values_of_fifty_steps():
    sigmas = ours(4096, steps=50) * 1000
    first, last = [1000, 997.3091, 994.5214, 991.6316, 988.6340], [396.7571, 325.5933, 239.6312, 133.7189, 0]
    np.testing.assert_allclose([*sigmas[:5], *sigmas[-5:]], first + last, atol=1e-4)


def test_golden_mu():
    assert SHIFTS["flux2"](4096, 4) == pytest.approx(2.291179894115571, abs=1e-12)
    assert SHIFTS["flux2"](tokens_of(1088, 1024), 4) == pytest.approx(1.193, abs=5e-4)


def test_sigmas_that_a_float32_scheduler_cannot_tell_apart_stay_close():
    mu = compute_empirical_mu(65536, 100)
    agree(ours(65536, steps=100), theirs(100, mu, **dynamic()))
    assert torch.unique(theirs(100, compute_empirical_mu(262144, 100), **dynamic())).numel() == 2
    assert (np.diff(ours(262144, steps=100)) < 0).all()


@pytest.mark.parametrize("steps", GOLDEN_FLUX3)
def test_golden_values_of_flux3(steps):
    wanted = np.float32(GOLDEN_FLUX3[steps].split())
    for tokens in (1, 4096, 65536):
        given = ours(tokens, "flux3", steps=steps)
        assert given.shape == wanted.shape and (np.abs(given - wanted) <= MOST_ULPS * np.spacing(wanted)).all()


@pytest.mark.parametrize("steps", [*STEPS, 16])
def test_flux3(steps):
    pipeline = Flux3SetTimestepsStep().init_pipeline()
    scheduler = pipeline.scheduler
    assert scheduler.config.shift == pytest.approx(np.exp(SHIFTS["flux3"](4096, steps)))
    pipeline(num_inference_steps=steps)
    given, wanted = ours(4096, "flux3", steps=steps), scheduler.sigmas.numpy()
    assert given.shape == wanted.shape and (np.abs(given - wanted) <= MOST_ULPS * np.spacing(wanted)).all()
