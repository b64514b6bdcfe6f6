"""Klein Dynamic Shift: the sigmas that reach the sampler of every sampling node of ComfyUI."""

import logging
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from kleinkit.nano.in_comfyui import random_klein
from sampling import comfy_run, conditioning, embeddings, latent_noise, with_nodes
from sigmas import ksampler_inputs, recorder, scheduler_inputs, shifted

TEXT_WIDTH = 192
LIMIT = 1e-6
STATIC_MU = 2.02
FLUX2 = ("KleinKitDynamicShift", {"shift": {"shift": "flux2"}})
SCHEDULERS = (
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
)


@pytest.fixture(autouse=True)
def as_the_executor():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein()


@pytest.fixture(scope="module")
def stock(klein):
    """The sigmas of a stock scheduler on the model as it is."""
    import comfy.samplers

    static = klein.get_model_object("model_sampling")
    return lambda name, steps: comfy.samplers.calculate_sigmas(static, name, steps)


@pytest.fixture
def ours(run_node):
    def sigmas(**changes):
        return run_node("KleinKitScheduler", **scheduler_inputs(**changes))[0]

    return sigmas


@pytest.fixture
def run(klein, run_node):
    """The sigmas of a run of a sampling node on the model behind KleinKitDynamicShift (or the given nodes)."""

    def sigmas(node="KSampler", *nodes, **changes):
        model, seen = recorder(with_nodes(run_node, klein, *(nodes or (FLUX2,))))
        inputs = ksampler_inputs(TEXT_WIDTH, **changes)
        if node == "KSamplerAdvanced":
            inputs["noise_seed"] = inputs.pop("seed")
            inputs.pop("denoise")
        run_node(node, model=model, **inputs)
        [sigmas] = seen
        return sigmas

    return sigmas


@pytest.fixture
def custom_run(klein, run_node):
    """The same of SamplerCustom or SamplerCustomAdvanced, with the given sigmas."""

    def sigmas_of(sigmas, *nodes, height=1024, width=1024, advanced=False, add_noise=True):
        model, seen = recorder(with_nodes(run_node, klein, *(nodes or (FLUX2,))))
        inputs = ksampler_inputs(TEXT_WIDTH, height, width)
        positive, negative, latent = (inputs[name] for name in ("positive", "negative", "latent_image"))
        euler = run_node("KSamplerSelect", sampler_name="euler")[0]
        if advanced:
            guider = run_node("CFGGuider", model=model, positive=positive, negative=negative, cfg=1.0)[0]
            run_node(
                "SamplerCustomAdvanced",
                noise=run_node("RandomNoise", noise_seed=0)[0] if add_noise else run_node("DisableNoise")[0],
                guider=guider,
                sampler=euler,
                sigmas=sigmas,
                latent_image=latent,
            )
        else:
            run_node(
                "SamplerCustom",
                model=model,
                add_noise=add_noise,
                noise_seed=0,
                cfg=1.0,
                positive=positive,
                negative=negative,
                sampler=euler,
                sigmas=sigmas,
                latent_image=latent,
            )
        [seen] = seen
        return seen

    return sigmas_of


def agree(given, wanted, limit=LIMIT):
    given, wanted = (np.asarray(sigmas, np.float64) for sigmas in (given, wanted))
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max() <= limit


def test_simple_is_klein_scheduler_at_every_step_count(run, ours):
    for steps in range(1, 101):
        agree(run(steps=steps), ours(steps=steps))


@pytest.mark.parametrize("width, height", [(64, 64), (1088, 1024), (512, 2048), (2048, 2048), (4096, 4096)])
def test_simple_is_klein_scheduler_at_every_size(run, ours, width, height):
    agree(run(width=width, height=height), ours(width=width, height=height))


def test_the_size_counts_and_not_the_batch(run, ours):
    agree(run(batch=3, width=512, height=768), ours(width=512, height=768))


