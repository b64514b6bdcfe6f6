"""Guidance next to other packs' hooks and ComfyUI's own guidance nodes: both take effect."""

import pytest
import torch
from kleinkit.nano.inside import random_klein
from sampling import comfy_run, conditioning, embeddings, latent_noise, with_nodes

ONE_STEP = torch.tensor([0.8, 0.0])
RENORM = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=False))
ZERO_STAR = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0))
SLERP = ("KleinKitSlerpCFG", {})
SKIP = (
    "KleinKitSkipLayerGuidance",
    dict(scale=2.0, double_layers="", single_layers="1", start=0.0, end=1.0, mode="block", rescale=0.0),
)
LATE = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"))
COMFYUI_SKIP = (
    "SkipLayerGuidanceDiT",
    dict(double_layers="1", single_layers="", scale=1.5, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0),
)


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein()


def run(model, cfg=4.0, sigmas=ONE_STEP):
    return comfy_run(
        model, sigmas, latent_noise(64, 64), conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2)), cfg
    )


def hooked(model, kind, hook):
    model = model.clone()
    getattr(model, f"set_model_sampler_{kind}_function")(hook)
    return model


def darker_negative(args):
    """As a pre-CFG hook of another pack: a change of the negative before the combination."""
    cond, uncond = args["conds_out"]
    return [cond, uncond * 0.9]


def brighter(args):
    """As a post-CFG hook of another pack: something on top of the combination."""
    return args["denoised"] + 0.1 * args["cond_denoised"]


def twice_the_guidance(args):
    """As a `sampler_cfg_function` of another pack: its own combination."""
    return args["uncond"] + 2.0 * args["cond_scale"] * (args["cond"] - args["uncond"])


@pytest.mark.parametrize("node", (RENORM, ZERO_STAR, SLERP, SKIP), ids=lambda node: node[0])
class TestBothTakeEffect:
    def test_a_pre_cfg_hook(self, klein, run_node, node):
        theirs = hooked(klein, "pre_cfg", darker_negative)
        both, ours = run(with_nodes(run_node, theirs, node)), run(with_nodes(run_node, klein, node))
        assert not torch.allclose(both, ours, atol=1e-3) and not torch.allclose(both, run(theirs), atol=1e-3)
        # The rules see what the hook made: the same as if the model had said it.
        after = hooked(with_nodes(run_node, klein, node), "pre_cfg", darker_negative)
        assert torch.equal(both, run(after))

    @pytest.mark.parametrize("kind, hook", (("post_cfg", brighter), ("cfg", twice_the_guidance)))
    def test_a_hook_of_the_combination(self, klein, run_node, node, kind, hook):
        theirs, ours = hooked(klein, kind, hook), with_nodes(run_node, klein, node)
        change = run(ours) - run(klein)
        assert change.abs().max() > 1e-3
        for both in (with_nodes(run_node, theirs, node), hooked(ours, kind, hook)):
            assert torch.allclose(run(both), run(theirs) + change, atol=1e-5)

    @pytest.mark.parametrize(
        "other, inputs",
        [
            ("CFGNorm", dict(strength=0.9)),
            ("APG", dict(eta=0.5, norm_threshold=2.0, momentum=0.0)),
            ("TCFG", {}),
            COMFYUI_SKIP,
        ],
    )
    def test_comfyui_s_own_nodes(self, klein, run_node, node, other, inputs):
        theirs, ours = run(with_nodes(run_node, klein, (other, inputs))), run(with_nodes(run_node, klein, node))
        for order in ((node, (other, inputs)), ((other, inputs), node)):
            both = run(with_nodes(run_node, klein, *order))
            assert torch.isfinite(both).all()
            assert not torch.allclose(both, theirs, atol=1e-3) and not torch.allclose(both, ours, atol=1e-3)


def override(model, cfg):
    """ComfyUI's CFGOverride, which ComfyUI before 0.26 does not have, on all of the steps."""
    from comfy.patcher_extension import WrappersMP

    def predict_noise(executor, *args, **kwargs):
        guider = executor.class_obj
        before, guider.cfg = guider.cfg, cfg
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = before

    model = model.clone()
    model.add_wrapper(WrappersMP.PREDICT_NOISE, predict_noise)
    return model


@pytest.mark.parametrize("cfg", (1.0, 7.0))
def test_another_node_s_cfg_counts(klein, run_node, cfg):
    expected = run(with_nodes(run_node, klein, ZERO_STAR), cfg)
    assert torch.equal(run(override(with_nodes(run_node, klein, ZERO_STAR), cfg)), expected)
    assert torch.equal(run(with_nodes(run_node, override(klein, cfg), ZERO_STAR)), expected)


SIX_STEPS = torch.linspace(1.0, 0.0, 7)


@pytest.mark.parametrize(
    "build, warning",
    [
        (lambda run_node, model: override(with_nodes(run_node, model, LATE), 7.0), "another node changed cfg to 7"),
        (
            lambda run_node, model: hooked(with_nodes(run_node, model, SLERP), "cfg", twice_the_guidance),
            "KleinKitSlerpCFG and another node's sampler_cfg_function both combine",
        ),
        (
            lambda run_node, model: with_nodes(run_node, model, ZERO_STAR, ("CFGZeroStar", {})),
            "KleinKitCFGZeroStar and ComfyUI's CFGZeroStar both scale",
        ),
        (lambda run_node, model: with_nodes(run_node, model, RENORM), None),
    ],
)
def test_a_combination_without_a_meaning_is_warned_of_once(klein, run_node, caplog, build, warning):
    run(build(run_node, klein), sigmas=SIX_STEPS)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning in sentence for sentence in said] == ([True] if warning else [])


def sample_with(run_node, guider):
    """SamplerCustomAdvanced, six Euler steps."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    (sampler,) = run_node("KSamplerSelect", sampler_name="euler")
    latent = {"samples": torch.zeros(1, 128, 4, 4)}
    return run_node("SamplerCustomAdvanced", noise=Noise_RandomNoise(1), guider=guider, sampler=sampler,
                    sigmas=SIX_STEPS, latent_image=latent)[0]["samples"]  # fmt: skip


def test_guiders_with_scales_of_their_own(klein, run_node, caplog):
    positive, negative = conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2))
    model = with_nodes(run_node, klein, LATE)
    (guider,) = run_node("DualCFGGuider", model=model, cond1=positive, cond2=positive, negative=negative, cfg_conds=4.0,
                         cfg_cond2_negative=4.0, style="regular")  # fmt: skip
    assert torch.isfinite(sample_with(run_node, guider)).all()
    assert caplog.text.count("has scales of its own") == 1


def test_a_guider_without_a_negative(klein, run_node, caplog):
    model, prompt = with_nodes(run_node, klein, SKIP, RENORM), conditioning(embeddings(192, 1))
    (basic,) = run_node("BasicGuider", model=model, conditioning=prompt)
    (at_cfg_1,) = run_node("CFGGuider", model=model, positive=prompt, negative=prompt, cfg=1.0)
    assert torch.equal(sample_with(run_node, basic), sample_with(run_node, at_cfg_1))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
