"""Klein NAG in ComfyUI's graphs: what it costs, what it meets there, and what it says where it cannot act."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from host_reads import waits_to_bring
from kleinkit.nano.in_comfyui import random_klein
from releases import is_older
from sampling import comfy_run, conditioning, embeddings, far, latent_noise, warnings, with_nodes

SIGMAS = torch.tensor([1.0, 0.7, 0.0])
STEPS = len(SIGMAS) - 1
LIMIT = 1e-5
POSITIVE, NEGATIVE = embeddings(192, 1), embeddings(192, 2)
NOISE = latent_noise(32, 32)
TEXT, IMAGE = 512, 4
NODE = ("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0))
SKIP = (
    "KleinKitSkipLayerGuidance",
    dict(scale=2.0, double_layers="", single_layers="1", start=0.0, end=1.0, mode="block", rescale=0.0),
)


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein(double_blocks=1, single_blocks=2)


@pytest.fixture(scope="module")
def nag(klein, run_node):
    return with_nodes(run_node, klein, NODE)


def run(model, cfg=1.0, positive=None, negative=None, noise=NOISE):
    positive, negative = positive or conditioning(POSITIVE), negative or conditioning(NEGATIVE)
    return comfy_run(model, SIGMAS, noise, positive, negative, cfg)


def shapes(model, cfg):
    """`(rows, tokens)` of every call of the last single block."""
    seen = []
    block = model.model.diffusion_model.single_blocks[-1]
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    try:
        run(model, cfg)
    finally:
        hook.remove()
    return seen


def test_a_step_is_one_call_with_the_negatives_tokens_more(klein, nag, run_node):
    assert shapes(klein, 1.0) == [(1, TEXT + IMAGE)] * STEPS
    assert shapes(nag, 1.0) == [(1, 2 * TEXT + IMAGE)] * STEPS
    half = with_nodes(run_node, klein, (NODE[0], NODE[1] | {"end": 0.5}))
    assert shapes(half, 1.0) == [(1, 2 * TEXT + IMAGE), (1, TEXT + IMAGE)]
    core = run_node("NAGuidance", model=klein, nag_scale=5.0, nag_alpha=0.25, nag_tau=2.5)[0]
    assert shapes(core, 1.0) == [(2, TEXT + IMAGE)] * STEPS


def test_the_log_says_one_pass_a_step(nag, caplog):
    caplog.set_level("INFO")
    run(nag)
    assert "2 steps, 2 passes (cond 2) with Klein NAG." in caplog.text
    assert not warnings(caplog)


def test_behind_the_guard_of_a_distilled_model(pack, klein, nag, caplog):
    guarded = pack("engine.sampling").with_rule(nag, pack("guidance.distilled").Distilled())
    assert torch.equal(run(guarded, cfg=5.0), run(nag))
    [sentence] = warnings(caplog)
    assert sentence.startswith("KleinKit: cfg 5 counts as 1") and "NAG" not in sentence


def test_the_negative_pass_of_cfg_stays_as_it_is(klein, nag):
    """At cfg 4 both passes share a batch; the same velocities come from one run with NAG and one of the negative alone."""
    sigma = torch.tensor([1.0, 0.0])
    of = {
        name: comfy_run(model, sigma, NOISE, conditioning(text), conditioning(NEGATIVE), cfg)
        for name, model, text, cfg in (
            ("both", nag, POSITIVE, 4.0),
            ("positive", nag, POSITIVE, 1.0),
            ("negative", klein, NEGATIVE, 1.0),
        )
    }
    assert far(of["both"], of["negative"] + 4.0 * (of["positive"] - of["negative"])) <= LIMIT


def test_a_batch_of_prompts(nag):
    positive, negative = embeddings(192, 1, batch=2), embeddings(192, 2, batch=2)
    together = run(nag, 1.0, conditioning(positive), conditioning(negative), latent_noise(32, 32, batch=2))
    for k in range(2):
        prompts = (conditioning(text[k : k + 1]) for text in (positive, negative))
        alone = run(nag, 1.0, *prompts, latent_noise(32, 32, batch=2)[k : k + 1])
        assert far(together[k : k + 1], alone) <= 1e-4


def test_areas_of_the_positive_each_see_the_negative(klein, nag, run_node):
    """Two halves with one text are that text; with NAG too."""
    halves = [
        run_node(
            "ConditioningSetAreaPercentage",
            conditioning=conditioning(POSITIVE),
            width=1.0,
            height=0.5,
            x=0.0,
            y=y,
            strength=1.0,
        )[0]
        for y in (0.0, 0.5)
    ]
    tall = latent_noise(64, 32)
    plain, mixed = (run(model, 1.0, halves[0] + halves[1], noise=tall) for model in (klein, nag))
    each = [run(nag, 1.0, noise=tall[:, :, half]) for half in (slice(0, 2), slice(2, 4))]
    assert far(mixed, plain) > 100 * LIMIT
    assert far(mixed, torch.cat(each, dim=2)) <= 1e-4


def test_skip_layer_starts_from_the_mixed_states(klein, run_node):
    """Its tail alone runs, and equals ComfyUI's node, which runs the whole pass."""
    seen = []
    block = klein.model.diffusion_model.double_blocks[0]
    hook = block.register_forward_pre_hook(lambda *_: seen.append(1))
    ours = run(with_nodes(run_node, klein, NODE, SKIP))
    hook.remove()
    assert len(seen) == STEPS
    theirs = (
        "SkipLayerGuidanceDiT",
        dict(double_layers="", single_layers="1", scale=2.0, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0),
    )
    assert far(ours, run(with_nodes(run_node, klein, theirs, NODE))) <= LIMIT


