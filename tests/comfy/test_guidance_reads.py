"""The host waits for the device only where something is decided by what the device knows, and guidance sees the true sigma."""

import functools
import math

import pytest
import torch
from host_reads import host_reads
from sampling import comfy_run, conditioning, embeddings, latent_noise, warnings, with_nodes

SIGMAS = torch.tensor([1.0, 0.98, 0.95, 0.9, 0.83, 0.66, 0.0])
STEPS = len(SIGMAS) - 1
NOISE = latent_noise(32, 32)
# At the begin of a run its sigmas, at its end what was left on the device.
OF_A_RUN = 2
LAYERS = dict(double_layers="", single_layers="0", start=0.0, end=1.0)
DIMINISHING = ("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 0.9}, unguided="conditional"))
RULES = {
    "KleinKitCFG": DIMINISHING[1],
    "KleinKitCFGZeroStar": dict(optimized_scale=True, zero_init_steps=1),
    "KleinKitSkipLayerGuidance": dict(scale=2.0, mode="block", rescale=0.7, **LAYERS),
    "KleinKitSEG": dict(scale=2.0, blur_sigma=1.0, **LAYERS),
    "KleinKitAutoGuidance": dict(scale=2.0, prompt="both", **LAYERS),
    "KleinKitRenorm": dict(mode="token", strength=0.5, shrink_only=True),
    "KleinKitSlerpCFG": {"cap": 20.0},
    "KleinKitImageCFG": {"image_scale": 2.0},
    "KleinKitBaseUncond": {},
    "KleinKitMomentum": dict(alpha=0.5, beta=0.6, start=0.0, end=1.0),
    "KleinKitNAG": dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0),
    "KleinKitAPG": dict(eta=0.2, norm_threshold=3.0, momentum=-0.5, space="velocity", start=0.0, scale=0.0),
    "KleinKitMAMBOG": {"alpha": 2.0},
    "KleinKitFDG": {"shares": "1, 0.2, 0.7"},
    "KleinKitTCFG": {},
    "KleinKitGuidance": {"preset": "faster"},
    # Its plan is known: every cosine reaches −1.
    "KleinKitAdaptiveGuidance": {"threshold": -1.0},
}


def run(model, prompts, cfg=4.0, sampler="euler", sigmas=SIGMAS, **others):
    return comfy_run(model, sigmas, NOISE, *prompts, cfg, sampler, **others)


def reads_of_ours(model, plain, prompts, **others):
    """How often a run waits more than the same run without the rules."""
    with_rules, without = (host_reads(lambda one=one: run(one, prompts, **others)) for one in (model, plain))
    return with_rules - without


@pytest.mark.parametrize("node", RULES)
def test_a_rule_whose_plan_is_known_never_waits_in_a_step(klein, base, run_node, prompts, node):
    inputs = RULES[node] | ({"base_model": base} if node == "KleinKitBaseUncond" else {})
    model = with_nodes(run_node, klein, (node, inputs))
    assert reads_of_ours(model, klein, prompts) == OF_A_RUN


def test_every_rule_is_in_the_table(pack):
    assert {node.__name__ for node in pack("nodes.guidance").NODES} == RULES.keys()


def test_reused_guidance_never_waits_in_a_step(klein, run_node, prompts):
    for unguided in ("reuse", "extrapolate"):
        schedule = {"schedule": "skip", "mode": "alternate", "guided_ratio": 0.5}
        model = with_nodes(run_node, klein, ("KleinKitCFG", {"schedule": schedule, "unguided": unguided}))
        assert reads_of_ours(model, klein, prompts) == OF_A_RUN


def test_adaptive_guidance_waits_only_until_it_has_decided(klein, run_node, prompts):
    # It asks once after each step that is guided.
    for threshold, guided in ((1.0, STEPS), (-0.9999, 1)):
        model = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": threshold}))
        # What the last step has observed comes with what is read at the end.
        assert reads_of_ours(model, klein, prompts) == OF_A_RUN + min(guided, STEPS - 1)


def recorded(model):
    """A clone whose runs record `(sigma, the step's sigma, step)` of every model call, and the list."""
    from comfy.patcher_extension import WrappersMP

    calls, model = [], model.clone()

    def record(executor, x, timestep, model_options, seed=None):
        step = model_options["transformer_options"]["kleinkit_run"].step
        calls.append((float(timestep[0]), step.sigma, step.index))
        return executor(x, timestep, model_options, seed)

    # Behind ours, which has a key too.
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "recorder", record)
    return model, calls


def test_every_sampler_of_comfyui(klein, run_node, prompts, pack):
    """The sigma is the model's own in each call, and only calls whose sigma cannot be known are asked for."""
    import comfy.samplers

    known = pack("engine.samplers")
    model, calls = recorded(with_nodes(run_node, klein, DIMINISHING))
    for sampler in comfy.samplers.SAMPLER_NAMES:
        calls.clear()
        few = dict(cfg=1.0, sampler=sampler, sigmas=SIGMAS[[0, 3, 5, 6]])
        # The recorder itself reads once a call.
        reads = reads_of_ours(model, klein, prompts, **few) - len(calls)
        name = comfy.samplers.sampler_object(sampler).sampler_function.__name__
        asked = 0 if name in known.FOLLOWING else 1 if name in known.FOLLOWING_AFTER_THE_FIRST else len(calls)
        assert (reads, [seen for _, seen, _ in calls]) == (OF_A_RUN + asked, [sigma for sigma, *_ in calls]), sampler


