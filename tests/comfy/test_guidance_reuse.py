"""Guidance without its pass: whole runs against ComfyUI's own samplers over the model's predictions, one at a time."""

import gc

import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, far, latent_noise, small_klein, warnings, with_nodes

SIGMAS = torch.tensor([1.0, 0.97, 0.93, 0.88, 0.8, 0.7, 0.5, 0.2, 0.0])
STEPS, CFG = len(SIGMAS) - 1, 4.0
REFERENCE = {"reference_latents": [latent_noise(32, 32, seed=3)]}
POSITIVE, NEGATIVE = (conditioning(embeddings(192, seed)) for seed in (1, 2))
NOISE = latent_noise(32, 32)
# The steps that run both passes: those of the schedule, and the first, before which there is nothing to reuse.
SCHEDULES = {
    "early": (dict(schedule="skip", mode="early", guided_ratio=0.5), {0, 4, 5, 6, 7}),
    "late": (dict(schedule="skip", mode="late", guided_ratio=0.5), {0, 1, 2, 3}),
    "early_late": (dict(schedule="skip", mode="early_late", guided_ratio=0.5), {0, 2, 3, 4, 5}),
    "middle": (dict(schedule="skip", mode="middle", guided_ratio=0.5), {0, 1, 6, 7}),
    "alternate": (dict(schedule="skip", mode="alternate", guided_ratio=0.5), {0, 1, 3, 5, 7}),
    "interval": (dict(schedule="interval", start=0.25, end=0.75), {0, 2, 3, 4, 5}),
}


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=1)


def reusing(schedule, unguided="reuse"):
    return "KleinKitCFG", dict(schedule=schedule, unguided=unguided)


def run(model, noise=NOISE, sigmas=SIGMAS, cfg=CFG, positive=POSITIVE, negative=NEGATIVE, **kwargs):
    return comfy_run(model, sigmas, noise, positive, negative, cfg, **kwargs)


