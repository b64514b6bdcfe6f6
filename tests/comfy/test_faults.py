"""Whatever breaks in a run, wherever it breaks: the error arrives, nothing is left behind, and the next run is as ever."""

import logging

import pytest
import torch
from sampling import latent_noise, with_nodes
from state import no_tensor_kept, shape_of, state_of

SIGMAS = torch.tensor([1.0, 0.7, 0.3, 0.0])
STEPS = len(SIGMAS) - 1
RULES = (
    ("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 1.0}, unguided="conditional")),
    ("KleinKitTCFG", {}),
    ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0)),
    (
        "KleinKitSkipLayerGuidance",
        dict(scale=2.0, double_layers="0", single_layers="0", start=0.0, end=1.0, mode="attention", rescale=0.3),
    ),
    (
        "KleinKitAutoGuidance",
        dict(scale=1.5, double_layers="0", single_layers="", prompt="positive", start=0.0, end=1.0),
    ),
    ("KleinKitSEG", dict(scale=2.0, double_layers="", single_layers="0", start=0.0, end=1.0, blur_sigma=1.0)),
    ("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0)),
    ("KleinKitImageCFG", dict(image_scale=2.0)),
    ("KleinKitRenorm", dict(mode="token", strength=0.5, shrink_only=True)),
    ("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0)),
    ("KleinKitAdaptiveGuidance", dict(threshold=1.0)),
    ("KleinKitDynamicShift", {"shift": {"shift": "flux2"}}),
)
# The passes of every step, in the order in which each model runs them.
PLACES = {
    model: [(step, name) for step in range(1, STEPS + 1) for name in passes]
    for model, passes in {"klein": ("cond", "skip", "weak", "seg"), "base": ("uncond", "image")}.items()
}
# The error, what is patched, the conditionings, the next run and what is kept.
OUTCOMES = 5
SENTENCES = {"error": "^broken on purpose$", "out of memory": "^out of memory on purpose$", "interrupt": "^$"}


@pytest.fixture(scope="module")
def guided(klein, base, run_node):
    return with_nodes(run_node, klein, *RULES, ("KleinKitBaseUncond", {"base_model": base}))


@pytest.fixture(scope="module")
def sample(comfy, prompts):
    """Run a model; the guider's cfg and conds are checked to be its own again, however the run ends."""
    import comfy.samplers

    def sample(model, callback=None, sigmas=SIGMAS):
        noise, guider = latent_noise(32, 32), comfy.samplers.CFGGuider(model)
        guider.set_conds(*prompts)
        guider.set_cfg(4.0)
        try:
            return guider.sample(
                noise,
                torch.zeros_like(noise),
                comfy.samplers.sampler_object("euler"),
                sigmas.clone(),
                callback=callback,
                disable_pbar=True,
                seed=0,
            )
        finally:
            assert guider.cfg == 4.0 and set(guider.original_conds) == {"positive", "negative"}

    return sample


@pytest.fixture
def untouched(klein, base, guided, prompts, sample, record_property):
    """Call it after a fault: it compares what is there, and what the next run gives, with how it was before."""
    fresh = sample(guided, sigmas=SIGMAS[-2:])
    values = [prompt[0][0].clone() for prompt in prompts]

    def now():
        return [state_of(patcher) for patcher in (klein, base, guided)], shape_of(prompts)

    before = now()

    def check():
        assert now() == before
        assert all(torch.equal(prompt[0][0], value) for prompt, value in zip(prompts, values))
        assert torch.equal(sample(guided, sigmas=SIGMAS[-2:]), fresh)
        record_property("count_faults", 1)
        record_property("count_outcomes", OUTCOMES)

    with no_tensor_kept():
        yield check


def breaking(guided, base, run_node, where, fault, call, calls=None):
    """The guided model whose own or whose base's `call`-th pass breaks."""
    from fault_pack import break_pass

    if where == "klein":
        return break_pass(guided, fault, call, calls)
    return run_node("KleinKitBaseUncond", model=guided, base_model=break_pass(base, fault, call, calls))[0]


@pytest.mark.parametrize("where", PLACES)
def test_every_place_is_a_pass_of_the_run(guided, base, run_node, sample, where):
    calls = []
    sample(breaking(guided, base, run_node, where, "none", 0, calls))
    assert len(calls) == len(PLACES[where])


@pytest.mark.parametrize("fault", SENTENCES)
def test_a_fault_in_every_pass_of_every_step(guided, base, run_node, sample, untouched, fault):
    from comfy.model_management import OOM_EXCEPTION, InterruptProcessingException

    error = {"error": RuntimeError, "out of memory": OOM_EXCEPTION, "interrupt": InterruptProcessingException}[fault]
    places = [(where, call) for where in PLACES for call in range(1, len(PLACES[where]) + 1)]
    for where, call in places:
        with pytest.raises(error, match=SENTENCES[fault]):
            sample(breaking(guided, base, run_node, where, fault, call))
        untouched()


def test_nan_in_every_pass_of_every_step_is_reported(guided, base, run_node, sample, untouched, caplog):
    for where, places in PLACES.items():
        for call, (step, name) in enumerate(places, 1):
            caplog.clear()
            assert sample(breaking(guided, base, run_node, where, "nan", call)).isnan().any()
            [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert said.startswith(
                f"KleinKit: NaN or infinity from the model ({name}) in step {step} of {STEPS}, at sigma {SIGMAS[step - 1]:.4g}."
            )
            assert "Klein Skip-Layer Guidance" in said
            caplog.clear()
            untouched()
            assert "NaN" not in caplog.text


def test_nan_that_was_in_the_latent_is_reported(guided, sample, monkeypatch, caplog):
    import comfy.samplers

    noise = comfy.samplers.CFGGuider.inner_sample
    monkeypatch.setattr(
        comfy.samplers.CFGGuider,
        "inner_sample",
        lambda self, first, *args, **kwargs: noise(self, first * float("nan"), *args, **kwargs),
    )
    sample(guided)
    assert f"NaN or infinity in the latent before step 1 of {STEPS}, at sigma 1." in caplog.text


def test_nan_that_another_hook_made_is_reported(guided, sample, caplog):
    model = guided.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] / 0.0)
    sample(model)
    assert f"NaN or infinity from finite predictions in step 1 of {STEPS}, at sigma 1." in caplog.text


