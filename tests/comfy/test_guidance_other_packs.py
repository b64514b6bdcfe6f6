"""Guidance next to other packs' hooks and ComfyUI's own guidance nodes: both take effect."""

import re
from operator import itemgetter

import pytest
import torch
from guidance_nodes import skips
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

ONE_STEP = torch.tensor([0.8, 0.0])
SIX_STEPS = torch.linspace(1.0, 0.0, 7)
RENORM = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=False))
ZERO_STAR = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0))
SLERP = ("KleinKitSlerpCFG", {})
SKIP, _ = skips("1")
LATE = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"))
COMFYUI_SKIP = (
    "SkipLayerGuidanceDiT",
    dict(double_layers="1", single_layers="", scale=1.5, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0),
)


@pytest.fixture(scope="module")
def klein(comfy):
    # In seed 0's one step, CFG-Zero* scales the negative that TCFG made by nearly 1.
    return small_klein(seed=1)


def run(model, cfg=4.0, sigmas=ONE_STEP):
    return comfy_run(
        model, sigmas, latent_noise(64, 64), conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2)), cfg
    )


def hooked(model, kind, hook):
    model = model.clone()
    getattr(model, f"set_model_sampler_{kind}_function")(hook)
    return model


def inner(one, other):
    return (one * other).sum((1, 2, 3), keepdim=True)


def ppm_tangential_damping(args):
    """As ComfyUI-ppm's pre-CFG hook: the negative without a part of what it has in common with the positive."""
    x, (cond, uncond) = args["input"], args["conds_out"]
    v_cond, v_uncond = x - cond, x - uncond
    return [cond, uncond + 0.3 * inner(v_cond, v_uncond) / inner(v_cond, v_cond) * v_cond]


def kjnodes_cfg_zero_star(args):
    """As KJNodes' CFG-Zero*, which takes ComfyUI's one place for a combination of one's own."""
    cond, uncond = args["cond"], args["uncond"]
    scaled = uncond * inner(cond, uncond) / inner(uncond, uncond)
    return scaled + args["cond_scale"] * (cond - scaled)


