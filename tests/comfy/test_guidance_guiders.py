"""Every guider that ComfyUI ships: our nodes act in it as they say, or one warning names what does not."""

import inspect
import re

import pytest
import torch
from guidance_nodes import skips
from releases import is_older, may_lack
from sampling import conditioning, embeddings, latent_noise, small_klein, warnings, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
STEPS = len(SIGMAS) - 1
SHAPE = dict(double_blocks=1, single_blocks=2)
POSITIVE, SECOND, NEGATIVE = (conditioning(embeddings(192, seed)) for seed in (1, 3, 2))
CONSTANT = ("KleinKitCFG", dict(schedule={"schedule": "constant"}, unguided="conditional"))
FIRST_HALF = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"))
NO_POSITIVE = ("KleinKitCFG", FIRST_HALF[1] | {"unguided": "unconditional"})
SKIP, COMFYUI_SKIP = skips("1")
AUTO = (
    "KleinKitAutoGuidance",
    dict(scale=2.0, double_layers="", single_layers="1", prompt="both", start=0.0, end=1.0),
)
MOMENTUM = ("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0))


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(**SHAPE)


@pytest.fixture(scope="module")
def other(comfy):
    """Another model of the same shape."""
    return small_klein(seed=5, **SHAPE)


@pytest.fixture(scope="module")
def guiders(comfy, run_node, other):
    """`{node: (model, cfg) → guider}` of those that this ComfyUI has."""
    builders = {
        "CFGGuider": lambda model, cfg: dict(model=model, positive=POSITIVE, negative=NEGATIVE, cfg=cfg),
        "BasicGuider": lambda model, cfg: dict(model=model, conditioning=POSITIVE),
        "DualCFGGuider": lambda model, cfg: dict(
            model=model, cond1=POSITIVE, cond2=SECOND, negative=NEGATIVE, cfg_conds=cfg, cfg_cond2_negative=cfg, style="regular"
        ),
        "DualModelGuider": lambda model, cfg: dict(
            model=model, model_negative=other, positive=POSITIVE, negative=NEGATIVE, cfg=cfg
        ),
        "PerpNegGuider": lambda model, cfg: dict(
            model=model, positive=POSITIVE, negative=NEGATIVE, empty_conditioning=SECOND, cfg=cfg, neg_scale=1.0
        ),
        "LTXVDualCFGGuider": lambda model, cfg: dict(
            model=model, positive=POSITIVE, negative=NEGATIVE, video_cfg=cfg, audio_cfg=cfg
        ),
    }
    found = {
        name
        for name, node in comfy.NODE_CLASS_MAPPINGS.items()
        if "GUIDER" in getattr(node, "RETURN_TYPES", ()) and not node.__module__.startswith("custom_nodes")
    }
    assert found <= builders.keys(), "ComfyUI has a guider that this test does not know."
    return {name: lambda model, cfg, name=name: run_node(name, **builders[name](model, cfg))[0] for name in found}


GUIDERS = ("CFGGuider", "BasicGuider", "DualCFGGuider", "DualModelGuider", "PerpNegGuider", "LTXVDualCFGGuider")


@pytest.fixture(params=GUIDERS)
def guider(request, guiders):
    # DualModelGuider is new in ComfyUI 0.24, LTXVDualCFGGuider after 0.30: an older one has nothing to test here.
    return guiders.get(request.param, guiders["CFGGuider"])


def run(guider, *models):
    """What a guider samples, and how many rows the models saw."""
    import comfy.samplers

    rows, noise = [], latent_noise(32, 32)
    hooks = [
        model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
        for model in models
    ]
    try:
        done = guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), SIGMAS.clone(), disable_pbar=True, seed=0
        )
    finally:
        for hook in hooks:
            hook.remove()
    return done, sum(rows)


