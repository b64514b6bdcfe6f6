"""How the rules of `guidance` run inside ComfyUI: one function a hook point, shared by all nodes."""

import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..guidance import stack
from ..guidance.plan import plan, plan_step, step_index
from ..guidance.rule import ADAPTIVE, COMBINE, DISTILLED, NEGATIVE, PASSES, SCHEDULE, Step, Velocities
from ..guidance.skip_layer import SkipLayer
from .skip_pass import block_counts, capture_entry, entry_is_certain, skip_options
from .watch import PROBES, Watch

RULES = "kleinkit_rules"
RUN = "kleinkit_run"
KEY = "kleinkit"
LATENT, RESULT = "latent", "result"


@dataclass
class Run:
    """What one sampling run knows; it lives in the run's own copy of `model_options`.

    Attributes:
        sigmas: of the run.
        hooks: how many post-CFG functions there are before the sampler adds its own.
        own_scales: whether the guider has other scales than cfg.
        watch: what records the run for a probe, or None.
        step, index, model_options: of the model call in progress, and the index of the one before.
        observed: what rules observed, scalars on the device, by node.
        entry: what `capture_entry` keeps for the skip pass.
        finite: whether the latent, the passes and the result of the call before are; booleans on the device.
        calls: how many passes of each kind ran.
        warned: sentences, or their topics, that were said.
    """

    sigmas: list
    hooks: int
    own_scales: bool
    watch: Watch | None = None
    step: Step | None = None
    index: int | None = None
    model_options: dict | None = None
    observed: dict = field(default_factory=dict)
    entry: list = field(default_factory=list)
    finite: dict = field(default_factory=dict)
    calls: dict = field(default_factory=lambda: dict.fromkeys(PASSES, 0))
    warned: set = field(default_factory=set)

    def warn(self, sentence, topic=None):
        if (topic or sentence) not in self.warned:
            self.warned.add(topic or sentence)
            logging.warning("KleinKit: %s", sentence)

    def read(self, *scalars):
        """Bring scalars to the host, together with what the rules observed and what was finite: one synchronisation.

        Returns:
            `(floats, {node: float})`: of the scalars, and of what was observed.
        """
        tensors = (*scalars, *self.observed.values(), *self.finite.values())
        values = iter(torch.stack([tensor.float() for tensor in tensors]).tolist() if tensors else ())
        floats = [next(values) for _ in scalars]
        observed = {node: next(values) for node in self.observed}
        broken = [name for name in self.finite if not next(values)]
        self.finite.clear()
        if RESULT in broken:
            nodes = ", ".join(rule.node for rule in self.model_options.get(RULES, ()))
            self.warn(
                f"NaN or infinity {source(broken)} step {self.step.index + 1} of {self.step.steps}, at sigma "
                f"{self.step.sigma:.4g}; expect a black picture. The guidance is {nodes or 'plain CFG'}.",
                topic="NaN",
            )
        return floats, observed


def source(broken):
    """Where a result that is not finite comes from, of the names that `Run.finite` has."""
    if LATENT in broken:
        return "in the latent before"
    passes = ", ".join(name for name in PASSES if name in broken)
    return f"from the model ({passes}) in" if passes else "from finite predictions in"


def finite(tensor):
    return tensor.isfinite().all()


def with_rule(model, rule):
    """A clone of the model that carries one more rule.

    Args:
        model: ComfyUI's `ModelPatcher`.
        rule: a `guidance.rule.Rule`.
    Returns:
        The clone.
    Raises:
        ValueError: not a flow matching model, or a rule that the ones before exclude.
    """
    rules, replaced = stack.add(model.model_options.get(RULES, ()), rule)
    model = with_hooks(model)
    if replaced:
        logging.info("KleinKit: the model passes %s twice, the later one counts.", rule.node)
    model.model_options[RULES] = rules
    return model


def with_probe(model, probe):
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


def with_hooks(model):
    """A clone of the model with the hooks that run rules and probes.

    Raises:
        ValueError: not a flow matching model.
    """
    if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ValueError(
            f"Expected `model` to be a flow matching model such as FLUX.2 [klein], but got "
            f"{type(model.model).__name__}, which is none."
        )
    model = model.clone()
    for kind, hook in ((WrappersMP.SAMPLER_SAMPLE, sample), (WrappersMP.PREDICT_NOISE, predict_noise)):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, hook)
    if guide not in model.model_options.get("sampler_post_cfg_function", ()):
        model.set_model_sampler_post_cfg_function(guide)
    return model


