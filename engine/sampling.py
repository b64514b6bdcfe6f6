"""How the rules of `guidance` run inside ComfyUI: one function a hook point, shared by all nodes."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider

from ..checks import in_node, sentence
from ..guidance import stack
from ..guidance.plan import plan_step
from ..guidance.rule import COND, UNCOND, ExtraPass, Rule, ScaledVelocities, Step
from . import flow_map
from .base_pass import all_as, idle_on_others
from .both_texts import both_texts
from .conflicts import after_run, after_step, before_run, both_run, is_flow, is_plain, scale_of
from .counting import counting
from .extra_pass import block_counts, entry_is_certain, keep_entry, run_pass
from .family import is_flow_map
from .run import COMBINING, LATENT, POST, RESULT, RULES, RUN, Run, all_finite, at_sigma, run_of, titles
from .samplers import follows_from, is_comfyui_s
from .watch import PROBES, Probe, Watch

KEY = "kleinkit"


def with_rule(model: ModelPatcher, rule: Rule) -> ModelPatcher:
    """A clone of the model that carries one more rule.

    Args:
        model: ComfyUI's `ModelPatcher`.
        rule: of the stack.
    Returns:
        The clone.
    Raises:
        ValueError: not a flow matching model, or a rule that the ones before exclude.
    """
    rules, replaced = stack.add(model.model_options.get(RULES, ()), rule)
    model = with_hooks(model)
    if replaced:
        logging.info("KleinKit: the model passes %s twice; the later one counts.", rule.title)
    model.model_options[RULES] = rules
    return model


def with_probe(model: ModelPatcher, probe: Probe) -> ModelPatcher:
    """A clone of the model whose runs `probe` records.

    Args:
        model: ComfyUI's `ModelPatcher`.
        probe: a `watch.Probe`.
    Returns:
        The clone.
    Raises:
        ValueError: not a flow matching model.
    """
    model = with_hooks(model)
    model.model_options[PROBES] = (*model.model_options.get(PROBES, ()), probe)
    return model


def with_hooks(model: ModelPatcher) -> ModelPatcher:
    """A clone of the model with the hooks that run rules and probes.

    Raises:
        ValueError: not a flow matching model.
    """
    if not is_flow(model):
        why = "which is none"
        if "model_sampling" in model.object_patches:
            why = "whose sampling a node before this one, such as ModelSamplingDiscrete, has changed"
        fits = "a flow matching model such as FLUX.2 [klein]"
        raise ValueError(sentence("model", fits, f"got {type(model.model).__name__}, {why}"))
    model = model.clone()
    for kind, hook in ((WrappersMP.SAMPLER_SAMPLE, sample), (WrappersMP.PREDICT_NOISE, predict_noise)):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, hook)
    if post_cfg not in model.model_options.get(POST, ()):
        model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def sample(
    executor: WrapperExecutor,
    guider: CFGGuider,
    sigmas: torch.Tensor,
    extra_args: dict,
    callback: Callable | None,
    noise: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """SAMPLER_SAMPLE wrapper: begin a run, and say at its end what really ran."""
    options = extra_args["model_options"]
    rules = options.get(RULES, ())
    sampler = executor.class_obj
    function = getattr(sampler, "sampler_function", None)
    name, own = getattr(function, "__name__", ""), is_comfyui_s(function)
    hooks, of_flow_map = len(options[POST]), is_flow_map(guider.model_patcher.model)
    run = Run(sigmas.float().tolist(), rules, name, own, hooks, len(noise), of_flow_map, follows_from(executor, guider))
    all_as(guider.model_patcher)
    for warning in (*before_run(rules, guider, options, run.sigmas), *idle_on_others(guider.model_patcher)):
        run.warn(warning)
    if of_flow_map:
        flow_map.refuse(run)
        for warning in flow_map.before_run(run, guider, getattr(sampler, "extra_options", {})):
            run.warn(warning)
    if options.get(PROBES):
        run.watch = Watch(options[PROBES], run, noise.shape)
    options["transformer_options"] = counting({**options.get("transformer_options", {}), RUN: run}, run)

    def stepped(index: int, *others: Any) -> None:
        run.step_done(index)
        if callback is not None:
            callback(index, *others)

    try:
        samples = executor(guider, sigmas, extra_args, stepped, noise, *args, **kwargs)
        run.read()
        after_run(run, guider)
        return samples
    except comfy.model_management.InterruptProcessingException:
        # Who has seen a black preview is told why.
        run.read()
        raise
    finally:
        options["transformer_options"].pop(RUN, None)
        if rules:
            names = dict.fromkeys((COND, UNCOND, *run.total))
            ran = ", ".join(f"{name} {run.total[name]}" for name in names if run.total[name]) or "none"
            passes = sum(run.total.values())
            of_them = [f"{run.cached} of them answered by a cache"] if run.cached else []
            if run.reused:
                scale = " to ".join(f"{cfg:g}" for cfg in sorted({min(run.reused), max(run.reused)}))
                of_them.append(f"{len(run.reused)} of them reusing guidance at cfg {scale}")
            again = "".join(f", {part}" for part in of_them) + "," * bool(of_them)
            steps = len(run.sigmas) - 1
            logging.info("KleinKit: %d steps, %d passes (%s)%s with %s.", steps, passes, ran, again, titles(rules))


def predict_noise(
    executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed: int | None = None
) -> torch.Tensor:
    """PREDICT_NOISE wrapper: one model call, recorded where a probe asks for it."""
    run = run_of(model_options)
    if run is None:
        return executor(x, timestep, model_options, seed)
    run.began(executor.class_obj.conds, is_plain(executor.class_obj))
    if executor.idx:
        # A wrapper of another node stands before ours, and may alter the sigma.
        run.follows_from = math.inf
    if run.watch is not None:
        run.watch.begin()
    try:
        if run.rules:
            denoised = predict(executor, x, timestep, model_options, seed, run)
        else:
            if run.flow_map:
                flow_map.off_sigmas(run, run.sigma_of(timestep))
            denoised = executor(x, timestep, model_options, seed)
        if run.watch is not None:
            run.watch.end(x, timestep, denoised)
        return denoised
    finally:
        run.ended()


@contextmanager
def changed(options: dict, values: dict, hidden: tuple[str, ...] = ()) -> Iterator[None]:
    """Inside, some options have other values, and some are hidden.

    No copy is made: other packs keep what they know of a run in the options.
    """
    names = (*values, *hidden)
    before = {name: options[name] for name in names if name in options}
    for name in hidden:
        options.pop(name, None)
    options.update(values)
    try:
        yield
    finally:
        for name in names:
            options.pop(name, None)
        options.update(before)


def predict(
    executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed: int | None, run: Run
) -> torch.Tensor:
    """Plan the step of this model call, and have the sampler run the passes of the plan and no others."""
    guider, conds = executor.class_obj, executor.class_obj.conds
    sigma = run.sigma_of(timestep)
    flow_map.off_sigmas(run, sigma)
    index = run.enter(sigma)
    step = plan_step(run.rules, index, len(run.sigmas) - 1, sigma, scale_of(guider), run.observed, run.known)
    transformer_options = model_options["transformer_options"]
    run.model_options = {**model_options, "transformer_options": {**transformer_options}}
    run.step = step = as_the_guider_can(step, guider, model_options, run)
    # ComfyUI's DualModelGuider keeps it under this name.
    run.negative_model = getattr(guider, "uncond_inner", None)
    run.finite = {}
    run.unread.append((step, run.finite))
    if step.zero:
        # No velocity: all predictions are x. Samplers of the cfg_pp kind take the negative's from a hook of their own.
        own = {POST: model_options[POST][run.hooks :]}
        prompts = conds["positive"], conds.get("negative")
        return comfy.samplers.cfg_function(guider.inner_model, x, x, 1.0, x, timestep, own, *prompts)

    extras = extras_of(run.rules, step)
    values, mixing = {}, both_texts(run, step, conds)
    alone = run.model_options
    run.model_options = {**alone, "transformer_options": {**alone["transformer_options"], **mixing}}
    # What is reused joins the sampler's own result at cfg 1.
    scale = 1.0 if step.reuse else step.cfg
    # Some guiders return at cfg 1 before the hook in which an extra pass runs.
    if scale == 1.0 and (UNCOND in step.passes or (extras and not is_plain(guider))):
        values["disable_cfg1_optimization"] = True
    for _, extra in extras:
        prompt = conds.get("positive" if extra.of == COND else "negative") or ()
        # Where both texts run, the negative's own pass may carry the positive's text too.
        same_tokens = extra.of == COND or not mixing
        counts = block_counts(guider.inner_model) if extra.blocks else {}
        if is_plain(guider) and same_tokens and entry_is_certain(extra, prompt, alone, counts):
            run.keeps.append(keep_entry(guider.inner_model, extra, run))
    asked = scale_of(guider)
    negative_only = step.passes == (UNCOND,)
    one_pass = is_plain(guider) and UNCOND not in step.passes and not math.isclose(asked, scale)
    cfg = guider.cfg
    try:
        # The negative alone takes the positive's place: one pass, and every other hook sees a run at cfg 1.
        if negative_only:
            guider.conds = {**conds, "positive": conds["negative"]}
        if one_pass or negative_only:
            values[POST] = [one_prediction(hook) for hook in model_options[POST]]
        if run.keeps:
            values[POST] = [partial(kept, run), *values.get(POST, model_options[POST])]
        if asked == cfg:
            guider.cfg = 1.0 if negative_only else scale
        with (
            changed(model_options, values, COMBINING if one_pass or negative_only else ()),
            changed(transformer_options, mixing),
        ):
            denoised = executor(x, timestep, model_options, seed)
        run.finite |= {LATENT: all_finite(x), RESULT: all_finite(denoised)}
        after_step(run, guider)
        return denoised
    finally:
        guider.cfg, guider.conds = cfg, conds
        run.keeps.clear()
        run.entries.clear()


def kept(run: Run, args: dict) -> torch.Tensor:
    """The first post-CFG hook of a step: what another node's hook runs after it is not kept for ours."""
    run.keeps.clear()
    return args["denoised"]