def logged(caplog):
    """The passes that the log says ran, in all and by name."""
    [(passes, names)] = re.findall(r"KleinKit: \d+ steps, (\d+) passes \((.*?)\)", caplog.text)
    return int(passes), {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", names)}


@pytest.mark.parametrize("cfg", (0.0, 1.0, 4.0))
def test_a_neutral_node_changes_nothing(klein, run_node, guider, caplog, cfg):
    plain, _ = run(guider(klein, cfg))
    neutral, _ = run(guider(with_nodes(run_node, klein, CONSTANT), cfg))
    # At cfg 0 the negative may run alone, and a batch of one rounds otherwise than a batch of two.
    assert torch.equal(neutral, plain) if cfg else (neutral - plain).abs().max() <= 1e-5
    assert not [sentence for sentence in warnings(caplog) if "scale from cfg" not in sentence]


@pytest.mark.parametrize("node", (CONSTANT, FIRST_HALF, NO_POSITIVE, SKIP), ids=("constant", "half", "no positive", "skip"))
@pytest.mark.parametrize("cfg", (0.0, 1.0, 4.0))
def test_the_log_counts_what_ran(klein, other, run_node, guider, caplog, node, cfg):
    caplog.set_level("INFO")
    _, rows = run(guider(with_nodes(run_node, klein, node), cfg), klein, other)
    assert logged(caplog)[0] == rows


@pytest.mark.parametrize(
    "cfg, prompt, weak", [(1.0, "negative", False), (4.0, "both", False), (0.0, "both", True), (4.0, "both", True)]
)
def test_autoguidance_runs_what_a_guider_has_a_prompt_for(klein, other, run_node, guider, caplog, cfg, prompt, weak):
    caplog.set_level("INFO")
    third = small_klein(seed=9, **SHAPE)
    node = AUTO[0], AUTO[1] | {"prompt": prompt} | ({"weak_model": third} if weak else {})
    made = guider(with_nodes(run_node, klein, node), cfg)
    _, rows = run(made, klein, other, third)
    count, passes = logged(caplog)
    assert count == rows
    if "negative" not in made.original_conds:
        assert "weak_uncond" not in passes
        assert ("weak" in passes) == (prompt != "negative")


@pytest.mark.parametrize("style", ("regular", "nested"))
def test_skip_layer_in_a_guider_of_two_positives(klein, run_node, caplog, style):
    def sampled(node):
        (guider,) = run_node(
            "DualCFGGuider",
            model=with_nodes(run_node, klein, node),
            cond1=POSITIVE,
            cond2=SECOND,
            negative=NEGATIVE,
            cfg_conds=3.0,
            cfg_cond2_negative=4.0,
            style=style,
        )
        return run(guider)[0]

    ours, theirs = sampled(SKIP), sampled(COMFYUI_SKIP)
    assert (theirs - sampled(CONSTANT)).abs().max() > 1e-2
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("cfg", (0.0, 4.0))
def test_skip_layer_is_comfyui_s_own_in_every_guider_that_calls_hooks(klein, run_node, guider, cfg):
    ours, theirs = (run(guider(with_nodes(run_node, klein, node), cfg))[0] for node in (SKIP, COMFYUI_SKIP))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_skip_layer_acts_in_the_unguided_steps_of_a_guider_of_two_models(klein, run_node, guiders, caplog):
    if is_older("0.24.1", "DualModelGuider" in guiders):
        return
    caplog.set_level("INFO")
    run(guiders["DualModelGuider"](with_nodes(run_node, klein, FIRST_HALF, SKIP), 4.0))
    assert logged(caplog)[1]["skip"] == STEPS


def test_a_guider_that_calls_no_hook_is_warned_of(klein, run_node, guiders, caplog):
    if is_older("0.24.1", "DualModelGuider" in guiders):
        return
    # At cfg 1 from the start it returns the positive before any hook.
    plain, _ = run(guiders["DualModelGuider"](klein, 1.0))
    skipped, _ = run(guiders["DualModelGuider"](with_nodes(run_node, klein, SKIP), 1.0))
    assert torch.equal(plain, skipped)
    # So it does from where the scale becomes 1.
    with_memory, _ = run(guiders["DualModelGuider"](with_nodes(run_node, klein, MOMENTUM), 1.0))
    run(guiders["DualModelGuider"](with_nodes(run_node, klein, MOMENTUM, FIRST_HALF), 4.0))
    assert torch.equal(plain, with_memory)
    of_pass, of_memory, later = warnings(caplog)
    assert "Klein Skip-Layer Guidance planned a pass in step 1, but Guider_DualModel did not run it" in of_pass
    assert "Klein Momentum Guidance has no effect in step 1, because Guider_DualModel calls no hook in it." in of_memory
    # The first releases run the negative from there on too.
    goes_on = may_lack("0.26.0", "isclose" in inspect.getsource(guiders["DualModelGuider"](klein, 1.0).predict_noise))
    assert ("so they save no time" if goes_on else "Klein Momentum Guidance has no effect in step 3") in later


@pytest.mark.parametrize("cfg", (0.0, 1.0, 4.0))
def test_a_guider_of_another_pack_that_has_names_of_its_own_for_its_prompts(klein, run_node, caplog, cfg):
    from comfy.samplers import CFGGuider, sampling_function

    class Named(CFGGuider):
        def predict_noise(self, x, timestep, model_options, seed=None):
            prompts = self.conds["without"], self.conds["with"]
            return sampling_function(self.inner_model, x, timestep, *prompts, self.cfg, model_options=model_options, seed=seed)

    def made(*nodes):
        guider = Named(with_nodes(run_node, klein, *nodes))
        guider.inner_set_conds({"with": POSITIVE, "without": NEGATIVE})
        guider.set_cfg(cfg)
        return guider

    caplog.set_level("INFO")
    plain, _ = run(made())
    neutral, rows = run(made(CONSTANT), klein)
    assert torch.equal(neutral, plain)
    assert logged(caplog) == (rows, {"cond": STEPS, "uncond": STEPS} if cfg != 1.0 else {"cond": STEPS})
    ours, theirs = (run(made(node))[0] for node in (SKIP, COMFYUI_SKIP))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() and not torch.equal(ours, plain)
    assert not warnings(caplog)


def test_momentum_acts_in_every_other_guider(klein, run_node, guiders, caplog):
    for name in guiders.keys() - {"DualModelGuider"}:
        plain, guided = (run(guiders[name](with_nodes(run_node, klein, *nodes), 1.0))[0] for nodes in ((), (MOMENTUM,)))
        assert (guided - plain).abs().max() > 1e-3, name
    assert not warnings(caplog)


def test_a_rule_that_needs_a_negative_in_a_guider_that_has_none(klein, run_node, guiders, caplog):
    run(guiders["BasicGuider"](with_nodes(run_node, klein, ("KleinKitSlerpCFG", {})), 1.0))
    [sentence] = warnings(caplog)
    assert sentence.endswith("No negative runs with this guider, which has none, so nothing comes of Klein Slerp CFG.")


def test_base_uncond_runs_the_negative_alone_on_the_base(klein, other, run_node, guiders):
    model = with_nodes(run_node, klein, ("KleinKitBaseUncond", {"base_model": other}))
    for name in ("CFGGuider", "DualCFGGuider", "PerpNegGuider"):
        guider = guiders[name](model, 4.0)
        assert run(guider, other)[1] == STEPS, name


def test_base_uncond_beside_a_guider_of_two_models(klein, other, run_node, guiders, caplog):
    if is_older("0.24.1", "DualModelGuider" in guiders):
        return
    model = with_nodes(run_node, klein, ("KleinKitBaseUncond", {"base_model": small_klein(seed=9, **SHAPE)}))
    both, _ = run(guiders["DualModelGuider"](model, 4.0))
    assert torch.equal(both, run(guiders["DualModelGuider"](klein, 4.0))[0])
    [sentence] = warnings(caplog)
    assert "Klein Base Uncond has no effect: the sampler's guider runs the negative on a model of its own" in sentence


SLERP = ("KleinKitSlerpCFG", {})
ENDS = ("KleinKitAdaptiveGuidance", {"threshold": -1.0})
SAVE_NO_TIME = "Guider_PerpNeg runs more than one prompt in steps without guidance too, so they save no time"


@pytest.mark.parametrize(
    "node, neg_scale, said",
    [
        (CONSTANT, 1.0, None),
        (FIRST_HALF, 1.0, f"{SAVE_NO_TIME} (Klein CFG)"),
        (NO_POSITIVE, 1.0, f"{SAVE_NO_TIME} (Klein CFG)"),
        (ENDS, 1.0, f"{SAVE_NO_TIME} (Klein Adaptive Guidance)"),
        # Without a weight for the negative the guider guides by its third prompt alone, and follows cfg.
        (FIRST_HALF, 0.0, None),
        (SKIP, 0.0, None),
        (NO_POSITIVE, 0.0, f"{SAVE_NO_TIME} (Klein CFG)"),
        (SLERP, 0.0, "Guider_PerpNeg ran no negative in step 1, so nothing comes of Klein Slerp CFG in it"),
        (ENDS, 0.0, "Guider_PerpNeg ran no negative in step 1, so nothing comes of Klein Adaptive Guidance in it"),
    ],
)
def test_what_is_said_of_a_guider_of_three_prompts_is_true(klein, run_node, caplog, node, neg_scale, said):
    def made(model):
        prompts = dict(positive=POSITIVE, negative=NEGATIVE, empty_conditioning=SECOND)
        return run_node("PerpNegGuider", model=model, cfg=4.0, neg_scale=neg_scale, **prompts)[0]

    ours, rows = run(made(with_nodes(run_node, klein, node)), klein)
    plain, all_rows = run(made(klein), klein)
    sentences = warnings(caplog)
    assert [said in sentence for sentence in sentences] == [True] if said else not sentences
    if node in (FIRST_HALF, NO_POSITIVE, ENDS):
        assert (rows == all_rows) == bool(said)
    assert torch.equal(ours, plain) == (node == CONSTANT or "nothing comes of" in (said or ""))


def test_a_schedule_that_a_guider_of_two_scales_does_not_read_is_warned_of(klein, run_node, caplog):
    for style, cfgs in (("regular", (4.0, 1.0)), ("nested", (1.0, 4.0))):
        caplog.clear()
        scales = dict(cfg_conds=cfgs[0], cfg_cond2_negative=cfgs[1], style=style)
        model = with_nodes(run_node, klein, FIRST_HALF)
        (guider,) = run_node("DualCFGGuider", model=model, cond1=POSITIVE, cond2=SECOND, negative=NEGATIVE, **scales)
        run(guider)
        [sentence] = warnings(caplog)
        assert "Guider_DualCFG runs more than one prompt in steps without guidance too" in sentence


NAG = ("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0))
ZERO_INIT = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1))


