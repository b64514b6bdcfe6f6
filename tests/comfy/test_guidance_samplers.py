"""The step of every model call, for every sampler of ComfyUI."""

import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

STEPS = 6
# Klein's shifted sigmas lie close together at the start.
SIGMAS = torch.tensor([1.0, 0.98, 0.95, 0.9, 0.83, 0.66, 0.0])
SEVERAL_CALLS_A_STEP = {
    "heun",
    "heunpp2",
    "exp_heun_2_x0",
    "exp_heun_2_x0_sde",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "seeds_2",
    "seeds_3",
    "sa_solver_pece",
}
OWN_SIGMAS = {"dpm_fast", "dpm_adaptive"}
CONSTANT = ("KleinKitCFG", dict(schedule={"schedule": "constant"}, unguided="conditional"))
HALF = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"))


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=1)


def calls_of(model, sampler, sigmas):
    """`(sigma, index, steps)` of every model call of a run."""
    from comfy.patcher_extension import WrappersMP

    calls = []

    def record(executor, x, timestep, model_options, seed=None):
        step = model_options["transformer_options"]["kleinkit_run"].step
        calls.append((float(timestep[0]), step.index, step.steps))
        return executor(x, timestep, model_options, seed)

    model = model.clone()
    model.add_wrapper(WrappersMP.PREDICT_NOISE, record)
    prompt = conditioning(embeddings(192, 1))
    comfy_run(model, sigmas, latent_noise(32, 32), prompt, prompt, 1.0, sampler)
    return calls


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2s_ancestral", "seeds_3"])
def test_rules_with_a_pass_or_a_memory_act_in_every_call(klein, run_node, sampler):
    auto = dict(scale=1.5, double_layers="0", single_layers="", prompt="positive", start=0.0, end=1.0)
    prompt = conditioning(embeddings(192, 1))

    def done(*nodes):
        rows = []
        model = with_nodes(run_node, klein, *nodes)
        hook = klein.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        result = comfy_run(model, SIGMAS, latent_noise(32, 32), prompt, prompt, 1.0, sampler)
        hook.remove()
        assert torch.isfinite(result).all()
        return result, sum(rows)

    plain, calls = done()
    momentum, same = done(("KleinKitMomentum", dict(alpha=0.3, beta=0.6, start=0.0, end=1.0)))
    both, twice = done(("KleinKitAutoGuidance", auto))
    assert (same, twice) == (calls, 2 * calls)
    assert (momentum - plain).abs().max() > 1e-3 and (both - plain).abs().max() > 1e-3


@pytest.fixture
def samplers(comfy):
    import comfy.samplers

    return comfy.samplers.SAMPLER_NAMES


def test_the_plan_s_passes_are_those_of_samplers_that_ask_once(klein, run_node, samplers, pack):
    prompts, model = [conditioning(embeddings(192, seed)) for seed in (1, 2)], with_nodes(run_node, klein, HALF)

    def passes(sampler):
        rows = []
        hook = klein.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        comfy_run(model, SIGMAS, latent_noise(32, 32), *prompts, 4.0, sampler)
        hook.remove()
        return sum(rows)

    settings = dict(HALF[1]["schedule"], unguided="conditional", sigmas={"steps": STEPS})
    settings = {f"schedule.{name}" if name in ("start", "end") else name: value for name, value in settings.items()}
    planned = {sampler: pack("previews.guidance").preview(settings | {"sampler": sampler}) for sampler in samplers}
    once = {sampler for sampler, plan in planned.items() if passes(sampler) == plan["total"]} - OWN_SIGMAS
    assert once == {sampler for sampler, plan in planned.items() if plan["once"]}


def test_the_index_is_of_the_interval_that_the_sigma_lies_in(klein, run_node, samplers):
    model = with_nodes(run_node, klein, CONSTANT)
    bounds = SIGMAS.tolist()
    for sampler in samplers:
        calls = calls_of(model, sampler, SIGMAS)
        assert {steps for *_, steps in calls} == {STEPS}, sampler
        if sampler not in OWN_SIGMAS:
            assert {index for _, index, _ in calls} == set(range(STEPS)), sampler
        for sigma, index, _ in calls:
            assert bounds[index] >= sigma * (1 - 1e-6), (sampler, sigma, index)
            assert bounds[index + 1] < sigma * (1 - 1e-6) or index == STEPS - 1, (sampler, sigma, index)
        if sampler not in SEVERAL_CALLS_A_STEP:
            assert [index for _, index, _ in calls] == list(range(STEPS)), sampler