def one_prediction(hook: Callable[[dict], torch.Tensor]) -> Callable[[dict], torch.Tensor]:
    """A post-CFG hook that finds the one prediction of a step in the place of both; ComfyUI has zeros for the other."""

    def call(args: dict) -> torch.Tensor:
        return hook(args if args["uncond"] is not None else {**args, "uncond_denoised": args["cond_denoised"]})

    return call


def extras_of(rules: tuple[Rule, ...], step: Step) -> list[tuple[Rule, ExtraPass]]:
    """The extra passes of a step, each with the rule that owns it."""
    return [(rule, extra) for rule in rules for extra in rule.passes if extra.name in step.passes]


def as_the_guider_can(step: Step, guider: CFGGuider, model_options: dict, run: Run) -> Step:
    """The step without what its guider has no prompt for; with both passes, where the negative's alone cannot be had."""
    if step.zero:
        return step
    if is_plain(guider) and "negative" not in guider.conds:
        of_negative = {UNCOND, *(extra.name for _, extra in extras_of(run.rules, step) if extra.of != COND)}
        if of_negative & set(step.passes):
            run.warn("This guider has no negative prompt, so guidance that needs one is left out.")
            passes = tuple(name for name in step.passes if name not in of_negative)
            return replace(step, cfg=1.0, passes=passes if COND in passes else (COND, *passes))
    if step.reuse and not is_plain(guider):
        run.warn(f"{type(guider).__name__} joins the predictions by itself, so guidance cannot be reused: both passes run.")
        return replace(step, reuse=False, passes=tuple(dict.fromkeys((COND, UNCOND, *step.negatives, *step.passes))))
    # Others' guiders and nodes may run the negative elsewhere, or want both at once.
    if step.passes == (UNCOND,) and not (is_plain(guider) and not model_options.get("disable_cfg1_optimization")):
        if is_plain(guider) or not step.guided:
            both_run(run, guider)
        return replace(step, passes=(COND, UNCOND))
    return step