@pytest.mark.parametrize("node", (MOMENTUM, NAG, SLERP, ENDS, SKIP, ZERO_INIT, CONSTANT), ids=lambda node: node[0])
def test_what_does_nothing_beside_a_negative_that_runs_alone_is_warned_of(klein, run_node, guiders, caplog, node):
    ours, theirs = (run(guiders["CFGGuider"](model, 0.0))[0] for model in (with_nodes(run_node, klein, node), klein))
    idle = bool((ours - theirs).abs().max() <= 1e-5) and node is not CONSTANT
    assert idle == (node in (MOMENTUM, NAG, SLERP, ENDS))
    assert ["At cfg 0 the negative runs alone, so nothing comes of Klein" in said for said in warnings(caplog)] == [True] * idle


def test_the_same_where_a_sampler_asks_for_both_predictions_is_not(klein, run_node, guiders, caplog):
    import comfy.samplers

    (guider,) = run_node(
        "CFGGuider", model=with_nodes(run_node, klein, MOMENTUM), positive=POSITIVE, negative=NEGATIVE, cfg=0.0
    )
    noise, sampler = latent_noise(32, 32), comfy.samplers.sampler_object("euler_cfg_pp")
    guider.sample(noise, torch.zeros_like(noise), sampler, SIGMAS.clone(), disable_pbar=True, seed=0)
    assert "nothing comes of" not in caplog.text