@pytest.mark.parametrize(
    "sampler, guided, unguided",
    [
        ("euler", 3, 3),
        ("dpmpp_2m", 3, 3),
        ("res_multistep", 3, 3),
        ("uni_pc", 3, 3),
        ("euler_ancestral", 3, 3),
        # The second call of a step of heun is at the next step's sigma, and belongs to it.
        ("heun", 5, 6),
        ("dpm_2", 6, 5),
        ("dpmpp_sde", 6, 5),
    ],
)
def test_half_of_the_steps_are_guided(klein, run_node, caplog, sampler, guided, unguided):
    caplog.set_level("INFO")
    prompt = conditioning(embeddings(192, 1))
    comfy_run(with_nodes(run_node, klein, HALF), SIGMAS, latent_noise(32, 32), prompt, prompt, 4.0, sampler)
    print(caplog.text)
    assert f"KleinKit: 6 steps, {2 * guided + unguided} passes (cond {guided + unguided}, uncond {guided})" in caplog.text


def test_ksampler_advanced_s_slices_count_their_own_steps(klein, run_node):
    model = with_nodes(run_node, klein, CONSTANT)
    calls = calls_of(model, "euler", SIGMAS[2:6])
    assert [(index, steps) for _, index, steps in calls] == [(0, 3), (1, 3), (2, 3)]


def test_equal_neighbours(klein, run_node):
    model = with_nodes(run_node, klein, CONSTANT)
    calls = calls_of(model, "euler", torch.tensor([1.0, 0.7, 0.7, 0.3, 0.0]))
    assert [index for _, index, _ in calls] == [0, 1, 2, 3]


def test_zero_init_leaves_the_latent_as_it_is(klein, run_node, samplers):
    # Also where the sampler asks for the negative's prediction by itself.
    model = with_nodes(run_node, klein, ("KleinKitCFGZeroStar", dict(optimized_scale=False, zero_init_steps=1)))
    noise, prompt = latent_noise(32, 32), conditioning(embeddings(192, 1))
    for sampler in ("euler", "euler_cfg_pp", "dpmpp_2m", "dpmpp_2m_cfg_pp", "gradient_estimation_cfg_pp"):
        assert sampler in samplers
        done = comfy_run(model, SIGMAS[:2], noise, prompt, prompt, 4.0, sampler)
        # ComfyUI divides what a flow model ends with by 1 − σ.
        assert (done * (1.0 - SIGMAS[1]) - noise).abs().max() < 1e-5, sampler


def sampled_by(function, **options):
    """A sampler object of ComfyUI with a sampling function of one's own."""
    import comfy.samplers

    return comfy.samplers.KSAMPLER(function, options)


def detail_daemon(model, x, sigmas, extra_args=None, callback=None, disable=None, amount=0.0):
    """As Detail Daemon: Euler that tells the model another sigma than its own, in the middle of the run."""
    from comfy.k_diffusion.sampling import sample_euler

    def altered(x, sigma, **kwargs):
        middle = 0 < float(sigma[0]) < 0.97
        return model(x, sigma * (1.0 - amount) if middle else sigma, **kwargs)

    return sample_euler(Passing(model, altered), x, sigmas, extra_args, callback, disable)


