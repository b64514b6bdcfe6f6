"""Hooks that split a batch, cache, mix rows, copy options or begin again: the latents are right, and so is what is said."""

import copy
import re
import uuid

import pytest
import torch
from guidance_nodes import skips
from sampling import comfy_run, conditioning, embeddings, far, latent_noise, small_klein, warnings, with_nodes

SIX_STEPS = torch.linspace(1.0, 0.0, 7)
SKIP, COMFYUI_SKIP = skips("1")
CONSTANT = ("KleinKitCFG", dict(schedule={"schedule": "constant"}, unguided="conditional"))
LATE = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"))
NEGATIVE_LATE = ("KleinKitCFG", LATE[1] | {"unguided": "unconditional"})
REUSE_LATE = ("KleinKitCFG", LATE[1] | {"unguided": "reuse"})
ADAPTIVE = ("KleinKitAdaptiveGuidance", {"threshold": -1.0})
MOMENTUM = ("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0))
NAG = ("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.5, start=0.0, end=1.0))
AUTO = ("KleinKitAutoGuidance", dict(scale=2.0, double_layers="", single_layers="1", prompt="both", start=0.0, end=1.0))
CACHE = dict(reuse_threshold=0.5, start_percent=0.0, end_percent=1.0, verbose=False)
MANY_STEPS = torch.linspace(1.0, 0.0, 21)


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(seed=1, double_blocks=1, single_blocks=2)


@pytest.fixture(scope="module")
def other(comfy):
    return small_klein(seed=5, double_blocks=1, single_blocks=2)


@pytest.fixture
def run(klein, run_node, caplog):
    """`(model, *nodes) → latent`; the log counts what the model saw. `run.log` and `run.said` hold what was said."""
    caplog.set_level("INFO")

    def sample(model, *nodes, sigmas=SIX_STEPS, batch=1):
        caplog.clear()
        rows, prompts = [], (conditioning(embeddings(192, seed)) for seed in (1, 2))
        hook = klein.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0]) // batch))
        try:
            done = comfy_run(with_nodes(run_node, model, *nodes), sigmas, latent_noise(64, 64, batch), *prompts, 4.0)
        finally:
            hook.remove()
        sample.log, sample.said = caplog.text, warnings(caplog)
        if "KleinKitBaseUncond" not in dict(nodes):
            for passes in re.findall(r"KleinKit: \d+ steps, (\d+) passes", caplog.text):
                assert int(passes) == sum(rows)
        return done

    return sample


def with_function(model, function):
    model = model.clone()
    model.set_model_unet_function_wrapper(function)
    return model


def with_batches(model, function):
    model = model.clone()
    model.set_model_sampler_calc_cond_batch_function(function)
    return model


def with_wrapper(model, kind, wrapper):
    from comfy.patcher_extension import WrappersMP

    model = model.clone()
    model.add_wrapper(getattr(WrappersMP, kind), wrapper)
    return model


def in_tiles(apply_model, args):
    """As Tiled Diffusion: the model is asked for each part of the picture."""
    top, bottom = (
        apply_model(part.contiguous(), args["timestep"], **args["c"])
        for part in (args["input"][:, :, :2], args["input"][:, :, 2:])
    )
    return torch.cat((top, bottom), dim=2)


def in_turn(apply_model, args):
    """As packs that save memory: one prompt at a time, with the batch's own options."""
    x, count = args["input"], len(args["cond_or_uncond"])

    def part(value, number):
        return value.chunk(count)[number] if torch.is_tensor(value) and len(value) == len(x) else value

    return torch.cat(
        [
            apply_model(part(x, i), part(args["timestep"], i), **{name: part(value, i) for name, value in args["c"].items()})
            for i in range(count)
        ]
    )


@pytest.mark.parametrize("function, batch", [(in_tiles, 1), (in_turn, 1), (in_turn, 2)])
def test_the_skip_pass_of_a_batch_in_parts(klein, run, function, batch):
    model = with_function(klein, function)
    ours, theirs = (run(model, node, batch=batch) for node in (SKIP, COMFYUI_SKIP))
    assert far(ours, theirs) <= 1e-5


@pytest.mark.parametrize("batch", (1, 2))
def test_nag_of_a_batch_in_parts(klein, run, batch):
    assert far(run(with_function(klein, in_turn), NAG, batch=batch), run(klein, NAG, batch=batch)) <= 1e-5
    assert not run.said


def apart(rows, options):
    """The positive's rows led away from the negative's, where both are in the batch."""
    places = options["cond_or_uncond"]
    if len(places) == 1:
        return rows
    parts = list(rows.chunk(2))
    positive, negative = (parts[places.index(place)] for place in (0, 1))
    parts[places.index(0)] = positive + 2.0 * (positive - negative)
    return torch.cat(parts)