@pytest.mark.parametrize("denoise", [share / 20 for share in range(1, 21)])
def test_simple_is_klein_scheduler_at_every_denoise(run, ours, denoise):
    agree(run(denoise=denoise, steps=7), ours(denoise=denoise, steps=7))


@pytest.mark.parametrize(
    "shift",
    [
        {"shift": "flux2_continuous"},
        {"shift": "flux1", "base_shift": 0.4, "max_shift": 2.0},
        {"shift": "fixed", "mu": 0.7},
        {"shift": "linear", "linear_shift": 5.0},
        {"shift": "none"},
    ],
    ids=str,
)
def test_every_shift(run, ours, shift):
    agree(run("KSampler", ("KleinKitDynamicShift", {"shift": shift}), width=1280), ours(shift=shift, width=1280))


@pytest.mark.parametrize("denoise", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in ("simple", "linear_quadratic")])
def test_every_stock_scheduler_has_mu_for_its_own_shift(run, stock, scheduler, denoise):
    steps = 6
    whole = stock(scheduler, int(steps / denoise))
    mu = compute_empirical_mu(4096, len(whole) - 1 if denoise == 1.0 else steps)
    wanted = shifted(whole, mu - STATIC_MU)
    agree(run(scheduler=scheduler, steps=steps, denoise=denoise), wanted if denoise == 1.0 else wanted[-(steps + 1) :])


@pytest.mark.parametrize("scheduler", ["ddim_uniform", "beta"])
def test_schedulers_that_make_other_step_counts_than_asked_for(run, stock, scheduler):
    counts = (6, 7, 12, 17, 60, 150, 400, 1000)
    assert any(len(stock(scheduler, steps)) != steps + 1 for steps in counts)
    for steps in counts:
        whole = stock(scheduler, steps)
        mu = compute_empirical_mu(4096, len(whole) - 1)
        agree(run(scheduler=scheduler, steps=steps), shifted(whole, mu - STATIC_MU))


@pytest.mark.parametrize("scheduler", ["simple", "ddim_uniform", "beta"])
def test_schedulers_that_look_up_a_table_do_as_with_model_sampling_flux(klein, run, run_node, scheduler):
    import comfy.samplers

    mu = compute_empirical_mu(4096, 20)
    flux = run_node("ModelSamplingFlux", model=klein, max_shift=mu, base_shift=0.5, width=1024, height=1024)[0]
    static = comfy.samplers.calculate_sigmas(flux.get_model_object("model_sampling"), scheduler, 20)
    agree(run(scheduler=scheduler), static)


def test_linear_quadratic_knows_no_shift(run, stock):
    assert torch.equal(run(scheduler="linear_quadratic"), stock("linear_quadratic", 20))


def test_the_stock_schedulers_are_all_tested(comfy):
    import comfy.samplers

    assert set(SCHEDULERS) == set(comfy.samplers.SCHEDULER_NAMES)


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize("denoise", [0.5, 1.0])
def test_samplers_that_drop_a_sigma(run, ours, sampler, denoise):
    whole = ours(steps=11, denoise=11 / (int(10 / denoise) + 1))
    agree(run(sampler_name=sampler, steps=10, denoise=denoise), np.delete(whole, -2))


@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
@pytest.mark.parametrize("leftover", ["enable", "disable"])
def test_every_piece_of_an_advanced_run(run, ours, sampler, leftover):
    steps = 6
    whole = ours(steps=steps) if sampler == "euler" else np.delete(ours(steps=steps + 1), -2)
    for start in range(steps):
        for end in range(start + 1, steps + 2):
            piece = np.array(whole[start : end + 1])
            if leftover == "disable":
                piece[-1] = 0.0
            agree(
                run(
                    "KSamplerAdvanced",
                    add_noise="enable",
                    start_at_step=start,
                    end_at_step=end,
                    steps=steps,
                    sampler_name=sampler,
                    return_with_leftover_noise=leftover,
                ),
                piece,
            )