def altering(sampler, amount):
    """As Detail Daemon around any sampler of ComfyUI."""
    import comfy.samplers

    inner = comfy.samplers.sampler_object(sampler)

    def around(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def altered(x, sigma, **kwargs):
            middle = 0 < float(sigma[0]) < 0.99
            return model(x, sigma * (1.0 - amount) if middle else sigma, **kwargs)

        return inner.sampler_function(Passing(model, altered), x, sigmas, extra_args, callback, disable)

    return sampled_by(around)


class Passing:
    """A model wrapper as such samplers have: its attributes are the model's."""

    def __init__(self, model, call):
        self.model, self.call = model, call

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize("amount", (0.3, 0.1, -0.02))
def test_a_sampler_that_alters_the_model_s_sigma(klein, run_node, amount):
    calls = calls_of(with_nodes(run_node, klein, CONSTANT), sampled_by(detail_daemon, amount=amount), SIGMAS)
    assert [index for _, index, _ in calls] == list(range(STEPS))


@pytest.mark.parametrize("amount", (0.3, 0.1, -0.05))
@pytest.mark.parametrize(
    "sampler",
    ("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "seeds_2", "seeds_3", "exp_heun_2_x0", "er_sde"),
)
def test_an_altered_sigma_moves_no_call_of_a_step_of_several(klein, run_node, sampler, amount):
    model = with_nodes(run_node, klein, CONSTANT)
    alone, altered = (calls_of(model, one, SIGMAS) for one in (sampler, altering(sampler, amount)))
    assert [sigma for sigma, *_ in altered] != [sigma for sigma, *_ in alone]
    assert [index for _, index, _ in altered] == [index for _, index, _ in alone]


@pytest.mark.parametrize("sampler", ("heunpp2", "sa_solver_pece", "dpm_fast"))
def test_what_is_around_a_sampler_moves_no_call(klein, run_node, sampler):
    model = with_nodes(run_node, klein, CONSTANT)
    assert calls_of(model, altering(sampler, 0.0), SIGMAS) == calls_of(model, sampler, SIGMAS)


def test_a_sampler_that_raises_the_model_s_sigma_up_to_the_first(klein, run_node):
    from comfy.k_diffusion.sampling import sample_euler

    def raising(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def raised(x, sigma, **kwargs):
            return model(x, (sigma * 1.3).clamp(max=1.0), **kwargs)

        return sample_euler(Passing(model, raised), x, sigmas, extra_args, callback, disable)

    calls = calls_of(with_nodes(run_node, klein, CONSTANT), sampled_by(raising), SIGMAS)
    assert [index for _, index, _ in calls] == list(range(STEPS))


@pytest.mark.parametrize("churn", (0.5, 3.0))
@pytest.mark.parametrize("sampler, between", (("euler", 1), ("heun", 2), ("dpm_2", 2)))
def test_a_sampler_that_churns(klein, run_node, sampler, between, churn):
    import comfy.samplers

    churning = comfy.samplers.ksampler(sampler, {"s_churn": churn})
    calls = calls_of(with_nodes(run_node, klein, CONSTANT), churning, SIGMAS)
    first_calls = [index for _, index, _ in calls][::between]
    assert first_calls == list(range(STEPS))


def test_zero_init_of_one_is_one_step_of_a_sampler_that_churns(klein, run_node, caplog):
    import comfy.samplers

    caplog.set_level("INFO")
    model = with_nodes(run_node, klein, ("KleinKitCFGZeroStar", dict(optimized_scale=False, zero_init_steps=1)))
    churning, prompt = comfy.samplers.ksampler("euler", {"s_churn": 3.0}), conditioning(embeddings(192, 1))
    comfy_run(model, SIGMAS, latent_noise(32, 32), prompt, prompt, 1.0, churning)
    assert f"{STEPS} steps, {STEPS - 1} passes (cond {STEPS - 1})" in caplog.text


@pytest.mark.parametrize("sampler", ("euler", "dpm_2", "dpmpp_sde", "dpmpp_2s_ancestral", "seeds_2", "seeds_3"))
def test_adaptive_guidance_ends_between_steps(klein, run_node, samplers, sampler):
    assert sampler in samplers
    passes, model = [], with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": -1.0}))

    def record(executor, x, timestep, model_options, seed=None):
        run = model_options["transformer_options"]["kleinkit_run"]
        passes.append((run.step.index, run.step.passes))
        return executor(x, timestep, model_options, seed)

    from comfy.patcher_extension import WrappersMP

    model.add_wrapper(WrappersMP.PREDICT_NOISE, record)
    prompts = conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2))
    comfy_run(model, SIGMAS, latent_noise(32, 32), *prompts, 4.0, sampler)
    # The threshold is met at once: all calls of the first step are guided, and no other.
    assert {names for index, names in passes if index == 0} == {("cond", "uncond")}
    assert {names for index, names in passes if index > 0} == {("cond",)}


@pytest.mark.parametrize("batch", (1, 2))
@pytest.mark.parametrize("guided_calls", (2, 4))
@pytest.mark.parametrize("sampler", ("heunpp2", "heun", "dpm_2"))
def test_a_step_is_guided_in_all_its_calls_or_in_none(klein, run_node, pack, monkeypatch, sampler, guided_calls, batch):
    """heunpp2 asks at the next two sigmas, and then goes back to the first of them."""
    from comfy.patcher_extension import WrappersMP

    adaptive, seen, decided, passes = pack("guidance.adaptive"), [], {}, {}
    transform = adaptive.Adaptive.transform

    def cosine(cond, uncond):
        # The first picture decides in this call, the second never.
        seen.append(len(seen) >= guided_calls)
        return torch.tensor([1.0 if seen[-1] else 0.0, 0.0])[: len(cond)]

    def record(self, velocities, step, memory):
        done = transform(self, velocities, step, memory)
        decided.setdefault(step.index, set()).add(None if done.unguided is None else tuple(done.unguided.tolist()))
        return done

    def count(executor, x, timestep, model_options, seed=None):
        done = executor(x, timestep, model_options, seed)
        step = model_options["transformer_options"]["kleinkit_run"].step
        passes.setdefault(step.index, set()).add(step.passes)
        return done

    monkeypatch.setattr(adaptive, "cosine", cosine)
    monkeypatch.setattr(adaptive.Adaptive, "transform", record)
    model = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": 0.9}))
    model.add_wrapper(WrappersMP.PREDICT_NOISE, count)
    prompts = conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2))
    comfy_run(model, SIGMAS, latent_noise(32, 32, batch), *prompts, 4.0, sampler)
    assert all(len(of) == 1 for of in (*passes.values(), *decided.values())), (passes, decided)
