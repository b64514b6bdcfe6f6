"""Runs on a flow map, as distilled FLUX 3 is one: what each call is told, what is warned about, and what is refused."""

from collections import Counter

import pytest
import torch
from flux3 import euler, stand_in, text, transformer, velocity
from kleinkit.guidance.flow_map import DOES, does
from sampling import comfy_run, conditioning, latent_noise, with_nodes
from sigmas import scheduler_inputs

NOISE = latent_noise(64, 96)
REFERENCE = latent_noise(64, 64, seed=3)
LIMIT = 1e-5
SKIP = dict(scale=2.5, double_layers="", single_layers="2", start=0.0, end=1.0, mode="block", rescale=0.0)
EXPERIMENT = "This distilled model predicts whole steps. Guidance that joins several of them ({}) is an experiment"


@pytest.fixture
def said(caplog):
    """What KleinKit warned of, a sentence each."""
    return lambda: [one.getMessage() for one in caplog.records if one.levelname == "WARNING" and "KleinKit" in one.getMessage()]


@pytest.fixture
def sigmas(run_node):
    def of(model, steps=4):
        inputs = scheduler_inputs(steps=steps, width=96, height=64, shift={"shift": "auto"})
        return run_node("KleinKitScheduler", **inputs, model=model)[0]

    return of


def loaded(pack, flow_map=True, ignore_cfg=True):
    """FLUX 3 as Klein Loader hands it on."""
    family = pack("checkpoint.families").FLUX3_KLEIN
    found = pack("checkpoint.variant").Variant(flow_map, "its tensors", family=family)
    return pack("nodes.loader").guarded(stand_in(flow_map), found, ignore_cfg)


@pytest.fixture
def guarded(pack):
    """Distilled, where `distilled_cfg` is `ignore`."""
    return lambda: loaded(pack)


@pytest.fixture
def hooked(pack):
    """Distilled, where it is `allow`."""
    return lambda: loaded(pack, ignore_cfg=False)


def run(model, sigmas, cfg=1.0, sampler="euler", references=(), **kwargs):
    values = {"reference_latents": list(references)} if references else {}
    prompts = conditioning(text(1), **values), conditioning(text(2), **values)
    return comfy_run(model, sigmas, NOISE, *prompts, cfg, sampler, **kwargs)


def steps_of(sigmas):
    return list(zip(sigmas.tolist()[:-1], sigmas.tolist()[1:]))


def calls_of(model):
    """`(sigma, target, rows)` of each call."""
    calls = model.model.diffusion_model.calls
    return [(float(sigma), None if target is None else float(target), rows) for sigma, target, rows in calls]


class TestWhereAStepGoes:
    """Every call of the model, of whatever pass, is told the sigma that the step goes to."""

    def passes(self, model, sigmas, *others):
        """How many rows each step of the run had, on this model and on others; a call that is told wrong fails."""
        rows, steps = Counter(), steps_of(sigmas)
        for one in (model, *others):
            for sigma, target, count in calls_of(one):
                assert (sigma, target) in steps
                rows[sigma] += count
        return [rows[sigma] for sigma, _ in steps]

    def test_skip_pass(self, run_node, guarded, sigmas):
        model = with_nodes(run_node, guarded(), ("KleinKitSkipLayerGuidance", SKIP))
        run(model, sigmas(model))
        assert self.passes(model, sigmas(model)) == [2] * 4

    def test_image_pass(self, run_node, hooked, sigmas):
        model = with_nodes(run_node, hooked(), ("KleinKitImageCFG", {"image_scale": 2.0}))
        run(model, sigmas(model), cfg=3.0, references=[REFERENCE])
        assert self.passes(model, sigmas(model)) == [3] * 4

    def test_pass_on_another_model(self, run_node, hooked, sigmas):
        base = stand_in(flow_map=True, seed=5)
        model = with_nodes(run_node, hooked(), ("KleinKitBaseUncond", {"base_model": base}))
        run(model, sigmas(model), cfg=3.0)
        assert self.passes(model, sigmas(model), base) == [2] * 4
        assert sum(rows for *_, rows in calls_of(base)) == 4

    def test_sigmas_of_the_half_of_a_run(self, guarded, sigmas):
        model = guarded()
        for part in (sigmas(model)[:3], sigmas(model)[2:]):
            model.model.diffusion_model.calls.clear()
            run(model, part)
            assert self.passes(model, part) == [1, 1]


