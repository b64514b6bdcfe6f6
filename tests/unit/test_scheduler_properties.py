"""What holds for every schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from kleinkit.scheduler.mu import SHIFTS
from kleinkit.scheduler.schedule import DENOISE_MODES, LIMITS, Schedule, choose_shift, make, picture_tokens, steps_made
from kleinkit.scheduler.shift import time_shift
from kleinkit.scheduler.spacing import SPACINGS

ALL_STEPS = st.integers(*LIMITS["steps"])
TOKENS = st.integers(1, 1024**2)
MUS = st.floats(-8.0, 8.0)
NO_TERMINAL, TERMINALS = st.just(0.0), st.floats(0.001, 0.2)


@st.composite
def shifts(draw):
    choice = draw(st.sampled_from(tuple(SHIFTS)))
    inputs = {}
    if choice == "flux1":
        inputs["base_shift"] = draw(st.floats(0.0, 2.0))
        inputs["max_shift"] = inputs["base_shift"] + draw(st.floats(0.0, 2.0))
    if choice == "fixed":
        inputs["mu"] = draw(st.floats(*LIMITS["mu"]))
    if choice == "linear":
        inputs["linear_shift"] = draw(st.floats(*LIMITS["linear_shift"]))
    return choose_shift(choice, **inputs)


@st.composite
def schedules(draw, modes=DENOISE_MODES, spacings=tuple(SPACINGS), terminals=NO_TERMINAL | TERMINALS):
    return Schedule(
        steps=draw(ALL_STEPS | st.integers(1, 300)),
        denoise=draw(st.floats(0.25, 1.0) | st.just(1.0)),
        denoise_mode=draw(st.sampled_from(modes)),
        shift=draw(shifts()),
        spacing=draw(st.sampled_from(spacings)),
        terminal=draw(terminals),
    )


# With mu −74.
@example(Schedule(steps=10000, denoise=0.01), 1)
@given(schedules(), TOKENS)
def test_sigmas_fall_strictly_from_at_most_one_to_zero(schedule, tokens):
    with np.errstate(divide="raise", invalid="raise"):
        sigmas = make(schedule, tokens)[0]
    assert sigmas.dtype == np.float32
    assert sigmas[0] <= 1.0 and sigmas[-1] == 0.0 and (np.diff(sigmas) < 0).all()
    # A GPU takes what is smaller for 0.
    assert sigmas[-2] >= np.finfo(np.float32).tiny


@given(schedules(), TOKENS)
def test_length(schedule, tokens):
    steps, first = steps_made(schedule.steps, schedule.denoise, schedule.denoise_mode)
    assert len(make(schedule, tokens)[0]) == steps - first + 1
    if schedule.denoise_mode != "strength":
        assert steps - first == schedule.steps


@given(schedules(modes=["sigma"]), TOKENS)
def test_sigma_mode_starts_exactly_at_denoise(schedule, tokens):
    assert make(schedule, tokens)[0][0] == np.float32(schedule.denoise)


@given(schedules(terminals=TERMINALS, spacings=("uniform", "karras", "exponential")), TOKENS)
def test_terminal_is_the_last_sigma_above_zero(schedule, tokens):
    assume(1 < schedule.steps <= 300)
    assert make(schedule, tokens)[0][-2] == pytest.approx(schedule.terminal, rel=1e-4)


@given(st.integers(1, 300), MUS, MUS)
def test_sigmas_rise_with_mu(steps, mu, other):
    low, high = (make(Schedule(steps=steps, shift=choose_shift("fixed", mu=m)), 4096)[0] for m in sorted((mu, other)))
    assert (low <= high).all()


@given(st.floats(1e-6, 1 - 1e-6), MUS)
def test_the_shift_by_minus_mu_is_the_inverse(sigma, mu):
    assert time_shift(time_shift(sigma, mu), -mu) == pytest.approx(sigma, rel=1e-9)


@given(st.floats(1e-6, 1 - 1e-6), MUS)
def test_the_shift_is_the_formula(sigma, mu):
    assert time_shift(sigma, mu) == pytest.approx(math.exp(mu) / (math.exp(mu) + (1 / sigma - 1)), rel=1e-9)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(*LIMITS["linear_shift"]))
def test_the_linear_shift_is_the_formula(sigma, s):
    assert time_shift(sigma, SHIFTS["linear"](0, 0, linear_shift=s)) == pytest.approx(s * sigma / (1 + (s - 1) * sigma))


@given(MUS)
def test_the_shift_keeps_both_ends(mu):
    assert time_shift(0.0, mu) == 0.0 and time_shift(1.0, mu) == 1.0


@given(st.integers(1, 200), TOKENS)
def test_flux2_continuous_is_flux2_outside(steps, tokens):
    low, high = 4096, 8192
    assume(not low < tokens < high)
    assert SHIFTS["flux2_continuous"](tokens, steps) == SHIFTS["flux2"](tokens, steps)


@given(ALL_STEPS, st.integers(4096, 8192))
def test_flux2_continuous_has_no_jump(steps, tokens):
    low, high = 4096, 8192
    ends = [SHIFTS["flux2"](end, min(steps, 200)) for end in (low, high)]
    assert SHIFTS["flux2_continuous"](tokens, steps) == pytest.approx(np.interp(tokens, (low, high), ends), rel=1e-9)


@given(st.integers(200, LIMITS["steps"][1]), TOKENS)
def test_flux2_continuous_above_200_steps_is_that_of_200(steps, tokens):
    assert SHIFTS["flux2_continuous"](tokens, steps) == SHIFTS["flux2_continuous"](tokens, 200)


@given(schedules(), TOKENS, st.floats(0.01, 1.0), st.sampled_from(DENOISE_MODES))
def test_mu_does_not_depend_on_the_denoise(schedule, tokens, denoise, mode):
    other = replace(schedule, denoise=denoise, denoise_mode=mode, terminal=0.0)
    assert make(other, tokens)[1] == make(schedule, tokens)[1] == schedule.shift(tokens, schedule.steps)


@given(st.integers(16, 16384), st.integers(16, 16384))
def test_tokens_as_flux2_scheduler_counts_them(width, height):
    assert picture_tokens(width, height) == round(width * height / (16 * 16)) > 0


@given(st.integers(1, 100))
def test_flux2_jumps_where_flux2_continuous_does_not(steps):
    assert abs(SHIFTS["flux2_continuous"](4301, steps) - SHIFTS["flux2_continuous"](4300, steps)) < 1e-3
    assert SHIFTS["flux2"](4300, steps) - SHIFTS["flux2"](4301, steps) > 0.5


@given(st.integers(1, 300), st.floats(0.01, 1.0), st.sampled_from(tuple(SPACINGS)))
def test_less_denoise_starts_lower(steps, denoise, spacing):
    for mode in DENOISE_MODES:
        schedule = Schedule(steps=steps, denoise=denoise, denoise_mode=mode, spacing=spacing)
        assert make(schedule, 4096)[0][0] <= make(Schedule(steps=steps, spacing=spacing), 4096)[0][0]


def test_a_busy_machine_is_no_error():
    """hypothesis would give up after 30 seconds of drawing, which took 79 on a machine at load 15."""
    assert settings().deadline is None and HealthCheck.too_slow in settings().suppress_health_check