@pytest.mark.parametrize("advanced", [False, True])
@pytest.mark.parametrize("patched", [False, True])
def test_basic_scheduler(klein, run_node, custom_run, ours, patched, advanced):
    model = with_nodes(run_node, klein, FLUX2) if patched else klein
    sigmas = run_node("BasicScheduler", model=model, scheduler="simple", steps=8, denoise=0.6)[0]
    before = sigmas.clone()
    agree(custom_run(sigmas, advanced=advanced), ours(steps=8, denoise=0.6))
    assert torch.equal(sigmas, before)


@pytest.mark.parametrize("advanced", [False, True])
def test_split_sigmas(klein, run_node, custom_run, ours, advanced):
    sigmas = run_node("BasicScheduler", model=klein, scheduler="simple", steps=9, denoise=1.0)[0]
    first, rest = run_node("SplitSigmas", sigmas=sigmas, step=4)
    agree(custom_run(first, advanced=advanced), ours(steps=9)[:5])
    # The second sampler goes on where the first has stopped, and so adds no noise.
    agree(custom_run(rest, advanced=advanced, add_noise=False), ours(steps=9)[4:])


@pytest.mark.parametrize("advanced", [False, True])
def test_the_end_of_split_sigmas_with_noise_is_a_denoise(klein, run_node, custom_run, ours, advanced):
    sigmas = run_node("BasicScheduler", model=klein, scheduler="simple", steps=100, denoise=1.0)[0]
    end = run_node("SplitSigmas", sigmas=sigmas, step=80)[1]
    agree(custom_run(end, advanced=advanced), ours(steps=20, denoise=0.2))


class TestStrengthOfADenoise:
    """mu is that of the steps that are asked for, as in diffusers, and not of the longer schedule behind them."""

    @pytest.mark.parametrize("denoise", [0.05, 0.2, 0.5, 0.99])
    @pytest.mark.parametrize("steps", [1, 4, 20, 50, 100])
    def test_ksampler(self, run, ours, denoise, steps):
        sigmas = run(steps=steps, denoise=denoise)
        mu = compute_empirical_mu(4096, steps)
        agree(sigmas[0], shifted(steps / int(steps / denoise), mu))
        agree(sigmas, ours(steps=steps, denoise=denoise))

    @pytest.mark.parametrize("advanced", [False, True])
    @pytest.mark.parametrize("steps", [4, 100])
    def test_basic_scheduler(self, klein, run_node, custom_run, ours, steps, advanced):
        sigmas = run_node("BasicScheduler", model=klein, scheduler="simple", steps=steps, denoise=0.2)[0]
        agree(custom_run(sigmas, advanced=advanced), ours(steps=steps, denoise=0.2))

    def test_the_last_steps_of_ksampler_advanced_are_those_of_the_whole(self, run, ours):
        piece = dict(add_noise="enable", start_at_step=80, end_at_step=10000, return_with_leftover_noise="disable")
        agree(run("KSamplerAdvanced", steps=100, **piece), ours(steps=100)[80:])


@pytest.mark.parametrize("advanced", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 1},
        {"steps": 2},
        {"steps": 50},
        {"denoise": 0.5},
        {"denoise": 0.5, "denoise_mode": "sigma"},
        {"spacing": "karras"},
        {"spacing": "exponential"},
        {"spacing": "beta"},
        {"spacing": "linear_quadratic"},
        {"terminal": 0.1},
        {"shift": {"shift": "none"}},
        {"shift": {"shift": "fixed", "mu": 1.0}},
        {"width": 1088},
    ],
    ids=str,
)
def test_what_klein_scheduler_made_stays(custom_run, ours, changes, advanced):
    sigmas = ours(**changes)
    assert torch.equal(custom_run(sigmas, advanced=advanced), sigmas)


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50])
def test_what_flux2_scheduler_made_stays(run_node, custom_run, steps):
    sigmas = run_node("Flux2Scheduler", steps=steps, width=1024, height=1024)[0]
    assert torch.equal(custom_run(sigmas), sigmas)