def test_the_host_does_not_wait_for_the_negatives_text(pack):
    """ComfyUI keeps a prompt on the host, and brings it to the device in each call."""
    from comfy.sampler_helpers import convert_cond

    run = pack("engine.run").Run([1.0, 0.0], (pack("guidance.nag").NAG(),), "", True, 0)
    conds = {name: convert_cond(conditioning(text)) for name, text in (("positive", POSITIVE), ("negative", NEGATIVE))}
    run.began(conds, True)
    options = {"uuids": [conds["positive"][0]["uuid"]], "cond_or_uncond": [0]}
    x, context, joined = torch.empty(NOISE.shape, device="meta"), torch.empty(POSITIVE.shape, device="meta"), []

    def forward(x, timestep, context, *others):
        joined.append(context.shape[1])

    call = partial(pack("engine.both_texts").join, run, run.rules[0], NEGATIVE, forward, x, None, context)
    assert waits_to_bring(lambda: call(None, None, None, None, options)) == []
    assert joined == [2 * TEXT]


def test_kv_cache_of_references(klein, run_node, comfy):
    if is_older("0.20", "FluxKVCache" in comfy.NODE_CLASS_MAPPINGS):
        return
    reference = {"reference_latents": [latent_noise(32, 32, seed=3)]}
    prompts = conditioning(POSITIVE, **reference), conditioning(NEGATIVE, **reference)
    runs = []
    for node in (NODE, ("NAGuidance", dict(nag_scale=5.0, nag_alpha=0.25, nag_tau=2.5))):
        (cached,) = run_node("FluxKVCache", model=klein)
        runs.append(run(with_nodes(run_node, cached, node), 1.0, *prompts))
    assert far(*runs) <= LIMIT


def test_compiled_models_run_as_they_are(klein, nag, run_node):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = klein.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    assert torch.equal(run(with_nodes(run_node, compiled, NODE)), run(nag))