def test_a_skip_pass_is_what_diffusers_transformer_makes_of_it(run_node, guarded, sigmas):
    whole, cut = transformer(flow_map=True), transformer(flow_map=True)
    del cut.single_transformer_blocks[2]

    def predict(x, sigma, target, step):
        cond, skip = (velocity(one, x, sigma, text(1), (), target) for one in (whole, cut))
        return cond + SKIP["scale"] * (cond - skip)

    model = with_nodes(run_node, guarded(), ("KleinKitSkipLayerGuidance", SKIP))
    theirs = euler(sigmas(model), NOISE, predict)
    assert (run(model, sigmas(model)) - theirs).abs().max() <= LIMIT * theirs.abs().max()


class TestSamplers:
    def test_euler_says_nothing(self, guarded, sigmas, said):
        for sampler in ("euler", "ddim"):
            run(guarded(), sigmas(guarded()), sampler=sampler)
        assert said() == []

    @pytest.mark.parametrize("hooks", ["guarded", "hooked"])
    def test_another_is_named_once_a_run(self, request, sigmas, said, hooks):
        model = request.getfixturevalue(hooks)()
        run(model, sigmas(model), sampler="res_multistep")
        assert said() == [
            "KleinKit: The sampler res_multistep corrects a step by those before, which gives 4 to 7 % too much contrast and "
            "grain. This distilled model predicts whole steps, so plain Euler is exact: choose euler."
        ]
        run(model, sigmas(model), sampler="res_multistep")
        assert len(said()) == 2

    @pytest.mark.parametrize("hooks", ["guarded", "hooked"])
    def test_a_call_between_the_sigmas_of_the_run(self, request, sigmas, said, hooks):
        model = request.getfixturevalue(hooks)()
        run(model, sigmas(model), sampler="dpm_2")
        sampler, off = said()
        assert sampler.startswith("KleinKit: The sampler dpm_2 asks the model between the sigmas of the run too")
        [first, *_] = [sigma for sigma, target, _ in calls_of(model) if target is None]
        assert off == (
            f"KleinKit: The model is asked at sigma {first:.6g}, which is none of the run's, so it is not told where this step "
            "goes. Choose the sampler euler, and remove nodes that change sigmas during the run."
        )

    def test_noise_of_a_sampler_can_be_off(self, run_node, guarded, sigmas, said):
        plain = run(guarded(), sigmas(guarded()))
        still = run_node("SamplerEulerAncestral", eta=0.0, s_noise=1.0)[0]
        assert (run(guarded(), sigmas(guarded()), sampler=still) - plain).abs().max() <= LIMIT and said() == []
        run(guarded(), sigmas(guarded()), sampler=run_node("SamplerEulerAncestral", eta=0.5, s_noise=1.0)[0])
        assert said()[0].startswith("KleinKit: The sampler euler_ancestral adds new noise after a step")

    def test_churn(self, guarded, sigmas, said):
        from comfy.samplers import ksampler

        run(guarded(), sigmas(guarded()), sampler=ksampler("euler", {"s_churn": 2.0}))
        sampler, off = said()
        assert "The sampler euler with s_churn 2.0 adds noise" in sampler and "is asked at sigma" in off

    def test_a_sampler_of_another_pack(self, guarded, sigmas, said):
        from comfy.k_diffusion.sampling import sample_euler
        from comfy.samplers import KSAMPLER

        def detail_sampler(model, x, sigmas, **kwargs):
            """As nodes do that tell the model another sigma than the latent has."""
            return sample_euler(lambda x, sigma, **more: model(x, sigma * 0.99, **more), x, sigmas, **kwargs)

        run(guarded(), sigmas(guarded()), sampler=KSAMPLER(detail_sampler))
        sampler, off = said()
        assert "The sampler detail_sampler is not plain Euler, and KleinKit does not know what it does." in sampler
        assert "is asked at sigma 0.99, which is none of the run's" in off

    def test_a_base_model_may_have_any(self, pack, sigmas, said):
        model = loaded(pack, flow_map=False)
        for sampler in ("res_multistep", "dpm_2", "euler_ancestral"):
            run(model, sigmas(model), cfg=3.5, sampler=sampler)
        assert said() == []

    def test_a_flow_map_is_seen_when_the_run_begins(self, pack, sigmas, said):
        """Another node makes a base model one, behind ours."""
        model = loaded(pack, flow_map=False)
        made = model.clone()
        made.add_object_patch("diffusion_model.ref_time_in", transformer(flow_map=True).target_timestep_embedder)
        run(made, sigmas(model), sampler="heun")
        assert said()[0].startswith("KleinKit: The sampler heun asks the model two or three times a step")
        wanted = run(stand_in(flow_map=True), sigmas(model), sampler="heun")
        assert len(said()) == 1 and (run(made, sigmas(model), sampler="heun") - wanted).abs().max() <= LIMIT