def sd_perturbed_attention(args):
    """As sd-perturbed-attention's post-CFG hook: a pass of its own with a block's attention perturbed, on top."""
    import comfy.model_patcher
    import comfy.samplers

    def perturbed(block, extra):
        options = {**block["transformer_options"], "optimized_attention_override": values}
        return extra["original_block"]({**block, "transformer_options": options})

    def values(attention, q, k, v, heads, *_, **__):
        return v.transpose(1, 2).flatten(2)

    options = comfy.model_patcher.set_model_options_patch_replace(
        args["model_options"].copy(), perturbed, "dit", "single_block", 1)  # fmt: skip
    (worse,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
    return args["denoised"] + 1.5 * (args["cond_denoised"] - worse)


def ppm_cfg_limiter(args):
    """As ComfyUI-ppm's CFGLimiter where it does not guide."""
    return args["cond_denoised"]


def velocities(model, cfg=4.0, sigmas=SIX_STEPS):
    """‖v‖ and ‖v_c‖ of every call, as the sampler gets v, and the model says v_c."""
    from comfy.patcher_extension import WrappersMP

    norms, model = [], model.clone()

    def record(executor, x, timestep, model_options, seed=None):
        made = executor(x, timestep, model_options, seed)
        norms.append([float((x - x0).norm()) for x0 in (made, positives.pop(0))])
        return made

    def positive(args):
        positives[:] = [args["cond_denoised"]]
        return args["denoised"]

    positives = []
    model.set_model_sampler_post_cfg_function(positive)
    model.add_wrapper(WrappersMP.PREDICT_NOISE, record)
    run(model, cfg, sigmas)
    return norms


def renorm_has_the_last_word(klein, run_node, kind, hook):
    """Behind another node's change, the guided velocity is as large as the positive's."""
    theirs = hooked(klein, kind, hook)
    for guided, positive in velocities(with_nodes(run_node, theirs, RENORM)):
        assert guided == pytest.approx(positive, rel=1e-5)
    assert max(abs(guided / positive - 1.0) for guided, positive in velocities(theirs)) > 1e-3


@pytest.mark.parametrize("node", (RENORM, ZERO_STAR, SLERP, SKIP), ids=lambda node: node[0])
class TestBothTakeEffect:
    def test_a_pre_cfg_hook(self, klein, run_node, node):
        theirs = hooked(klein, "pre_cfg", ppm_tangential_damping)
        both, ours = run(with_nodes(run_node, theirs, node)), run(with_nodes(run_node, klein, node))
        assert not torch.allclose(both, ours, atol=1e-3) and not torch.allclose(both, run(theirs), atol=1e-3)
        # The rules see what the hook made: the same as if the model had said it.
        after = hooked(with_nodes(run_node, klein, node), "pre_cfg", ppm_tangential_damping)
        assert torch.equal(both, run(after))

    @pytest.mark.parametrize("kind, hook", (("post_cfg", sd_perturbed_attention), ("cfg", kjnodes_cfg_zero_star)))
    def test_a_hook_of_the_combination(self, klein, run_node, node, kind, hook):
        if node is RENORM:
            renorm_has_the_last_word(klein, run_node, kind, hook)
            return
        theirs, ours = hooked(klein, kind, hook), with_nodes(run_node, klein, node)
        change = run(ours) - run(klein)
        assert change.abs().max() > 1e-3 and not torch.allclose(run(theirs), run(klein), atol=1e-3)
        for both in (with_nodes(run_node, theirs, node), hooked(ours, kind, hook)):
            assert torch.allclose(run(both), run(theirs) + change, atol=1e-5)

    def test_a_hook_that_gives_up_guidance_has_the_last_word_behind_ours(self, klein, run_node, node):
        behind = hooked(with_nodes(run_node, klein, node), "post_cfg", ppm_cfg_limiter)
        assert torch.equal(run(behind), run(hooked(klein, "post_cfg", ppm_cfg_limiter)))

    def test_noise_on_the_prompts(self, klein, run_node, node):
        noised = with_ppm_cads(klein)
        theirs, ours = run(noised[0]), run(with_nodes(run_node, klein, node))
        after = with_ppm_cads(with_nodes(run_node, klein, node))
        both = run(with_nodes(run_node, noised[0], node)), run(after[0])
        assert torch.equal(*both)
        assert not torch.allclose(both[0], theirs, atol=1e-3) and not torch.allclose(both[0], ours, atol=1e-3)
        assert [len(noised[1]), len(after[1])] == [2, 1]

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


def with_ppm_cads(model):
    """As ComfyUI-ppm's CADS, in ComfyUI's one place for batches of one's own: noise on the prompts, the same each call.

    Returns:
        `(clone, a list that grows with every call)`.
    """
    import comfy.samplers

    calls = []

    def noised(cond):
        text = cond["model_conds"]["c_crossattn"]
        noise = torch.randn(text.cond.shape, generator=torch.Generator().manual_seed(0)) * 0.05
        return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": text._copy_with(text.cond + noise)}}

    def calc_cond_batch(args):
        calls.append(None)
        conds = [cond and [noised(part) for part in cond] for cond in args["conds"]]
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])

    return hooked(model, "calc_cond_batch", calc_cond_batch), calls