def predicted(model, x, sigma, positive, negative, which):
    """The velocity of one prompt, by ComfyUI's own guider."""
    from comfy.patcher_extension import WrappersMP

    seen = {}

    def ask(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        seen["x0"] = guider(x, torch.full((len(x),), sigma), model_options=extra_args["model_options"])
        return noise

    model = model.clone()
    model.add_wrapper(WrappersMP.SAMPLER_SAMPLE, ask)
    # With both prompts, because ComfyUI copies areas from one to the other.
    comfy_run(model, SIGMAS[:2], x, positive, negative, 1.0 if which == "cond" else 0.0)
    return (x - seen["x0"]) / sigma


def straight(model, guided, unguided, sampler="euler", combine=None, positive=POSITIVE, negative=NEGATIVE, image=None):
    """A run of a sampler of ComfyUI in which some steps use the difference of guided ones.

    Args:
        guided: the steps in which both prompts are asked.
        combine: `(v_c, v_u, v_image) → v`; plain CFG where it is left out.
        image: the negative without references, where a rule asks for it.
    """
    import comfy.k_diffusion.sampling

    combine = combine or (lambda c, u, i: u + CFG * (c - u))
    kept, bounds = {}, SIGMAS.tolist()

    def model_at(x, sigma, **kwargs):
        sigma = float(sigma[0])
        step = max(i for i, bound in enumerate(bounds) if bound >= sigma * (1 - 1e-6))
        ask = lambda which, text: predicted(model, x, sigma, positive, text, which)  # noqa: E731
        v_c = ask("cond", negative)
        if step in guided:
            v = [ask("uncond", negative), *([ask("uncond", image)] if image else [])]
            kept[step] = sigma, [v_c - one for one in v]
        else:
            *_, (s0, d0), (s1, d1) = [(0.0, None), *(kept[i] for i in sorted(kept))]
            share = (sigma - s1) / (s1 - s0) if unguided == "extrapolate" and d0 else 0.0
            v = [v_c - (b + share * (b - a)) for a, b in zip(d0 or d1, d1)]
        return x - sigma * combine(v_c, *v, *([] if image else [None]))

    sample = getattr(comfy.k_diffusion.sampling, f"sample_{sampler}")
    return sample(model_at, NOISE, SIGMAS, extra_args={}, disable=True)


def passes(text, uncond, calls=STEPS):
    return f"{calls + uncond} passes (cond {calls}, uncond {uncond})" in text


@pytest.mark.parametrize("unguided", ("reuse", "extrapolate"))
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_the_straight_run(klein, run_node, caplog, name, unguided):
    caplog.set_level("INFO")
    schedule, guided = SCHEDULES[name]
    ours = run(with_nodes(run_node, klein, reusing(schedule, unguided)))
    # Four steps past the last guided one, a line has multiplied the rounding of both.
    assert far(ours, straight(klein, guided, unguided)) <= {"reuse": 1e-5, "extrapolate": 5e-5}[unguided]
    assert passes(caplog.text, len(guided))
    assert f"{STEPS - len(guided)} of them reusing guidance at cfg 4, with Klein CFG." in caplog.text


@pytest.mark.parametrize("unguided", ("reuse", "extrapolate"))
# The second call of a step of heun is at the next step's sigma, and belongs to it; the last step has one call.
@pytest.mark.parametrize("sampler, calls, uncond", (("heun", 15, 9), ("dpm_2", 15, 9)))
def test_samplers_that_ask_several_times_in_a_step(klein, run_node, caplog, sampler, calls, uncond, unguided):
    caplog.set_level("INFO")
    schedule, guided = SCHEDULES["alternate"]
    ours = run(with_nodes(run_node, klein, reusing(schedule, unguided)), sampler=sampler)
    assert far(ours, straight(klein, guided, unguided, sampler)) <= 1e-5
    assert passes(caplog.text, uncond, calls)


@pytest.mark.parametrize("sampler", ("dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral", "dpmpp_sde", "seeds_3"))
def test_other_samplers_run_the_plan(klein, run_node, sampler):
    from comfy.patcher_extension import WrappersMP

    calls, model = [], with_nodes(run_node, klein, reusing(SCHEDULES["alternate"][0], "extrapolate"))

    def record(executor, x, timestep, model_options, seed=None):
        step = model_options["transformer_options"]["kleinkit_run"].step
        calls.append((step.index, step.passes))
        return executor(x, timestep, model_options, seed)

    model.add_wrapper(WrappersMP.PREDICT_NOISE, record)
    assert run(model, sampler=sampler).isfinite().all()
    guided = SCHEDULES["alternate"][1]
    assert {index for index, _ in calls} == set(range(STEPS))
    assert all(names == (("cond", "uncond") if index in guided else ("cond",)) for index, names in calls)


def test_a_sampler_that_takes_both_predictions_gets_them(klein, run_node, caplog):
    # Both passes run anyway; the difference of the guided step counts all the same.
    schedule, guided = SCHEDULES["late"]
    forced = with_nodes(run_node, klein, reusing(schedule))
    forced.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    assert far(run(forced), straight(klein, guided, "reuse")) <= 1e-5
    assert "save no time" in " ".join(warnings(caplog))


def zero_star(c, u, _):
    alpha = (c * u).sum() / (u * u).sum()
    return alpha * u + CFG * (c - alpha * u)


def slerp(c, u, _):
    theta = torch.acos((c.double() * u.double()).sum() / c.double().norm() / u.double().norm())
    of_c, of_u = (torch.sin(w * theta) / torch.sin(theta) for w in (CFG, 1 - CFG))
    return of_c.float() * c + of_u.float() * u


def renormed(c, u, _):
    guided = u + CFG * (c - u)
    return guided * (c.norm() / guided.norm()).clamp(max=1.0)


RULES = {
    "CFG-Zero*": ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0), zero_star),
    "slerp": ("KleinKitSlerpCFG", {}, slerp),
    "renorm": ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=True), renormed),
    "image CFG": ("KleinKitImageCFG", dict(image_scale=2.5), lambda c, u, i: i + 2.5 * (u - i) + CFG * (c - u)),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_on_the_negative_go_on_working(klein, run_node, caplog, name):
    caplog.set_level("INFO")
    node, inputs, combine = RULES[name]
    schedule, guided = SCHEDULES["alternate"]
    prompts = dict(positive=POSITIVE, negative=NEGATIVE)
    if name == "image CFG":
        prompts = {which: [[text[0][0], {**text[0][1], **REFERENCE}]] for which, text in prompts.items()}
    ours = run(with_nodes(run_node, klein, (node, inputs), reusing(schedule)), **prompts)
    image = NEGATIVE if name == "image CFG" else None
    assert far(ours, straight(klein, guided, "reuse", combine=combine, image=image, **prompts)) <= 1e-5
    more = f", image {len(guided)}" if image else ""
    assert f"(cond {STEPS}, uncond {len(guided)}{more})" in caplog.text