@contextmanager
def products():
    """Collects the products of keys and queries that torch's attention with its lse makes, a call each."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
                seen.append(args[0].shape[2] * args[1].shape[2])
            return function(*args, **(kwargs or {}))

    seen = []
    with Count():
        yield seen


def test_the_images_attention_to_itself_is_computed_once(nag):
    with products() as seen:
        run(nag)
    together = [(2 * TEXT + IMAGE) * IMAGE, (TEXT + IMAGE) * TEXT, TEXT * TEXT, IMAGE * TEXT]
    assert seen == together * 3 * STEPS
    assert sum(together) == 2 * (TEXT + IMAGE) ** 2 - IMAGE**2


def test_another_nodes_attention_goes_on(klein, nag, run_node):
    calls = []

    def counted(attention, *args, **kwargs):
        calls.append(1)
        return attention(*args, **kwargs)

    other = klein.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = counted
    with products() as seen:
        done = run(with_nodes(run_node, other, NODE))
    assert far(done, run(nag)) <= LIMIT
    assert len(calls) == 2 * 3 * STEPS
    assert not seen


@pytest.mark.parametrize("cfg", [1.0, 4.0], ids="cfg {}".format)
def test_an_attention_that_the_user_chose_stays(nag, comfy, monkeypatch, cfg):
    """The merged attention and the two attentions give the same; at cfg 4 some of the rows are mixed."""
    import comfy.cli_args

    with products() as seen:
        merged = run(nag, cfg)
        assert seen
        seen.clear()
        monkeypatch.setattr(comfy.cli_args.args, "use_quad_cross_attention", True)
        two = run(nag, cfg)
        assert not seen
    assert far(merged, two) <= LIMIT


@pytest.mark.parametrize("kind", ["area", "two", "none"])
def test_a_negative_that_is_not_one_text_is_said_and_left_out(klein, nag, run_node, caplog, kind):
    (area,) = run_node(
        "ConditioningSetAreaPercentage", conditioning=conditioning(NEGATIVE), width=0.5, height=1.0, x=0.0, y=0.0, strength=1.0
    )
    negative = {"area": area, "two": conditioning(NEGATIVE) + conditioning(POSITIVE), "none": []}[kind]
    if kind == "none":
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(nag)
        guider.inner_set_conds({"positive": conditioning(POSITIVE)})
        guider.set_cfg(1.0)
        sampler = comfy.samplers.sampler_object("euler")
        done = guider.sample(NOISE, torch.zeros_like(NOISE), sampler, SIGMAS.clone(), disable_pbar=True, seed=0)
    else:
        done = run(nag, 1.0, None, negative)
    assert torch.equal(done, run(klein, 1.0, None, negative or None))
    why = "in step 1: it needs a negative prompt that is one conditioning for the whole picture."
    if kind == "none":
        why = ": this guider has no negative prompt. Take CFGGuider, with cfg 1."
    assert [" ".join(sentence.split()) for sentence in warnings(caplog)] == [
        f"KleinKit: Klein NAG does nothing{' ' * (kind != 'none')}{why}"
    ]


def test_a_negative_for_other_steps_is_said(nag, run_node, caplog):
    (late,) = run_node("ConditioningSetTimestepRange", conditioning=conditioning(NEGATIVE), start=0.9, end=1.0)
    run(nag, 1.0, None, late)
    assert "KleinKit: Klein NAG does nothing in step 1: the negative prompt has no conditioning in it." in warnings(caplog)


def test_a_negative_of_another_encoder_is_refused(nag):
    with pytest.raises(ValueError, match="Klein NAG: the negative prompt comes from another text encoder .* 256 wide, not 192"):
        run(nag, 1.0, None, conditioning(embeddings(256, 2)))


def test_both_kinds_of_nag_are_said(klein, run_node, caplog):
    both = with_nodes(run_node, klein, ("NAGuidance", dict(nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)), NODE)
    run(both)
    assert any("Klein NAG and another node" in sentence and "Remove one" in sentence for sentence in warnings(caplog))


def test_a_model_of_another_kind_is_refused(comfy, run_node):
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD3({"image_model": "sd3", "depth": 1, "in_channels": 16})
    config.unet_config["disable_unet_model_creation"] = True
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW)
    model.diffusion_model = torch.nn.Linear(1, 1)
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match="Klein NAG: Expected `model` to be a FLUX.2 .klein., .* but got 'BaseModel'"):
        run_node(NODE[0], model=patcher, **NODE[1])


ZERO_STAR = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0))
ADAPTIVE = ("KleinKitAdaptiveGuidance", {"threshold": 0.99})
RENORM = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=True))
SLERP = ("KleinKitSlerpCFG", {})
IDLE = "KleinKit: No negative runs {}, so nothing comes of {}."
OFFER = " Klein NAG is what makes a negative prompt work there."


class TestRulesThatNeedANegative:
    @pytest.fixture
    def said(self, pack, klein, run_node, caplog):
        """`(nodes, cfg, distilled) → warnings` of a run of two steps."""

        def said(*nodes, cfg=1.0, distilled=False):
            model = with_nodes(run_node, klein, *nodes)
            if distilled:
                model = pack("engine.sampling").with_rule(model, pack("guidance.distilled").Distilled())
            caplog.clear()
            run(model, cfg)
            return warnings(caplog)

        return said

    def test_at_cfg_1_they_say_once_what_works_there(self, said):
        titles = "Klein CFG-Zero*, Klein Slerp CFG, Klein Adaptive Guidance, Klein Renorm"
        assert said(ZERO_STAR, SLERP, ADAPTIVE, RENORM) == [IDLE.format("at cfg 1", titles) + OFFER]
        assert said(SLERP, cfg=4.0) == said(SKIP) == []

    def test_on_a_distilled_model_too(self, said):
        idle = IDLE.format("on this distilled model", "Klein Slerp CFG")
        assert said(SLERP, distilled=True) == [idle + OFFER]
        ignored, other = said(SLERP, distilled=True, cfg=5.0)
        assert ignored.endswith("For a negative prompt at cfg 1 there is Klein NAG.") and other == idle

    def test_beside_klein_nag_there_is_nothing_to_offer(self, said):
        assert said(SLERP, NODE) == [IDLE.format("at cfg 1", "Klein Slerp CFG")]

    def test_what_acts_without_a_negative_is_not_said(self, said):
        first_is_zero = (ZERO_STAR[0], ZERO_STAR[1] | {"zero_init_steps": 1})
        assert said(first_is_zero) == said(SKIP, RENORM) == []
        image = ("KleinKitImageCFG", {"image_scale": 1.0})
        assert said(image) == [IDLE.format("at cfg 1", "Klein Image CFG") + OFFER]
