"""One class makes a guidance method, also with a pass and a memory of its own: this one is in no file of the pack."""

import gc
import weakref
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.0])
POSITIVE, NEGATIVE = conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2))
STRENGTH, KEPT = 0.5, 0.7
BLOCK = ("single_block", 2)


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein()


@pytest.fixture
def echo(pack):
    """A rule whose pass runs without a block, and that adds a running mean of the difference which that makes."""
    rule = pack("guidance.rule")

    @dataclass(frozen=True)
    class Echo(rule.Rule):
        node: ClassVar[str] = "TestEcho"
        title: ClassVar[str] = "Test Echo"
        order: ClassVar[int] = rule.ADD
        first: int = 1

        @property
        def passes(self):
            return (rule.ExtraPass("echo", blocks={BLOCK: lambda before: lambda args, extra: args}),)

        def needs(self, step):
            return ("echo",) if step.index >= self.first else ()

        def transform(self, velocities, step, memory):
            v = velocities
            if "echo" not in v.extra:
                return v
            mean = KEPT * memory.get("mean", 0.0) + (v.cond - v.extra["echo"])
            memory["mean"] = mean
            seen.append(weakref.ref(mean))
            return replace(v, guided=v.guided + STRENGTH * mean)

    seen = []
    Echo.seen = seen
    return Echo()


def run(model, cfg=4.0, noise=None):
    return comfy_run(model, SIGMAS, latent_noise(32, 32) if noise is None else noise, POSITIVE, NEGATIVE, cfg)


def by_hand(klein, cfg):
    """The same run: Euler steps, and each pass by ComfyUI's own sampler."""
    from comfy.patcher_extension import WrappersMP

    def skipped(args, extra):
        return args

    without = klein.clone()
    without.set_model_patch_replace(skipped, "dit", *BLOCK)
    predictions = {}

    def velocity(model, x, sigma, scale):
        """What the model predicts at a sigma, and no more."""

        def ask(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
            predictions["x0"] = guider(x, torch.full((len(x),), sigma), model_options=extra_args["model_options"])
            return noise

        model = model.clone()
        model.add_wrapper(WrappersMP.SAMPLER_SAMPLE, ask)
        comfy_run(model, SIGMAS[:2], x, POSITIVE, NEGATIVE, scale)
        return x - predictions["x0"]

    x, mean = latent_noise(32, 32), 0.0
    for i, (sigma, following) in enumerate(zip(SIGMAS.tolist(), SIGMAS.tolist()[1:])):
        guided = velocity(klein, x, sigma, cfg)
        if i >= 1:
            mean = KEPT * mean + velocity(klein, x, sigma, 1.0) - velocity(without, x, sigma, 1.0)
            guided = guided + STRENGTH * mean
        x = x + guided / sigma * (following - sigma)
    return x


@pytest.mark.parametrize("cfg", (1.0, 4.0))
def test_it_does_what_it_says(klein, pack, echo, cfg, caplog):
    caplog.set_level("INFO")
    guided = run(pack("engine.sampling").with_rule(klein, echo), cfg)
    expected = by_hand(klein, cfg)
    assert (run(klein, cfg) - expected).abs().max() > 1e-2
    assert (guided - expected).abs().max() <= 1e-5 * expected.abs().max()
    passes = "3 steps, 5 passes (cond 3, echo 2)" if cfg == 1.0 else "3 steps, 8 passes (cond 3, uncond 3, echo 2)"
    assert f"KleinKit: {passes} with Test Echo." in caplog.text


def test_its_pass_runs_only_the_tail(klein, pack, echo):
    rows = []
    hooks = [
        block.register_forward_pre_hook(lambda module, args: rows.append(1))
        for kind in ("double_blocks", "single_blocks")
        for block in getattr(klein.model.diffusion_model, kind)
    ]
    try:
        run(pack("engine.sampling").with_rule(klein, echo), 1.0)
    finally:
        for hook in hooks:
            hook.remove()
    # 2 + 4 blocks a positive pass; of the tail, single block 2 is left out and 3 runs.
    assert len(rows) == 3 * 6 + 2 * 1


def test_its_memory_lives_for_one_run(klein, pack, echo):
    model = pack("engine.sampling").with_rule(klein, echo)
    first, again = run(model), run(model)
    assert torch.equal(first, again)
    del first, again
    gc.collect()
    assert len(echo.seen) == 4 and not any(kept() is not None for kept in echo.seen)


def test_its_memory_is_gone_after_a_fault(klein, pack, echo):
    model = pack("engine.sampling").with_rule(klein, echo)

    def fail(args):
        if echo.seen:
            raise RuntimeError("broken on purpose")
        return args["denoised"]

    broken = model.clone()
    broken.set_model_sampler_post_cfg_function(fail)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        run(broken)
    gc.collect()
    assert echo.seen and not any(kept() is not None for kept in echo.seen)


@pytest.mark.parametrize("order", (0, 1))
def test_it_composes_in_either_order(klein, pack, echo, run_node, order):
    with_rule = pack("engine.sampling").with_rule
    renorm = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=False))
    first = with_rule(with_nodes(run_node, klein, renorm), echo)
    second = with_nodes(run_node, with_rule(klein, echo), renorm)
    assert torch.equal(run(first), run(second))
    assert not torch.allclose(run(first), run(with_nodes(run_node, klein, renorm)), atol=1e-3)
