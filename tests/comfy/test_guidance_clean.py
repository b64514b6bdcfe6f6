"""A run leaves nothing behind, however it ends."""

import gc
from contextlib import contextmanager

import pytest
import torch
from kleinkit.nano.inside import random_klein
from sampling import comfy_run, conditioning, embeddings, latent_noise, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0])
SKIP = dict(scale=2.0, double_layers="0", single_layers="0", start=0.0, end=1.0, mode="attention", rescale=0.3)
NODES = (
    ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.75}, unguided="unconditional")),
    ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1)),
    ("KleinKitSkipLayerGuidance", SKIP),
    ("KleinKitImageCFG", dict(image_scale=2.0)),
    ("KleinKitRenorm", dict(mode="token", strength=0.5, shrink_only=True)),
    ("KleinKitAdaptiveGuidance", dict(threshold=0.99)),
)

# The call of the model's first single block, in the first step that is not zero; the negative runs on the base model.
PASSES = {"cond": 1, "image": 2, "skip": 3}


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein(double_blocks=1, single_blocks=1)


@pytest.fixture(scope="module")
def base(comfy):
    return random_klein(seed=5, double_blocks=1, single_blocks=1)


@pytest.fixture(scope="module")
def guided(klein, base, run_node):
    return with_nodes(run_node, klein, *NODES, ("KleinKitBaseUncond", {"base_model": base}))


@pytest.fixture(scope="module")
def prompts():
    return [
        conditioning(embeddings(192, seed)[:, :64], reference_latents=[latent_noise(32, 32, seed=3)]) for seed in (1, 2)
    ]


def shape_of(value):
    """A value's structure down to the identity of its leaves."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [shape_of(item) for item in value]
    return id(value)


def state_of(patcher):
    names = ("model_options", "patches", "object_patches", "wrappers", "callbacks", "attachments", "injections", "hook_patches")
    attention = [name for name, _ in patcher.model.named_modules()]
    return shape_of({name: getattr(patcher, name) for name in names}), attention


class Stop(Exception):
    pass


@contextmanager
def failing(module, call):
    """The module raises `Stop` at its `call`-th call."""
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == call:
            raise Stop

    hook = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def interrupt(step, *_):
    import comfy.model_management

    if step == 1:
        raise comfy.model_management.InterruptProcessingException


def sample(guider, callback=None):
    import comfy.samplers

    noise = latent_noise(32, 32)
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), SIGMAS.clone(),
                         callback=callback, disable_pbar=True, seed=0)


@pytest.mark.parametrize("ending", ("whole", "interrupted", *PASSES, "base"))
def test_nothing_is_left_of_a_run(klein, base, guided, prompts, ending):
    import comfy.samplers
    from comfy.model_management import InterruptProcessingException

    def guider():
        guider = comfy.samplers.CFGGuider(guided)
        guider.set_conds(*prompts)
        guider.set_cfg(4.0)
        return guider

    fresh = sample(guider())
    patchers, used = (klein, base, guided), guider()
    before, conds = [state_of(patcher) for patcher in patchers], shape_of(prompts)
    values = [prompt[0][0].clone() for prompt in prompts]
    single = klein.model.diffusion_model.single_blocks[0]
    if ending == "whole":
        sample(used)
    elif ending == "interrupted":
        with pytest.raises(InterruptProcessingException):
            sample(used, interrupt)
    else:
        module = base.model.diffusion_model if ending == "base" else single
        with failing(module, PASSES.get(ending, 1)), pytest.raises(Stop):
            sample(used)
    assert [state_of(patcher) for patcher in patchers] == before
    assert shape_of(prompts) == conds
    assert all(torch.equal(prompt[0][0], value) for prompt, value in zip(prompts, values, strict=True))
    assert used.cfg == 4.0 and set(used.original_conds) == {"positive", "negative"}
    assert torch.equal(sample(guider()), fresh)


def run(model, prompts, cfg=4.0):
    return comfy_run(model, SIGMAS, latent_noise(32, 32), *prompts, cfg)


def test_fifty_runs_leave_no_tensor_and_no_hook(guided, prompts):
    def counts():
        gc.collect()
        tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
        return tensors, state_of(guided)

    first = run(guided, prompts)
    run(guided, prompts)
    before = counts()
    for _ in range(50):
        last = run(guided, prompts)
    assert torch.equal(first, last)
    del last
    assert counts() == before


def test_two_samplers_do_not_share_state(klein, run_node, prompts):
    # What adaptive guidance observed in one run would end the guidance of the next from its first step on.
    adaptive = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": -1.0}))
    other = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": 0.5}))
    alone = [run(model, prompts) for model in (adaptive, other)]
    together = [run(model, prompts) for model in (adaptive, other, adaptive, other)]
    assert all(torch.equal(result, alone[i % 2]) for i, result in enumerate(together))


def test_the_model_before_the_nodes_is_untouched(klein, run_node, prompts):
    before, state = run(klein, prompts), state_of(klein)
    run(with_nodes(run_node, klein, *NODES), prompts)
    assert state_of(klein) == state
    assert torch.equal(run(klein, prompts), before)


class TestDistilledGuard:
    @pytest.fixture
    def load(self, run_node, models):
        def load(distilled_cfg):
            return run_node("KleinKitLoader", diffusion_model=models["distilled"].name, text_encoder="auto", vae="auto",
                            variant="auto", weight_dtype="default", distilled_cfg=distilled_cfg, trim_text_encoder=True)[0]

        return load

    def test_cfg_8_gives_the_pixels_of_cfg_1_and_one_warning_a_run(self, load, prompts, caplog):
        caplog.set_level("INFO")
        model = load("ignore")
        results = [run(model, prompts, cfg) for cfg in (8.0, 8.0, 1.0)]
        assert torch.equal(results[0], results[2]) and torch.equal(results[0], results[1])
        assert caplog.text.count("cfg 8 counts as 1 on this distilled model") == 2
        assert caplog.text.count("KleinKit: 4 steps, 4 passes (cond 4)") == 3

    def test_a_curve_above_1_is_warned_of_too(self, load, prompts, run_node, caplog):
        curve = dict(schedule={"schedule": "curve", "scales": "5, 3, 1"}, unguided="conditional")
        run(with_nodes(run_node, load("ignore"), ("KleinKitCFG", curve)), prompts, 1.0)
        assert caplog.text.count("cfg 5 counts as 1 on this distilled model") == 1

    def test_allow_is_plain_cfg(self, load, prompts, run_node, models):
        plain = run_node("UNETLoader", unet_name=models["distilled"].name, weight_dtype="default")[0]
        assert torch.equal(run(load("allow"), prompts, 8.0), run(plain, prompts, 8.0))

    def test_cfg_below_1_stays(self, load, prompts, run_node, models):
        plain = run_node("UNETLoader", unet_name=models["distilled"].name, weight_dtype="default")[0]
        assert torch.equal(run(load("ignore"), prompts, 0.5), run(plain, prompts, 0.5))