def with_teacache(model):
    """As TeaCache and its kin: ComfyUI's one place around the model, here noting which passes share a call."""
    calls, model = [], model.clone()

    def wrapper(apply_model, args):
        calls.append(sorted(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    return model, calls


def test_a_wrapper_of_the_model_sees_every_pass(klein, run_node):
    wrapped, calls = with_teacache(klein)
    assert torch.equal(run(with_nodes(run_node, wrapped, SKIP)), run(with_nodes(run_node, klein, SKIP)))
    assert calls == [[0, 1], [0]]


@pytest.mark.parametrize("mode, fewer", (("block", 2), ("attention", 2)))
def test_another_attention_serves_the_skip_pass_too(klein, run_node, mode, fewer):
    # As KJNodes' PatchSageAttentionKJ. Of 2 + 4 blocks the tail is the last 3, of which one does without attention.
    calls, patched = [], klein.clone()

    def sage_attention(attention, *args, **kwargs):
        calls.append(None)
        return attention(*args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = sage_attention
    node = (SKIP[0], SKIP[1] | {"mode": mode})
    assert torch.equal(run(with_nodes(run_node, patched, node)), run(with_nodes(run_node, klein, node)))
    assert len(calls) == 6 + fewer


def test_a_replaced_block_is_replaced_in_the_skip_pass_too(klein, run_node):
    # As packs that cache or weigh blocks; ComfyUI's own node, whose skip pass runs the whole model, is the reference.
    patched = klein.clone()

    def weigh(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.2}

    for block in (0, 1, 2):
        patched.set_model_patch_replace(weigh, "dit", "single_block", block)
    theirs = (COMFYUI_SKIP[0], COMFYUI_SKIP[1] | dict(double_layers="", single_layers="1", scale=SKIP[1]["scale"]))
    ours, whole = (run(with_nodes(run_node, patched, node)) for node in (SKIP, theirs))
    assert (ours - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert not torch.allclose(ours, run(with_nodes(run_node, klein, SKIP)), atol=1e-3)


@pytest.mark.parametrize("node", (RENORM, SKIP, LATE), ids=lambda node: node[0])
def test_what_another_pack_keeps_in_the_options_lasts_for_the_run(klein, run_node, node):
    # As sd-perturbed-attention's Momentum Guidance: its average over the steps so far.
    seen = []

    def momentum(args):
        options = args["model_options"]
        options["momentum"] = options.get("momentum", 0) + 1
        options["transformer_options"]["momentum"] = options["transformer_options"].get("momentum", 0) + 1
        seen.append((options["momentum"], options["transformer_options"]["momentum"]))
        return args["denoised"]

    for _ in range(2):
        run(hooked(with_nodes(run_node, klein, node), "post_cfg", momentum), sigmas=SIX_STEPS)
    assert seen == 2 * [(step, step) for step in range(1, 7)]


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


@pytest.mark.parametrize(
    "build, warning",
    [
        (lambda run_node, model: override(with_nodes(run_node, model, LATE), 7.0), "Another node changed cfg to 7"),
        (
            lambda run_node, model: hooked(with_nodes(run_node, model, SLERP), "cfg", kjnodes_cfg_zero_star),
            "Klein Slerp CFG and another node's function (comfy.test_guidance_other_packs.kjnodes_cfg_zero_star)",
        ),
        (
            lambda run_node, model: with_nodes(run_node, model, ZERO_STAR, ("CFGZeroStar", {})),
            "Klein CFG-Zero* and ComfyUI's CFGZeroStar both scale",
        ),
        (lambda run_node, model: with_nodes(run_node, model, RENORM), None),
        (
            # A hook without code of its own is nobody's CFG-Zero*.
            lambda run_node, model: hooked(with_nodes(run_node, model, ZERO_STAR), "post_cfg", itemgetter("denoised")),
            None,
        ),
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
    assert caplog.text.count("does not take its scale from cfg") == 1


def kjnodes_scheduled_cfg(model, scales):
    """As KJNodes' ScheduledCFGGuidance: `cfg` is a list, a scale a step; outside of its range there is no negative."""
    import comfy.samplers

    class ScheduledCFG(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            step = int((SIX_STEPS - timestep[0]).abs().argmin())
            guided = step < len(SIX_STEPS) // 2
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, self.conds["negative"] if guided else None, self.conds["positive"],
                self.cfg[step] if guided else 1.0, model_options=model_options, seed=seed)  # fmt: skip

    guider = ScheduledCFG(model)
    guider.set_conds(conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2)))
    guider.set_cfg(scales)
    return guider


def res4lyf_guider(model, scales):
    """As RES4LYF's SharkGuider: scales by kind of latent, and `cfg` is not looked at."""
    import comfy.samplers

    class SharkGuider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, self.conds["negative"], self.conds["positive"], scales[0],
                model_options=model_options, seed=seed)  # fmt: skip

    guider = SharkGuider(model)
    guider.set_conds(conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2)))
    guider.set_cfg(scales[0])
    return guider


@pytest.mark.parametrize("make", (kjnodes_scheduled_cfg, res4lyf_guider))
def test_guiders_of_other_packs_keep_their_scales(klein, run_node, caplog, make):
    plain = sample_with(run_node, make(klein, [4.0] * 6))
    scheduled = sample_with(run_node, make(with_nodes(run_node, klein, LATE), [4.0] * 6))
    renormed = sample_with(run_node, make(with_nodes(run_node, klein, RENORM), [4.0] * 6))
    assert torch.equal(scheduled, plain) and not torch.allclose(renormed, plain, atol=1e-3)
    assert caplog.text.count("does not take its scale from cfg") == 1


def test_a_guider_without_a_negative(klein, run_node, caplog):
    model, prompt = with_nodes(run_node, klein, SKIP, RENORM), conditioning(embeddings(192, 1))
    (basic,) = run_node("BasicGuider", model=model, conditioning=prompt)
    (at_cfg_1,) = run_node("CFGGuider", model=model, positive=prompt, negative=prompt, cfg=1.0)
    assert torch.equal(sample_with(run_node, basic), sample_with(run_node, at_cfg_1))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


NEGATIVE_LATE = ("KleinKitCFG", LATE[1] | {"unguided": "unconditional"})


def frequency_decoupled(args):
    """As packs that combine by frequency: it takes whatever it gets for a negative."""
    import torch.nn.functional as F

    def low(v):
        return F.interpolate(F.avg_pool2d(v, 2), scale_factor=2)

    cond, uncond = args["cond"], args["uncond"]
    return low(cond) + 6.0 * (cond - low(cond) - uncond + low(uncond)) + 3.0 * (low(cond) - low(uncond))


@pytest.mark.parametrize(
    "node", (LATE, NEGATIVE_LATE, ("KleinKitAdaptiveGuidance", {"threshold": -1.0})), ids=("cond", "uncond", "adaptive")
)
@pytest.mark.parametrize("kind, hook", (("cfg", frequency_decoupled), ("pre_cfg", ppm_tangential_damping)))
def test_a_step_of_one_pass_has_nothing_to_combine(klein, run_node, node, kind, hook):
    # The second half of the run, from the same latent: with their hook and without it.
    hooked_model = with_nodes(run_node, hooked(klein, kind, hook), node)
    from comfy.patcher_extension import WrappersMP

    seen = []

    def record(executor, x, timestep, model_options, seed=None):
        made = executor(x, timestep, model_options, seed)
        if len(model_options["transformer_options"]["kleinkit_run"].step.passes) == 1:
            seen.append((x, timestep, made))
        return made

    hooked_model.add_wrapper(WrappersMP.PREDICT_NOISE, record)
    run(hooked_model, sigmas=SIX_STEPS)
    unguided = "unconditional" if node is NEGATIVE_LATE else "conditional"
    alone = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.999, "end": 1.0}, unguided=unguided))
    assert len(seen) >= 3
    for x, timestep, made in seen:
        assert torch.equal(made, prediction(with_nodes(run_node, klein, alone), x, timestep))