@pytest.mark.parametrize("step", [1, 5, 19])
def test_pieces_of_what_klein_scheduler_made_stay(run_node, custom_run, ours, step):
    for part in run_node("SplitSigmas", sigmas=ours(), step=step):
        assert torch.equal(custom_run(part), part)


@pytest.mark.parametrize("denoise", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_flipped_sigmas_are_the_reverse_of_the_falling_ones(klein, run_node, custom_run, scheduler, denoise):
    sigmas = run_node("BasicScheduler", model=klein, scheduler=scheduler, steps=6, denoise=denoise)[0]
    flipped = run_node("FlipSigmas", sigmas=sigmas)[0]
    before = flipped.clone()
    # Neither run adds noise: the first makes it of a picture, the second a picture of it.
    there, back = (custom_run(part, add_noise=False) for part in (flipped, sigmas))
    assert torch.equal(there, run_node("FlipSigmas", sigmas=back)[0])
    assert torch.equal(there, flipped) == (scheduler == "linear_quadratic")
    assert torch.equal(flipped, before)


@pytest.mark.parametrize("denoise", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", ("simple", "karras", "beta"))
def test_flipped_and_split_sigmas_are_the_reverse_of_the_falling_ones(klein, run_node, custom_run, scheduler, denoise):
    sigmas = run_node("BasicScheduler", model=klein, scheduler=scheduler, steps=8, denoise=denoise)[0]
    high, low = run_node("SplitSigmas", sigmas=sigmas, step=3)
    split = run_node("SplitSigmas", sigmas=run_node("FlipSigmas", sigmas=sigmas)[0], step=5)
    for part, flipped_first in zip((low, high), split):
        falling = custom_run(part, add_noise=False)
        for rising in (run_node("FlipSigmas", sigmas=part)[0], flipped_first):
            assert torch.equal(custom_run(rising, add_noise=False), run_node("FlipSigmas", sigmas=falling)[0])
            assert not torch.equal(falling, part)


@pytest.mark.parametrize("denoise", [0.6, 1.0])
def test_flipped_sigmas_of_klein_scheduler_stay(run_node, custom_run, ours, denoise):
    sigmas = run_node("FlipSigmas", sigmas=ours(steps=6, denoise=denoise))[0]
    assert torch.equal(custom_run(sigmas, add_noise=False), sigmas)


EARLIER = (
    ("ModelSamplingFlux", dict(max_shift=1.15, base_shift=0.5, width=1024, height=512)),
    ("ModelSamplingSD3", dict(shift=3.0)),
    ("ModelSamplingSD3", dict(shift=0.0)),
    ("ModelSamplingAuraFlow", dict(shift=1.73)),
    ("KleinKitDynamicShift", {"shift": {"shift": "fixed", "mu": 0.3}}),
)
# 1024×512 has 2048 tokens: mu lies on the line through 0.5 at 256 and 1.15 at 4096.
MUS = {"ModelSamplingFlux": 0.5 + (1.15 - 0.5) * (2048 - 256) / (4096 - 256), "ModelSamplingSD3": math.log(3.0)}


@pytest.mark.parametrize("before", EARLIER, ids=lambda node: node[0])
def test_an_earlier_shift_does_not_count(run, before):
    agree(run("KSampler", before, FLUX2), run())


@pytest.mark.parametrize("before", EARLIER, ids=lambda node: node[0])
def test_an_earlier_sampling_is_undone(klein, run_node, before):
    wanted = picture(run_node, with_nodes(run_node, klein, FLUX2))
    assert torch.equal(picture(run_node, with_nodes(run_node, klein, before, FLUX2)), wanted)


@pytest.mark.parametrize("before", EARLIER[:2], ids=lambda node: node[0])
def test_sigmas_made_with_an_earlier_shift_get_mu_too(klein, run_node, custom_run, ours, before):
    for scheduler in ("simple", "normal"):
        model = with_nodes(run_node, klein, before)
        sigmas = run_node("BasicScheduler", model=model, scheduler=scheduler, steps=8, denoise=1.0)[0]
        given = custom_run(sigmas, before, FLUX2)
        agree(
            given, ours(steps=8) if scheduler == "simple" else shifted(sigmas, compute_empirical_mu(4096, 8) - MUS[before[0]])
        )


def test_a_later_model_sampling_wins_and_says_so(run, caplog):
    after = ("ModelSamplingFlux", dict(max_shift=1.15, base_shift=0.5, width=1024, height=1024))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run("KSampler", FLUX2, after), run("KSampler", after))
    assert [record for record in caplog.records if record.getMessage().startswith("Klein Dynamic Shift: A later node")]


@pytest.fixture
def said(caplog):
    """What the node says of a run."""

    def of(run, *args, **changes):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(*args, **changes)
        texts = [record.getMessage() for record in caplog.records]
        return [text for text in texts if text.startswith("Klein Dynamic Shift: ")]

    return of


def test_the_log_says_what_mu_was_used(said, run):
    assert said(run, steps=4) == ["Klein Dynamic Shift: mu 2.2912 for 4096 tokens and 4 steps."]


def test_the_log_says_that_sigmas_were_not_made_by_a_scheduler(said, custom_run, ours):
    assert said(custom_run, ours()) == [
        "Klein Dynamic Shift: These sigmas were not made by a KSampler scheduler with the model's default shift; "
        "they are used unchanged."
    ]


def test_the_log_names_a_scheduler_that_does_not_follow_a_shift(said, run):
    sentence = "Klein Dynamic Shift: The scheduler {} does not follow a shift; its sigmas are used unchanged."
    assert said(run, scheduler="linear_quadratic") == [sentence.format("linear_quadratic")]


def test_the_same_of_another_pack_s_scheduler(said, klein, run, monkeypatch):
    """As RES4LYF's bong_tangent, which it adds to KSampler's list."""
    import comfy.samplers

    def tangent(sampling, steps):
        return torch.cat([torch.linspace(1.0, 0.1, steps) ** 2, torch.zeros(1)])

    monkeypatch.setitem(comfy.samplers.SCHEDULER_HANDLERS, "tangent", comfy.samplers.SchedulerHandler(tangent))
    monkeypatch.setattr(comfy.samplers.KSampler, "SCHEDULERS", [*SCHEDULERS, "tangent"])
    assert torch.equal(run(scheduler="tangent", steps=7), tangent(None, 7))
    assert "The scheduler tangent does not follow a shift" in said(run, scheduler="tangent", steps=7)[0]


class TestMoreThan200Steps:
    """flux2 was fitted to at most 200 steps."""

    def test_one_warning(self, said, run):
        [_, warning] = said(run, steps=300)
        assert warning == (
            "Klein Dynamic Shift: shift flux2 was made for at most 200 steps. At 300 steps its mu is 0.57, which is of "
            "no use. Choose flux2_continuous: it keeps the mu of 200 steps."
        )

    @pytest.mark.parametrize(
        "changes", [{"steps": 200}, {"steps": 300, "width": 2048}, {"steps": 100, "denoise": 0.2}], ids=str
    )
    def test_no_warning(self, said, run, changes):
        assert len(said(run, **changes)) == 1

    def test_flux2_continuous_keeps_the_mu_of_200(self, said, run):
        node = ("KleinKitDynamicShift", {"shift": {"shift": "flux2_continuous"}})
        [sentence] = said(run, "KSampler", node, steps=1000)
        assert f"mu {compute_empirical_mu(4096, 200):.4f} for 4096 tokens and 1000 steps." in sentence


class TestWhatASearchCosts:
    """How often the schedulers are asked, each for a number of steps."""

    @pytest.fixture
    def asked(self, monkeypatch):
        import comfy.samplers

        calls, calculate = [], comfy.samplers.calculate_sigmas

        def count(sampling, name, steps):
            calls.append((name, steps))
            return calculate(sampling, name, steps)

        monkeypatch.setattr(comfy.samplers, "calculate_sigmas", count)
        return calls

    @pytest.mark.parametrize("steps", [2, 4, 20, 200, 1000])
    def test_unknown_sigmas(self, custom_run, asked, steps):
        custom_run(torch.linspace(1.0, 0.0, steps + 1) ** 1.5)
        assert len(asked) == len(set(asked)) and len(asked) <= 6 * len(SCHEDULERS)

    def test_above_1000_steps_none_is_asked(self, custom_run, said, asked):
        sigmas = torch.linspace(1.0, 0.0, 10001) ** 1.5
        assert said(custom_run, sigmas) == [
            "Klein Dynamic Shift: A run of more than 1000 steps is not shifted; its sigmas are used unchanged."
        ]
        assert asked == []

    def test_simple_is_asked_once_by_ksampler_once_by_us_and_once_to_see_whether_it_bends(self, run, asked):
        run(steps=20)
        assert asked == [("simple", 20)] * 3


def test_two_models_of_one_loader(klein, run_node, ours):
    nodes = [(("KleinKitDynamicShift", {"shift": {"shift": "fixed", "mu": mu}}),) for mu in (0.5, 1.5)]
    models = [recorder(with_nodes(run_node, klein, *nodes)) for nodes in [*nodes, ()]]
    for _ in range(2):
        for model, _seen in models:
            run_node("KSampler", model=model, **ksampler_inputs(TEXT_WIDTH))
    for (_, seen), mu in zip(models, (0.5, 1.5)):
        for sigmas in seen:
            agree(sigmas, ours(shift={"shift": "fixed", "mu": mu}))
    plain = [run_node("BasicScheduler", model=klein, scheduler="simple", steps=20, denoise=1.0)[0]] * 2
    assert all(map(torch.equal, models[2][1], plain))


def picture(run_node, model, **changes):
    inputs = ksampler_inputs(TEXT_WIDTH, 64, 96, **{"steps": 4, "cfg": 3.0, **changes})
    return run_node("KSampler", model=model, **inputs)[0]["samples"]


def test_queued_again_it_gives_the_same_pixels(klein, run_node):
    model = with_nodes(run_node, klein, FLUX2)
    first, other, again = picture(run_node, model), picture(run_node, model, steps=6), picture(run_node, model)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_unpatched_model_is_untouched(klein, run_node):
    before = picture(run_node, klein)
    shifted_picture = picture(run_node, with_nodes(run_node, klein, FLUX2))
    assert torch.equal(picture(run_node, klein), before)
    assert not torch.equal(shifted_picture, before)


def test_a_run_that_fails_leaves_nothing_behind(klein, run_node):
    from comfy.patcher_extension import WrappersMP

    def fail(executor, *args, **kwargs):
        raise RuntimeError("stopped")

    model = with_nodes(run_node, klein, FLUX2)
    sampling = model.get_model_object("model_sampling")
    before = sampling.sigmas.clone(), sampling.shift, float(sampling.percent_to_sigma(0.5))
    failing = model.clone()
    failing.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "fail", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        picture(run_node, failing)
    assert torch.equal(sampling.sigmas, before[0])
    assert (sampling.shift, float(sampling.percent_to_sigma(0.5))) == before[1:]


def test_during_a_run_the_sampling_is_that_of_mu(klein, run_node):
    from comfy.patcher_extension import WrappersMP

    seen = []

    def look(executor, guider, *args, **kwargs):
        sampling = guider.inner_model.model_sampling
        seen.append((sampling.shift, sampling.sigmas.clone(), sampling.sigma(torch.tensor(0.5))))
        return executor(guider, *args, **kwargs)

    model = with_nodes(run_node, klein, FLUX2)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "look", look)
    picture(run_node, model)
    [(shift, table, middle)] = seen
    mu = compute_empirical_mu(4 * 6, 4)
    assert shift == pytest.approx(mu)
    agree(table, shifted(np.arange(1, 10001) / 10000, mu))
    agree(middle, shifted(0.5, mu))