def of_another_pack(sampler="euler"):
    """ComfyUI's sampling function in one of another pack that alters the model's sigma, as Detail Daemon does."""
    from comfy.k_diffusion import sampling

    own = getattr(sampling, f"sample_{sampler}")

    @functools.wraps(own)
    def altering(model, x, sigmas, **others):
        class Altered:
            def __call__(self, x, sigma, **kwargs):
                return model(x, sigma * 0.9, **kwargs)

            def __getattr__(self, name):
                return getattr(model, name)

        return own(Altered(), x, sigmas, **others)

    return altering


class TestAnAlteredSigmaIsRead:
    @pytest.fixture
    def ruled(self, klein, run_node):
        return with_nodes(run_node, klein, DIMINISHING)

    def check(self, model, prompts, sampler="euler", sigmas=SIGMAS, altered=True):
        model, calls = recorded(model)
        run(model, prompts, sampler=sampler, sigmas=sigmas)
        assert all(sigma == seen for sigma, seen, _ in calls)
        assert altered == any(sigma not in sigmas.tolist() for sigma, *_ in calls)
        return calls

    def test_by_a_sampler_around_comfyui_s(self, ruled, prompts):
        import comfy.samplers

        self.check(ruled, prompts, comfy.samplers.KSAMPLER(of_another_pack()))

    def test_by_churn(self, ruled, prompts):
        import comfy.samplers

        self.check(ruled, prompts, comfy.samplers.ksampler("euler", {"s_churn": 1.0}))

    def test_by_a_kind_of_sampler_of_another_pack(self, ruled, prompts):
        import comfy.samplers

        class Halved(comfy.samplers.KSAMPLER):
            def sample(self, model_wrap, sigmas, *args, **kwargs):
                return super().sample(model_wrap, sigmas * 0.9, *args, **kwargs)

        self.check(ruled, prompts, Halved(comfy.samplers.ksampler("euler").sampler_function))

    def test_by_a_wrapper_before_ours(self, klein, run_node, prompts):
        from comfy.patcher_extension import WrappersMP

        model = klein.clone()
        model.add_wrapper(WrappersMP.PREDICT_NOISE, lambda executor, x, timestep, *more: executor(x, timestep * 0.9, *more))
        self.check(with_nodes(run_node, model, DIMINISHING), prompts)

    def test_by_a_wrapper_of_the_run_behind_ours(self, ruled, prompts):
        from comfy.patcher_extension import WrappersMP

        model = ruled.clone()
        model.add_wrapper(
            WrappersMP.SAMPLER_SAMPLE, lambda executor, guider, sigmas, *more: executor(guider, sigmas * 0.9, *more)
        )
        self.check(model, prompts)

    def test_by_a_guider(self, ruled, prompts):
        import comfy.samplers

        class Early(comfy.samplers.CFGGuider):
            def outer_predict_noise(self, x, timestep, model_options=None, seed=None):
                return super().outer_predict_noise(x, timestep * 0.9, model_options, seed)

        model, calls = recorded(ruled)
        guider = Early(model)
        guider.set_conds(*prompts)
        guider.set_cfg(4.0)
        guider.sample(NOISE, torch.zeros_like(NOISE), comfy.samplers.ksampler("euler"), SIGMAS, disable_pbar=True, seed=0)
        assert len(calls) == STEPS and all(sigma == seen for sigma, seen, _ in calls)
        assert calls[0][0] == pytest.approx(0.9)

    def test_rising_and_equal_sigmas_are_followed_as_they_are(self, ruled, prompts):
        for sigmas in (SIGMAS.flip(0)[1:], torch.tensor([1.0, 0.7, 0.7, 0.3, 0.0])):
            calls = self.check(ruled, prompts, sigmas=sigmas, altered=False)
            assert [index for *_, index in calls] == list(range(len(sigmas) - 1))

    def test_where_nobody_could_know_it_is_said(self, ruled, klein, prompts, monkeypatch, caplog):
        """Code that is patched from outside: the first reading finds it, and after it nothing is presumed."""
        import comfy.samplers

        own = comfy.samplers.KSamplerX0Inpaint.__call__
        monkeypatch.setattr(
            comfy.samplers.KSamplerX0Inpaint,
            "__call__",
            lambda self, x, sigma, *args, **more: own(self, x, sigma * 0.9, *args, **more),
        )
        run(ruled, prompts)
        [said] = warnings(caplog)
        assert "made the model's sigma 0.9 in step 1 of 6" in said and said.endswith("Guidance went by the sampler's, 1.")


def test_nan_is_named_though_nothing_is_read_before_the_end(klein, run_node, prompts, caplog):
    """Also where the user stops the run, as one does who sees black previews."""
    import comfy.model_management

    steps = []

    def stop(step, *_):
        steps.append(step)
        raise comfy.model_management.InterruptProcessingException

    model = with_nodes(run_node, klein, DIMINISHING)
    broken = [conditioning(embeddings(192, 1) * math.nan), prompts[1]]
    for callback in (None, stop):
        caplog.clear()
        try:
            run(model, broken, callback=callback)
        except comfy.model_management.InterruptProcessingException:
            assert steps == [0]
        assert caplog.text.count("NaN or infinity from the model (cond) in step 1 of 6, at sigma 1.") == 1