class FlowMap:
    """The exact flow map of normally distributed data, asked as ComfyUI's samplers ask a model.

    Attributes:
        off: how many calls were at none of the run's sigmas.
    """

    MEAN, SPREAD = 0.7, 0.25

    def __init__(self, sigmas, sampling):
        from types import SimpleNamespace

        self.sigmas, self.off = sigmas, 0
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        inner = SimpleNamespace(model_sampling=sampling)
        self.inner_model = SimpleNamespace(inner_model=inner, model_patcher=patcher, model_sampling=sampling)
        self.model_patcher = patcher

    def spread(self, sigma):
        return torch.sqrt((1 - sigma) ** 2 * self.SPREAD**2 + sigma**2)

    def leads_to(self, x, sigma, target):
        return (1 - target) * self.MEAN + (x - (1 - sigma) * self.MEAN) * self.spread(target) / self.spread(sigma)

    def __call__(self, x, sigma, model_options=None, **kwargs):
        sigma = sigma.flatten()[0]
        [found] = torch.where(sigma == self.sigmas[:-1])
        self.off += not len(found)
        target = self.sigmas[found[0] + 1] if len(found) else torch.zeros(())
        denoised = x - sigma * (x - self.leads_to(x, sigma, target)) / (sigma - target)
        for hook in (model_options or {}).get("sampler_post_cfg_function", ()):
            # The cfg_pp samplers take the negative's prediction from here.
            hook({"denoised": denoised, "uncond_denoised": denoised, "cond_denoised": denoised, "model_options": model_options})
        return denoised


@pytest.fixture(scope="module")
def outcomes(comfy):
    """`{sampler: (function, root mean square error, mean, spread, calls off)}` of every sampler of ComfyUI, in 16 steps."""
    from types import SimpleNamespace

    import comfy.model_sampling
    import comfy.samplers

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Sampling(SimpleNamespace(sampling_settings={"shift": 6.93, "multiplier": 1000}))
    noise, found = torch.randn(1, 1, 50, 60, generator=torch.Generator().manual_seed(0)), {}
    for name in comfy.samplers.SAMPLER_NAMES:
        drops = name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
        sigmas = comfy.samplers.simple_scheduler(sampling, 16 + drops)
        if drops:
            sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
        model, sampler = FlowMap(sigmas, sampling), comfy.samplers.sampler_object(name)
        start, args = noise * sigmas[0], {"seed": 1, "model_options": {}}
        with torch.no_grad():
            made = sampler.sampler_function(
                model, start, sigmas.clone(), extra_args=args, callback=None, disable=True, **sampler.extra_options
            )
        error = (made - model.leads_to(noise, torch.ones(()), torch.zeros(()))).square().mean().sqrt()
        function = sampler.sampler_function.__name__
        found[name] = function, float(error), float(made.mean()), float(made.std()), model.off
    return found


class TestTheTableOfSamplers:
    """What is said of ComfyUI's samplers, measured on a flow map whose result is known."""

    def group(self, what):
        [names] = [names for does, names in DOES.items() if what in does]
        return names

    def test_every_sampler_of_comfyui_is_in_it(self, outcomes):
        listed = [name for names in DOES.values() for name in names]
        assert sorted([*listed, "euler", "ddim"]) == sorted(outcomes)

    def test_those_without_a_warning_are_exact_and_no_others(self, outcomes):
        silent = {name for name, (function, *_) in outcomes.items() if does(function, {}) is None}
        assert silent == {name for name, (_, error, *_) in outcomes.items() if error < 1e-5} - set(self.group("negative"))

    @pytest.mark.parametrize(
        "what, low, high",
        [("4 to 7 %", 1.035, 1.075), (" 1 %", 1.005, 1.015), ("6 to 14 %", 1.055, 1.145), ("28 %", 1.265, 1.285)],
    )
    def test_contrast(self, outcomes, what, low, high):
        right = outcomes["euler"][3]
        assert [name for name in self.group(what) if not low <= outcomes[name][3] / right <= high] == []

    def test_new_noise_makes_another_picture(self, outcomes):
        assert [name for name in self.group("new noise") if outcomes[name][1] < 1.2 * FlowMap.SPREAD] == []

    def test_the_mean(self, outcomes):
        right = outcomes["euler"][2]
        wrong = {name for name, (_, _, mean, *_) in outcomes.items() if abs(mean - right) > 0.04} - set(self.group("negative"))
        assert wrong == set(self.group("mean"))

    def test_calls_between_sigmas(self, outcomes):
        assert outcomes["dpm_2"][4] == 15 and outcomes["euler"][4] == 0