def test_with_guidance_nodes_it_is_the_run_of_klein_scheduler(klein, run_node, ours):
    interval = {"schedule": "interval", "start": 0.25, "end": 0.75}
    guidance = (
        ("KleinKitCFG", {"schedule": interval, "unguided": "conditional"}),
        ("KleinKitCFGZeroStar", {"optimized_scale": True, "zero_init_steps": 1}),
    )
    sigmas, noise = ours(steps=8, width=96, height=64), latent_noise(64, 96)
    static = run_node("BasicScheduler", model=klein, scheduler="simple", steps=8, denoise=1.0)[0]
    positive, negative = (conditioning(embeddings(TEXT_WIDTH, seed)) for seed in (1, 2))

    def run(sigmas, *nodes):
        return comfy_run(with_nodes(run_node, klein, *nodes), sigmas, noise, positive, negative, 4.0)

    wanted = run(sigmas, *guidance)
    assert torch.equal(run(static, *guidance, FLUX2), wanted)
    assert torch.equal(run(static, FLUX2, *guidance), wanted)


def test_stochastic_sampling_of_diffusers_is_lcm(klein, run_node, ours):
    import comfy.k_diffusion.sampling as k_diffusion
    import comfy.samplers

    sigmas, noise = ours(steps=4, width=96, height=64), latent_noise(64, 96)
    seen, noises = [], (latent_noise(64, 96, seed=seed) for seed in range(4))

    def lcm(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return k_diffusion.sample_lcm(model, x, sigmas, extra_args, seen.append, disable, lambda *sigmas: next(noises))

    positive, negative = (conditioning(embeddings(TEXT_WIDTH, seed)) for seed in (1, 2))
    given = comfy_run(klein, sigmas, noise, positive, negative, 1.0, sampler=comfy.samplers.KSAMPLER(lcm))

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    x = noise
    for i, t in enumerate(scheduler.timesteps):
        agree(seen[i]["x"], x, 1e-5)
        velocity = (x - seen[i]["denoised"]) / scheduler.sigmas[i]
        x = scheduler.step(velocity, t, x, generator=torch.Generator().manual_seed(i), return_dict=False)[0]
    agree(given, x, 1e-5)


def test_a_model_that_is_not_flux2(comfy, run_node):
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = comfy.supported_models.Flux({"image_model": "flux", "disable_unet_model_creation": True})
    flux1 = ModelPatcher(config.get_model({}), *[torch.device("cpu")] * 2)
    with pytest.raises(ValueError, match="^Klein Dynamic Shift: Expected `model` to be a FLUX.2 model, but got"):
        with_nodes(run_node, flux1, FLUX2)


def test_a_sampling_without_a_shift(klein, run_node):
    edm = ("ModelSamplingContinuousEDM", dict(sampling="edm", sigma_max=80.0, sigma_min=0.002))
    with pytest.raises(ValueError, match="^Klein Dynamic Shift: Expected `model` to be a model with flow sampling"):
        with_nodes(run_node, klein, edm, FLUX2)


def test_a_latent_of_another_model(klein, run_node):
    model = with_nodes(run_node, klein, FLUX2)
    sigmas = run_node("BasicScheduler", model=klein, scheduler="simple", steps=4, denoise=1.0)[0]
    with pytest.raises(ValueError, match="^Klein Dynamic Shift: Expected `latent` to be a FLUX.2 latent"):
        comfy_run(model, sigmas, torch.zeros(1, 16, 8, 8), *[conditioning(embeddings(TEXT_WIDTH, 1))] * 2, 1.0)


def test_a_clone_for_another_device_has_the_same_sampling(models, run_node):
    model = run_node("UNETLoader", unet_name=models["base"].name, weight_dtype="default")[0]
    model = with_nodes(run_node, model, FLUX2)
    # ComfyUI 0.20.1 and older clone for the same device only.
    clone = model.deepclone_multigpu() if hasattr(model, "deepclone_multigpu") else model.clone()
    assert clone.get_model_object("model_sampling") is model.get_model_object("model_sampling")