OTHERS = {
    "KleinKitCFGZeroStar": dict(optimized_scale=True, zero_init_steps=1),
    "KleinKitSkipLayerGuidance": dict(
        scale=2.0, double_layers="", single_layers="0", start=0.0, end=1.0, mode="block", rescale=0.3
    ),
    "KleinKitRenorm": dict(mode="token", strength=0.7, shrink_only=False),
    "KleinKitSlerpCFG": {},
    "KleinKitBaseUncond": {},
    "KleinKitAdaptiveGuidance": dict(threshold=0.3),
    "KleinKitNAG": dict(scale=4.0, tau=2.0, alpha=0.5, start=0.0, end=0.7),
}


@pytest.mark.parametrize("name", OTHERS)
def test_with_every_node_in_either_order_of_wiring(klein, run_node, name):
    base = {"base_model": small_klein(seed=5, double_blocks=1, single_blocks=1)} if name == "KleinKitBaseUncond" else {}
    nodes = [reusing(SCHEDULES["alternate"][0]), (name, OTHERS[name] | base)]
    first, second = (run(with_nodes(run_node, klein, *chain)) for chain in (nodes, nodes[::-1]))
    assert torch.equal(first, second) and first.isfinite().all()
    assert not torch.allclose(first, run(with_nodes(run_node, klein, nodes[0])), atol=1e-3)


@pytest.mark.parametrize("unguided", ("reuse", "extrapolate"))
def test_where_every_step_is_guided_nothing_changes(klein, run_node, unguided):
    schedules = [dict(schedule="skip", mode=mode, guided_ratio=1.0) for mode in ("early", "alternate")]
    plain = run(klein)
    for schedule in (dict(schedule="constant"), *schedules):
        assert torch.equal(run(with_nodes(run_node, klein, reusing(schedule, unguided))), plain)


def test_guided_steps_are_those_of_plain_cfg_to_the_bit(klein, run_node):
    def steps_of(model):
        seen = []
        run(model, callback=lambda step, x0, x, total: seen.append(x0.clone()))
        return seen

    plain, ours = steps_of(klein), steps_of(with_nodes(run_node, klein, reusing(SCHEDULES["late"][0])))
    assert [torch.equal(a, b) for a, b in zip(plain, ours)] == [True] * 4 + [False] * 4


def test_at_cfg_1_there_is_nothing_to_reuse(klein, run_node, caplog):
    caplog.set_level("INFO")
    ours = run(with_nodes(run_node, klein, reusing(SCHEDULES["late"][0])), cfg=1.0)
    assert torch.equal(ours, run(klein, cfg=1.0))
    assert f"{STEPS} passes (cond {STEPS}) with" in caplog.text


def test_prompts_with_areas(klein, run_node):
    half = [[embeddings(192, 4), {"pooled_output": None, "area": (1, 2, 0, 0), "strength": 0.8}]]
    positive = [*POSITIVE, *half]
    schedule, guided = SCHEDULES["alternate"]
    ours = run(with_nodes(run_node, klein, reusing(schedule)), positive=positive)
    assert far(ours, straight(klein, guided, "reuse", positive=positive)) <= 1e-5


def test_the_probe_and_the_log_say_one_pass_and_the_cfg_in_force(klein, run_node):
    watched, probe = run_node("KleinKitProbe", model=with_nodes(run_node, klein, reusing(SCHEDULES["late"][0])))
    run(watched)
    calls = probe.runs[-1].calls
    assert [call["passes"] for call in calls] == [2] * 4 + [1] * 4
    assert [call["cfg"] for call in calls] == [CFG] * STEPS


def test_what_is_kept_goes_with_the_run(klein, run_node):
    model = with_nodes(run_node, klein, reusing(SCHEDULES["alternate"][0], "extrapolate"))

    def tensors():
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    run(model), run(model)
    before = tensors()
    assert torch.equal(run(model), run(model))
    assert tensors() == before