def prediction(model, x, timestep):
    """x0 of one model call at the first of two steps."""
    from comfy.patcher_extension import WrappersMP

    made, model = [], model.clone()

    def ask(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        made.append(guider(x, timestep, model_options=extra_args["model_options"]))
        return noise

    model.add_wrapper(WrappersMP.SAMPLER_SAMPLE, ask)
    sigma = float(timestep[0])
    run(model, sigmas=torch.tensor([sigma, sigma / 2, 0.0]))
    return made[0]


def test_the_guard_of_a_distilled_model_holds_in_a_guider_that_does_not_read_cfg(klein, run_node, pack, caplog):
    caplog.set_level("INFO")
    guarded = pack("engine.sampling").with_rule(klein, pack("guidance.distilled").Distilled())
    at_cfg_1 = run(klein, 1.0, SIX_STEPS)
    sampled = sample_with(run_node, res4lyf_guider(guarded, [5.0] * 6))
    (one,) = run_node(
        "CFGGuider", model=klein, positive=conditioning(embeddings(192, 1)), negative=conditioning(embeddings(192, 2)), cfg=1.0
    )
    assert (sampled - sample_with(run_node, one)).abs().max() <= 1e-5 * at_cfg_1.abs().max()
    assert "12 passes (cond 6, uncond 6)" in caplog.text
    assert caplog.text.count("SharkGuider does not take its scale from cfg, so Klein Loader cannot save passes") == 1


def test_a_guider_that_reads_cfg_in_its_own_way_is_not_warned_of(klein, run_node, caplog):
    import comfy.samplers

    class OfANumber(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, self.conds["negative"], self.conds["positive"], self.cfg,
                model_options=model_options, seed=seed)  # fmt: skip

    guider = OfANumber(with_nodes(run_node, klein, LATE))
    guider.set_conds(conditioning(embeddings(192, 1)), conditioning(embeddings(192, 2)))
    guider.set_cfg(4.0)
    sample_with(run_node, guider)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("node", (LATE, ("KleinKitAdaptiveGuidance", {"threshold": -1.0})), ids=("interval", "adaptive"))
def test_normalized_attention_guidance_keeps_both_passes(klein, run_node, caplog, node):
    caplog.set_level("INFO")
    (nag,) = run_node("NAGuidance", model=klein, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    run(with_nodes(run_node, nag, node), sigmas=SIX_STEPS)
    assert "12 passes (cond 6, uncond 6)" in caplog.text
    assert caplog.text.count("asks for both passes in every step") == 1


def test_normalized_attention_guidance_and_the_skip_pass(klein, run_node):
    (nag,) = run_node("NAGuidance", model=klein, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    theirs = (COMFYUI_SKIP[0], COMFYUI_SKIP[1] | dict(double_layers="", single_layers="1", scale=SKIP[1]["scale"]))
    ours, whole = (run(with_nodes(run_node, nag, node)) for node in (SKIP, theirs))
    assert (ours - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_base_uncond_says_that_it_ends_normalized_attention_guidance(klein, run_node, caplog):
    (nag,) = run_node("NAGuidance", model=klein, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    run(with_nodes(run_node, nag, ("KleinKitBaseUncond", {"base_model": small_klein(seed=5)})))
    assert caplog.text.count("Klein Base Uncond takes the negative out of the batch") == 1


CACHE = dict(reuse_threshold=0.5, start_percent=0.0, end_percent=1.0, verbose=False)
MANY_STEPS = torch.linspace(1.0, 0.0, 21)


def test_a_skip_pass_of_no_weight_does_not_disturb_easy_cache(klein, run_node):
    (cached,) = run_node("EasyCache", model=klein, **CACHE)
    tiny = (SKIP[0], SKIP[1] | {"scale": 1e-6})
    plain, both = run(cached, sigmas=MANY_STEPS), run(with_nodes(run_node, cached, tiny), sigmas=MANY_STEPS)
    assert not torch.allclose(plain, run(klein, sigmas=MANY_STEPS), atol=1e-3)
    assert (both - plain).abs().max() <= 1e-3


def test_no_skip_pass_where_easy_cache_answers(klein, run_node, caplog):
    caplog.set_level("INFO")
    (cached,) = run_node("EasyCache", model=klein, **CACHE)
    run(with_nodes(run_node, cached, SKIP), sigmas=MANY_STEPS)
    [counts] = re.findall(r"KleinKit: 20 steps, \d+ passes \(cond (\d+), uncond (\d+), skip (\d+)\)", caplog.text)
    cond, uncond, skip = map(int, counts)
    assert cond == uncond == 20 and 0 < skip < 20
    assert caplog.text.count("does nothing in steps that a cache answers") == 1