class TestGuidance:
    def test_zero_init_is_refused(self, run_node, guarded, sigmas):
        model = with_nodes(run_node, guarded(), ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1)))
        with pytest.raises(ValueError) as error:
            run(model, sigmas(model))
        assert str(error.value) == (
            "Klein CFG-Zero*: Expected `zero_init_steps` to be 0 on this distilled model, which predicts where a step goes and "
            "cannot stand still, but got 1."
        )
        assert calls_of(model) == []

    def test_cfg_counts_as_1(self, guarded, sigmas, said):
        model = guarded()
        assert torch.equal(run(model, sigmas(model), cfg=5.0), run(stand_in(flow_map=True), sigmas(model)))
        assert said() == [
            "KleinKit: cfg 5 counts as 1 on this distilled model. Set cfg to 1, or `distilled_cfg` of Klein Loader to `allow`."
        ]

    def test_rules_that_need_a_negative_say_so(self, run_node, guarded, sigmas, said):
        nodes = (
            ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0)),
            ("KleinKitTCFG", {}),
            ("KleinKitSlerpCFG", {}),
            ("KleinKitAdaptiveGuidance", {"threshold": 0.99}),
            ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=True)),
        )
        model = with_nodes(run_node, guarded(), *nodes)
        assert torch.equal(run(model, sigmas(model)), run(stand_in(flow_map=True), sigmas(model)))
        assert said() == [
            "KleinKit: No negative runs on this distilled model, so nothing comes of Klein CFG-Zero*, Klein TCFG, "
            "Klein Slerp CFG, Klein Adaptive Guidance, Klein Renorm."
        ]

    def test_what_joins_predictions_is_an_experiment(self, run_node, guarded, hooked, sigmas, said):
        model = with_nodes(run_node, guarded(), ("KleinKitSkipLayerGuidance", SKIP))
        run(model, sigmas(model))
        model = with_nodes(run_node, hooked(), ("KleinKitSlerpCFG", {}))
        run(model, sigmas(model), cfg=3.0)
        model = with_nodes(run_node, guarded(), ("KleinKitMomentum", {"start": 0.0, "end": 1.0, "alpha": 0.1, "beta": 0.6}))
        run(model, sigmas(model))
        skip, cfg, momentum = said()
        assert EXPERIMENT.format("Klein Skip-Layer Guidance") in skip and EXPERIMENT.format("cfg 3") in cfg
        assert EXPERIMENT.format("Klein Momentum Guidance") in momentum

    @pytest.mark.parametrize("flow_map", [False, True])
    def test_a_flow_map_and_a_velocity_model_are_never_mixed(self, run_node, comfy, flow_map):
        kinds = {False: "a base model", True: "a distilled one, which predicts whole steps"}
        with pytest.raises(ValueError) as error:
            run_node("KleinKitBaseUncond", model=stand_in(flow_map), base_model=stand_in(not flow_map, seed=5))
        assert str(error.value) == (
            f"Klein Base Uncond: Expected `base_model` to be {kinds[flow_map]}, as `model` is, but got {kinds[not flow_map]}."
        )

    def test_nor_where_a_node_behind_makes_one_of_the_model(self, run_node, sigmas):
        model = run_node("KleinKitBaseUncond", model=stand_in(), base_model=stand_in(seed=5))[0]
        made = model.clone()
        made.add_object_patch("diffusion_model.ref_time_in", transformer(flow_map=True).target_timestep_embedder)
        with pytest.raises(ValueError, match="^Klein Base Uncond: Expected `base_model` to be a distilled one"):
            run(made, sigmas(model), cfg=3.0)
        run(model, sigmas(model), cfg=3.0)