def mixed_in_the_attention(model):
    def override(attention, *args, **kwargs):
        return apart(attention(*args, **kwargs), kwargs["transformer_options"])

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def mixed_in_a_block(model):
    def patch(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": apart(out["img"], args["transformer_options"])}

    model = model.clone()
    model.set_model_patch_replace(patch, "dit", "double_block", 0)
    return model


@pytest.mark.parametrize("mixed", (mixed_in_the_attention, mixed_in_a_block))
def test_the_skip_pass_beside_a_node_that_mixes_the_rows(klein, run, mixed):
    ours, theirs = (run(mixed(klein), node) for node in (SKIP, COMFYUI_SKIP))
    assert far(ours, run(klein, SKIP)) > 1e-2
    assert far(ours, theirs) <= 1e-5


def test_a_pass_of_another_node_does_not_make_ours_longer(klein, run):
    def their_pass(args):
        import comfy.samplers

        comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"])  # fmt: skip
        return args["denoised"]

    model, begun = klein.clone(), []
    model.set_model_sampler_post_cfg_function(their_pass)
    hook = klein.model.diffusion_model.double_blocks[0].register_forward_pre_hook(lambda *_: begun.append(None))
    ours = run(model, SKIP)
    hook.remove()
    # The sampler's and theirs: ours begins later.
    assert len(begun) == 2 * 6
    assert far(ours, run(klein, SKIP)) <= 1e-5


def test_a_block_that_another_node_replaces_during_the_run_stays_so(klein, run):
    def weigh(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.3}

    def replacing():
        calls, model = [], klein.clone()

        def hook(args):
            calls.append(None)
            if len(calls) == 3:
                options = args["model_options"]["transformer_options"]
                options.setdefault("patches_replace", {}).setdefault("dit", {})["double_block", 0] = weigh
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(hook)
        return model

    plain = run(replacing())
    assert far(plain, run(klein)) > 1e-3
    assert far(run(replacing(), (SKIP[0], SKIP[1] | {"scale": 1e-6})), plain) <= 1e-5


def every_second(answer):
    """`function` of the model, or of a batch, that is answered from the call before every second time."""
    calls = []

    def call(*args):
        calls.append(answer(*args) if len(calls) % 2 == 0 else calls[-1])
        return calls[-1]

    return call


def cached_model(model):
    cached = every_second(lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"]))
    return with_function(
        model,
        lambda apply_model, args: (
            cached(apply_model, args)
            if len(args["cond_or_uncond"]) == 2
            else apply_model(args["input"], args["timestep"], **args["c"])
        ),
    )


def cached_prompt(place):
    """A model whose batches keep the prediction of one of the two prompts for the next step."""

    def cached(model):
        import comfy.samplers

        kept = []

        def batches(args):
            given, conds = [args[name] for name in ("input", "sigma", "model_options")], list(args["conds"])
            keep = len(kept) % 2 == 1 and None not in conds
            if keep:
                conds[place] = None
            out = comfy.samplers.calc_cond_batch(args["model"], conds, *given)
            if keep:
                out[place] = kept[-1]
            kept.append(out[place])
            return out

        return with_batches(model, batches)

    return cached


@pytest.mark.parametrize(
    "cached, said, skips",
    [
        (cached_model, "and none ran: another node answered for the model.", 3),
        (cached_prompt(1), "Another node answered for the negative prompt in step 2: no pass ran for it.", 6),
        (cached_prompt(0), "Another node answered for the positive prompt in step 2: no pass ran for it.", 3),
    ],
    ids=("model", "negative", "positive"),
)
def test_what_another_node_answers_from_a_cache(klein, run, cached, said, skips):
    plain, ours = run(cached(klein)), run(cached(klein), CONSTANT)
    assert torch.equal(ours, plain)
    assert [said in sentence for sentence in run.said] == [True]
    # No skip pass where the positive did not run.
    run(cached(klein), SKIP)
    assert f", skip {skips})" in run.log and "there is no guidance" not in run.log


def test_what_easy_cache_answers_is_said(klein, run, run_node):
    (cached,) = run_node("EasyCache", model=klein, **CACHE)
    run(cached, AUTO, sigmas=MANY_STEPS)
    [(prompts, weak, answered)] = re.findall(
        r"cond (\d+), uncond \1, weak (\d+), weak_uncond \2\), (\d+) of them answered by a cache, with", run.log
    )
    assert int(prompts) == 20 and int(answered) == 2 * (20 - int(weak))
    [said] = run.said
    assert "Klein AutoGuidance does nothing in steps that a cache answers" in said


def with_new_conditionings(model):
    """As packs that write prompts anew in every step."""
    import comfy.samplers

    def batches(args):
        conds = [prompt and [{**part, "uuid": uuid.uuid4()} for part in prompt] for prompt in args["conds"]]
        return comfy.samplers.calc_cond_batch(
            args["model"], conds, args["input"], args["sigma"], args["model_options"])  # fmt: skip

    return with_batches(model, batches)


@pytest.mark.parametrize("node", (SKIP, NEGATIVE_LATE, NAG), ids=lambda node: node[0])
def test_conditionings_that_another_node_makes_anew(klein, run, node):
    plain = run(klein, node)
    said = re.search(r"KleinKit: .*", run.log)[0]
    assert far(run(with_new_conditionings(klein), node), plain) <= 1e-5
    assert not run.said and said in run.log


def test_the_negative_of_conditionings_made_anew_runs_on_the_base(klein, other, run):
    node = ("KleinKitBaseUncond", {"base_model": other})
    assert far(run(with_new_conditionings(klein), node), run(klein, node)) <= 1e-5


@pytest.mark.parametrize("node", (LATE, NEGATIVE_LATE, REUSE_LATE, ADAPTIVE), ids=("cond", "uncond", "reuse", "adaptive"))
def test_a_post_cfg_hook_finds_no_zeros_in_a_step_of_one_pass(klein, run, node):
    def more_guidance(args):
        seen.append((args["uncond"] is None, torch.equal(args["cond_denoised"], args["uncond_denoised"])))
        return args["denoised"] + 2.0 * (args["cond_denoised"] - args["uncond_denoised"])

    seen, model = [], klein.clone()
    model.set_model_sampler_post_cfg_function(more_guidance)
    assert run(model, node).abs().max() < 2.0 * run(klein, node).abs().max()
    alone, same = zip(*seen)
    assert alone == same and any(alone) and not all(alone)


def copied_once(executor, guider, sigmas, extra_args, *args, **kwargs):
    options = extra_args["model_options"]
    options = {**options, "transformer_options": copy.deepcopy(options["transformer_options"])}
    return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)


def copied_in_each_step(executor, x, timestep, options, seed=None):
    return executor(x, timestep, {**options, "transformer_options": copy.deepcopy(options["transformer_options"])}, seed)


@pytest.mark.parametrize(
    "kind, wrapper, before", [("SAMPLER_SAMPLE", copied_once, False), ("PREDICT_NOISE", copied_in_each_step, True)]
)
def test_options_that_another_node_copies_are_of_the_same_run(klein, run, run_node, kind, wrapper, before):
    plain = run(klein, ADAPTIVE)
    said = re.search(r"KleinKit: .*", run.log)[0]
    if before:
        done = run(with_wrapper(klein, kind, wrapper), ADAPTIVE)
    else:
        done = run(with_wrapper(with_nodes(run_node, klein, ADAPTIVE), kind, wrapper))
    assert torch.equal(done, plain) and said in run.log


@pytest.mark.parametrize("node", (("KleinKitAdaptiveGuidance", {"threshold": 0.3}), MOMENTUM), ids=lambda node: node[0])
def test_a_sampler_that_another_node_begins_again(klein, run, run_node, node):
    def twice(executor, *args, **kwargs):
        executor(*args, **kwargs)
        return executor(*args, **kwargs)

    again = with_wrapper(with_nodes(run_node, klein, node), "SAMPLER_SAMPLE", twice)
    assert torch.equal(run(again), run(klein, node))


@pytest.mark.parametrize(
    "node, name",
    [
        (("EasyCache", CACHE), "easycache_sample_wrapper"),
        (("LazyCache", CACHE), "easycache_sample_wrapper"),
        (("NAGuidance", dict(nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)), "Normalized Attention Guidance"),
        (("APG", dict(eta=0.5, norm_threshold=2.0, momentum=-0.5)), "APG.execute"),
        (SKIP, "(Klein Skip-Layer Guidance)"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_guides_or_caches_a_base_model_is_named(klein, other, run, run_node, node, name):
    plain = run(klein, ("KleinKitBaseUncond", {"base_model": other}))
    assert not run.said
    base = with_nodes(run_node, other, node)
    assert torch.equal(run(klein, ("KleinKitBaseUncond", {"base_model": base})), plain)
    [said] = run.said
    assert "`base_model` of Klein Base Uncond has no effect in its passes (" in said and name in said
    # It keeps nothing of the run.
    holder = base.model_options["transformer_options"].get("easycache")
    assert not getattr(holder, "uuid_cache_diffs", None)


def test_what_changes_the_weights_of_a_base_model_is_not(klein, other, run, run_node):
    base = with_nodes(
        run_node, other, ("KleinKitDynamicShift", {"shift": {"shift": "flux2"}}), ("ModelComputeDtype", {"dtype": "fp32"})
    )
    run(klein, ("KleinKitBaseUncond", {"base_model": base}))
    assert not run.said