def fails_at(call, function=None):
    """A function that fails at its `call`-th call, and else does what `function` does."""
    from fault_pack import fail

    calls = []

    def failing(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            fail()
        return function(*args, **kwargs) if function else None

    return failing


@pytest.mark.parametrize(
    "module, function, call",
    [
        ("engine.sampling", "before_run", 1),
        ("engine.sampling", "plan_step", 2),
        ("engine.sampling", "run_pass", 3),
        ("engine.sampling", "after_step", 2),
        ("engine.extra_pass", "pass_options", 2),
        ("guidance.stack", "apply", 2),
        ("engine.base_pass", "calc_cond_batch", 2),
        ("engine.run_shift", "shifted_schedule", 1),
    ],
)
def test_a_fault_in_a_hook_of_ours(guided, sample, untouched, pack, monkeypatch, module, function, call):
    with monkeypatch.context() as patch:
        module = pack(module)
        patch.setattr(module, function, fails_at(call, getattr(module, function)))
        with pytest.raises(RuntimeError, match="broken on purpose"):
            sample(guided)
    untouched()


def others(comfy):
    from comfy.patcher_extension import WrappersMP

    def through(function):
        return lambda executor, *args, **kwargs: (function(), executor(*args, **kwargs))[1]

    def wrapper(kind):
        return lambda model, failing: model.add_wrapper_with_key(kind, "other", through(failing))

    return {
        "post CFG": lambda model, failing: model.set_model_sampler_post_cfg_function(
            lambda args: (failing(), args["denoised"])[1]
        ),
        "model function": lambda model, failing: model.set_model_unet_function_wrapper(
            lambda apply, args: (failing(), apply(args["input"], args["timestep"], **args["c"]))[1]
        ),
        "block": lambda model, failing: model.set_model_patch_replace(
            lambda args, extra: (failing(), extra["original_block"](args))[1], "dit", "double_block", 0
        ),
        "predict noise": wrapper(WrappersMP.PREDICT_NOISE),
        "batch of passes": wrapper(WrappersMP.CALC_COND_BATCH),
    }


@pytest.mark.parametrize("hook", ["post CFG", "model function", "block", "predict noise", "batch of passes"])
def test_a_fault_in_a_hook_of_others(comfy, guided, sample, untouched, hook):
    model = guided.clone()
    others(comfy)[hook](model, fails_at(2))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sample(model)
    untouched()


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_interrupted_between_steps(guided, sample, untouched, step):
    from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted
    from fault_pack import interrupt

    # What ComfyUI's progress bar does after each step.
    def progress(i, *_):
        if i == step - 1:
            interrupt()
            throw_exception_if_processing_interrupted()

    with pytest.raises(InterruptProcessingException):
        sample(guided, progress)
    untouched()