def test_another_node_s_function_is_left_out_and_the_log_says_so(klein, run_node, caplog):
    model = with_nodes(run_node, klein, reusing(SCHEDULES["late"][0]))
    model.set_model_sampler_cfg_function(lambda args: args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"]))
    assert run(model).isfinite().all()
    assert any("reuses guidance in steps of one pass" in said for said in warnings(caplog))


def adaptive(threshold, **inputs):
    return "KleinKitAdaptiveGuidance", dict(threshold=threshold, start=0.0, every=0) | inputs


CONSTANT = dict(schedule="constant")


class TestAdaptive:
    @pytest.mark.parametrize(
        "inputs, guided",
        [
            # The threshold is met at once.
            (dict(), {0}),
            (dict(start=0.5), {0, 1, 2, 3, 4}),
            (dict(every=2), {0, 3, 6}),
            (dict(start=0.25, every=3), {0, 1, 2, 6}),
            (dict(start=1.0), set(range(STEPS))),
        ],
    )
    @pytest.mark.parametrize("unguided", ("conditional", "reuse", "extrapolate"))
    def test_its_steps_are_what_klein_cfg_says(self, klein, run_node, caplog, inputs, guided, unguided):
        caplog.set_level("INFO")
        ours = run(with_nodes(run_node, klein, reusing(CONSTANT, unguided), adaptive(-1.0, **inputs)))
        assert passes(caplog.text, len(guided)) if len(guided) < STEPS else f"uncond {STEPS}" in caplog.text
        if unguided == "conditional":
            import comfy.k_diffusion.sampling

            def model_at(x, sigma, **kwargs):
                sigma, step = float(sigma[0]), SIGMAS.tolist().index(float(sigma[0]))
                c, u = (predicted(klein, x, sigma, POSITIVE, NEGATIVE, which) for which in ("cond", "uncond"))
                return x - sigma * (u + CFG * (c - u) if step in guided else c)

            theirs = comfy.k_diffusion.sampling.sample_euler(model_at, NOISE, SIGMAS, extra_args={}, disable=True)
        else:
            theirs = straight(klein, guided, unguided)
        assert far(ours, theirs) <= 1e-5

    def test_guidance_comes_back_where_the_predictions_part_again(self, klein, run_node):
        watched, probe = run_node("KleinKitProbe", model=klein)
        run(watched)
        cosines = [call["cosine"] for call in probe.runs[-1].calls]
        # Met in the first step alone, or in all but it.
        for threshold, first in ((min(cosines) - 1e-3, {0, 3, 6}), (max(cosines) + 1e-3, set(range(STEPS)))):
            watched, probe = run_node(
                "KleinKitProbe", model=with_nodes(run_node, klein, adaptive(min(threshold, 1.0), every=2))
            )
            run(watched)
            assert {i for i, call in enumerate(probe.runs[-1].calls) if call["passes"] == 2} == first

    @pytest.mark.parametrize("inputs", [dict(), dict(start=0.25), dict(every=2)], ids=str)
    @pytest.mark.parametrize("unguided", ("conditional", "reuse", "extrapolate"))
    def test_a_picture_of_a_batch_is_the_picture_that_it_is_alone(self, klein, run_node, inputs, unguided):
        noise = latent_noise(32, 32, batch=3) * torch.tensor([1.0, 0.2, 3.0])[:, None, None, None]
        seen = []
        for k in range(len(noise)):
            watched, probe = run_node("KleinKitProbe", model=klein)
            run(watched, noise[k : k + 1])
            seen.append([call["cosine"] for call in probe.runs[-1].calls])
        # One picture does not come to it while that could still change it.
        threshold = sum(sorted(max(values[:-1]) for values in seen)[:2]) / 2
        model = with_nodes(run_node, klein, reusing(CONSTANT, unguided), adaptive(threshold, **inputs))
        together = run(model, noise)
        alone = [run(model, noise[k : k + 1]) for k in range(len(noise))]
        plain = run(klein, noise)
        changed = [not torch.allclose(one[0], plain[k], atol=1e-4) for k, one in enumerate(alone)]
        assert any(changed) and not all(changed)
        for k, one in enumerate(alone):
            assert far(together[k : k + 1], one) <= 1e-4, k