def run_of(model_options):
    return model_options.get("transformer_options", {}).get(RUN)


def sample(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """Begin a run, and say at its end what really ran."""
    options = extra_args["model_options"]
    rules = options.get(RULES, ())
    run = Run(sigmas.float().tolist(), len(options["sampler_post_cfg_function"]), has_own_scales(guider))
    for sentence in conflicts(rules, guider, options, run.sigmas):
        run.warn(sentence)
    transformer_options = {**options.get("transformer_options", {}), RUN: run}
    if options.get(PROBES):
        run.watch = Watch(options[PROBES], run.sigmas, noise.shape, rules)
        transformer_options = run.watch.counting(transformer_options)
    options["transformer_options"] = transformer_options
    try:
        samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        run.read()
        return samples
    finally:
        options["transformer_options"].pop(RUN, None)
        if rules:
            ran = ", ".join(f"{name} {count}" for name, count in run.calls.items() if count)
            logging.info(
                "KleinKit: %d steps, %d passes (%s) with %s.",
                len(run.sigmas) - 1,
                sum(run.calls.values()),
                ran or "none",
                ", ".join(rule.node for rule in rules),
            )


def conflicts(rules, guider, model_options, sigmas):
    """What has no effect or no meaning in this run, a sentence each."""
    nodes = {rule.order: rule.node for rule in rules}
    if DISTILLED in nodes:
        others = [rule for rule in rules if rule.order != DISTILLED]
        asked = max((step.cfg for step in plan(others, sigmas, scale_of(guider))), default=0.0)
        if asked > 1.0:
            yield (
                f"cfg {asked:g} counts as 1 on this distilled model; set cfg to 1, or `distilled_cfg` of KleinKitLoader "
                "to `allow`."
            )
    if has_own_scales(guider) and nodes.keys() & {SCHEDULE, DISTILLED, ADAPTIVE}:
        yield f"{type(guider).__name__} has scales of its own, so schedules of cfg have no effect in it."
    if COMBINE in nodes and "sampler_cfg_function" in model_options:
        yield f"{nodes[COMBINE]} and another node's sampler_cfg_function both combine the predictions; remove one."
    hooks = (getattr(hook, "__qualname__", "") for hook in model_options["sampler_post_cfg_function"])
    if NEGATIVE in nodes and any(name.startswith("CFGZeroStar.") for name in hooks):
        yield f"{nodes[NEGATIVE]} and ComfyUI's CFGZeroStar both scale the negative prediction; remove ComfyUI's."


def has_own_scales(guider):
    return type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise


def scale_of(guider):
    """A guider's cfg; 1 where it is no number, as in KJNodes' ScheduledCFGGuidance, whose cfg can be a list."""
    return guider.cfg if isinstance(guider.cfg, (int, float)) else 1.0


def predict_noise(executor, x, timestep, model_options, seed=None):
    """One model call, recorded where a probe asks for it."""
    run = run_of(model_options)
    if run is None or run.watch is None:
        return predict(executor, x, timestep, model_options, seed)
    run.watch.begin()
    denoised = predict(executor, x, timestep, model_options, seed)
    run.watch.end(x, timestep, denoised)
    return denoised


@contextmanager
def changed(options, values):
    """Inside, some options have other values. No copy is made: other packs keep what they know of a run in the options."""
    before = {name: options[name] for name in values if name in options}
    options.update(values)
    try:
        yield
    finally:
        for name in values:
            options.pop(name, None)
        options.update(before)


def predict(executor, x, timestep, model_options, seed):
    """Plan the step of this model call, and have the sampler run the passes of the plan and no others."""
    run, guider = run_of(model_options), executor.class_obj
    rules = model_options.get(RULES, ())
    if run is None or not rules:
        return executor(x, timestep, model_options, seed)

    (sigma,), observed = run.read(timestep.flatten()[0])
    run.index = step_index(sigma, run.sigmas, run.index)
    step = plan_step(rules, run.index, len(run.sigmas) - 1, sigma, scale_of(guider), observed)
    transformer_options = model_options["transformer_options"]
    run.step, run.model_options = step, {**model_options, "transformer_options": {**transformer_options}}
    run.entry.clear()
    if step.zero:
        # No velocity: all predictions are x. Samplers of the cfg_pp kind take the negative's from a hook of their own.
        own = model_options["sampler_post_cfg_function"][run.hooks :]
        return comfy.samplers.cfg_function(
            guider.inner_model,
            x,
            x,
            1.0,
            x,
            timestep,
            {"sampler_post_cfg_function": own},
            guider.conds["positive"],
            guider.conds.get("negative"),
        )

    conds = guider.conds
    if "negative" not in conds and {"uncond", "image"} & set(step.passes):
        run.warn("this guider has no negative, so the guidance that needs one is left out.")
        step = run.step = replace(step, cfg=1.0, passes=("cond", *{"skip"} & set(step.passes)))

    values, patches = {}, {}
    if "uncond" in step.passes and step.cfg == 1.0:
        values["disable_cfg1_optimization"] = True
    if "skip" in step.passes and entry_is_certain(conds, model_options):
        rule = next(rule for rule in rules if isinstance(rule, SkipLayer))
        captured = capture_entry(model_options, rule, run.entry)
        patches["patches_replace"] = captured["transformer_options"]["patches_replace"]

    cfg, negative_only = guider.cfg, step.passes == ("uncond",)
    try:
        # The negative alone takes the positive's place: one pass, and every other hook sees a run at cfg 1.
        if negative_only:
            guider.conds = {**conds, "positive": conds["negative"]}
        if scale_of(guider) == cfg:
            guider.cfg = 1.0 if negative_only else step.cfg
        with changed(model_options, values), changed(transformer_options, patches):
            denoised = executor(x, timestep, model_options, seed)
        run.finite |= {LATENT: finite(x), RESULT: finite(denoised)}
        return denoised
    finally:
        guider.cfg, guider.conds = cfg, conds
        run.entry.clear()


def guide(args):
    """Apply the rules to the predictions of a step, as a difference to what the sampler made of them."""
    run, rules = run_of(args["model_options"]), args["model_options"].get(RULES, ())
    if run is None:
        return args["denoised"]
    step, x = run.step, args["input"]
    negative_only = step is not None and step.passes == ("uncond",)
    ran_uncond = args["uncond"] is not None
    # Another pack may have changed the scale after the plan: what the sampler used is what counts.
    used = 0.0 if negative_only else float(args["cond_scale"]) if ran_uncond else 1.0
    if run.watch is not None:
        cond, uncond = args["cond_denoised"], args["uncond_denoised"] if ran_uncond else None
        run.watch.see(used, *((None, cond) if negative_only else (cond, uncond)))
    if step is None:
        return args["denoised"]
    if negative_only:
        run.calls["uncond"] += 1
        run.finite["uncond"] = finite(args["cond_denoised"])
        return args["denoised"]
    run.calls["cond"] += 1
    run.calls["uncond"] += ran_uncond

    def velocity(denoised):
        return None if denoised is None else x - denoised

    velocities = Velocities(
        x,
        cond=velocity(args["cond_denoised"]),
        uncond=velocity(args["uncond_denoised"]) if ran_uncond else None,
        image=velocity(image_pass(args, run)) if "image" in step.passes else None,
        skip=velocity(skip_pass(args, run, rules)) if "skip" in step.passes else None,
    )
    run.finite |= {name: finite(v) for name in PASSES if (v := getattr(velocities, name)) is not None}
    if not math.isclose(used, step.cfg) and not run.own_scales:
        run.warn(f"another node changed cfg to {used:g} behind KleinKit's nodes, which follow it.")
    step = replace(step, cfg=used)
    if step.guided:
        run.observed |= {rule.node: seen for rule in rules if (seen := rule.observe(velocities)) is not None}
    guided = stack.guide(rules, velocities, step)
    if guided is None:
        return args["denoised"]
    return args["denoised"] - (guided - stack.combined(velocities, step).guided)


def skip_pass(args, run, rules):
    """x0 of the positive with layers skipped."""
    rule = next(rule for rule in rules if isinstance(rule, SkipLayer))
    run.calls["skip"] += 1
    options = skip_options(run.model_options, rule, run.entry, block_counts(args["model"]))
    return comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)[0]


def image_pass(args, run):
    """x0 of the negative without its reference latents."""
    if not any("ref_latents" in cond["model_conds"] for cond in args["uncond"]):
        raise ValueError(
            "KleinKitImageCFG: Expected the negative conditioning to carry reference latents, but got none; "
            "put ReferenceLatent behind the negative prompt too."
        )
    without = [
        {**cond, "model_conds": {k: v for k, v in cond["model_conds"].items() if not k.startswith("ref_latents")}}
        for cond in args["uncond"]
    ]
    run.calls["image"] += 1
    return comfy.samplers.calc_cond_batch(args["model"], [None, without], args["input"], args["sigma"], run.model_options)[1]