def test_rules_have_the_passes_for_the_scale_that_a_guider_has_of_its_own(klein, run_node):
    model = with_nodes(run_node, klein, AUTO)
    prompts = dict(cond1=POSITIVE, cond2=POSITIVE, negative=NEGATIVE)
    (two,) = run_node("DualCFGGuider", model=model, **prompts, cfg_conds=2.0, cfg_cond2_negative=4.0, style="regular")
    (one,) = run_node("CFGGuider", model=model, positive=POSITIVE, negative=NEGATIVE, cfg=4.0)
    ours, theirs = run(two)[0], run(one)[0]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("cfg", (0.0, 4.0))
@pytest.mark.parametrize("node", ("image cfg", "both", "negative"))
def test_passes_of_the_negative_s_prompt_run_on_the_negative_s_model(klein, other, run_node, guiders, node, cfg):
    if is_older("0.24.1", "DualModelGuider" in guiders):
        return
    image = ("KleinKitImageCFG", {"image_scale": 2.0})
    rule = image if node == "image cfg" else (AUTO[0], AUTO[1] | {"prompt": node})
    reference = {"reference_latents": [latent_noise(32, 32, seed=3)]}
    prompts = {name: conditioning(embeddings(192, seed), **reference) for name, seed in (("positive", 1), ("negative", 2))}
    model = with_nodes(run_node, klein, rule)
    (two_models,) = run_node("DualModelGuider", model=model, model_negative=other, cfg=cfg, **prompts)
    on_base = with_nodes(run_node, model, ("KleinKitBaseUncond", {"base_model": other}))
    (one_model,) = run_node("CFGGuider", model=on_base, cfg=cfg, **prompts)
    ours, theirs = run(two_models)[0], run(one_model)[0]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name, said", [("CFGGuider", None), ("BasicGuider", ""), ("PerpNegGuider", "reused")])
def test_guidance_is_reused_where_the_guider_joins_the_predictions_as_comfyui_s(klein, run_node, guiders, caplog, name, said):
    node = "KleinKitCFG", dict(schedule={"schedule": "skip", "mode": "late", "guided_ratio": 0.5}, unguided="reuse")
    ours, rows = run(guiders[name](with_nodes(run_node, klein, node), 4.0), klein)
    plain, all_rows = run(guiders[name](klein, 4.0), klein)
    sentences = warnings(caplog)
    if said is None:
        assert rows == all_rows - STEPS // 2 and sentences == []
    else:
        # Guided in every step, or in none, as without the node: never half.
        assert torch.equal(ours, plain) and rows == all_rows
        assert any(said in sentence for sentence in sentences) or not said