def post_cfg(args: dict) -> torch.Tensor:
    """Post-CFG hook: apply the rules to the predictions of a step, as a difference to what the sampler made of them."""
    run = run_of(args["model_options"])
    if run is None:
        return args["denoised"]
    run.learn(args["cond"], args["uncond"])
    step, x = run.step, args["input"]
    negative_only = step is not None and step.passes == (UNCOND,)
    ran_uncond = args["uncond"] is not None
    # Another node may have changed the scale after the plan: what the sampler used is what counts.
    used = 0.0 if negative_only else float(args["cond_scale"]) if ran_uncond else 1.0
    if step is not None and step.reuse:
        if used == 1.0:
            # A negative that another node has run all the same is not looked at.
            ran_uncond, used = False, step.cfg
        else:
            step = replace(step, reuse=False)
    if run.watch is not None:
        cond, uncond = args["cond_denoised"], args["uncond_denoised"] if ran_uncond else None
        run.watch.see(used, *((None, cond) if negative_only else (cond, uncond)))
    if step is None:
        return args["denoised"]
    if negative_only:
        run.finite[UNCOND] = all_finite(args["cond_denoised"])
        return args["denoised"]

    if not math.isclose(used, step.cfg):
        # At another scale rules may need other passes than they planned.
        step = replace(step, cfg=used)
        needs = (need for rule in run.rules for need in rule.needs(step))
        step = replace(step, passes=tuple(dict.fromkeys((*step.passes, *needs))))
    extra = {}
    for rule, one in extras_of(run.rules, step):
        # The sampler hands no negative on where it runs none.
        negative = run.conds.get("negative") if args["uncond"] is None else args["uncond"]
        prompt = (args["cond"] if one.of == COND else negative) or ()
        # What another node answered for has no blocks to compare with.
        answered = run.served(one.of) or (one.of in step.passes and not run.blocks(one.of))
        if at_sigma(prompt, step.sigma) and not answered:
            with in_node(rule.title):
                denoised = run_pass(one, run, args["model"], prompt, x, args["sigma"])
            if denoised is not None:
                extra[one.name] = x - denoised
    velocities = ScaledVelocities(x, x - args["cond_denoised"], x - args["uncond_denoised"] if ran_uncond else None, extra)
    run.finite |= {name: all_finite(v) for name, v in {COND: velocities.cond, **extra}.items()}
    if velocities.uncond is not None:
        run.finite[UNCOND] = all_finite(velocities.uncond)
        if UNCOND in step.negatives:
            run.latest = frozenset(name for name in step.negatives if name == UNCOND or name in extra)
    if step.reuse:
        run.reused.append(step.cfg)
    run.used = used
    sampled = x - args["denoised"]
    guided = stack.apply(run.rules, velocities, step, run.memories, sampled)
    if step.guided and not step.reuse:
        for rule in run.rules:
            if rule.decides and (seen := rule.observe(velocities, run.memories[rule.node])) is not None:
                run.pending[rule.node] = seen
    return args["denoised"] if guided is None else args["denoised"] - (guided - sampled)
