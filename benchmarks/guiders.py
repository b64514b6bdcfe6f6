"""Each rule that combines predictions beside diffusers' guider and ComfyUI's own node, on random velocities."""

import importlib
from collections import defaultdict
from unittest import mock

import torch
from diffusers import guiders

from ..guidance import stack
from ..guidance.apg import APG
from ..guidance.fdg import FDG, packed, unpacked
from ..guidance.mambo_g import MamboG
from ..guidance.plan import plan_step
from ..guidance.renorm import Renorm
from ..guidance.rule import ScaledVelocities
from ..guidance.skip_layer import SkipLayer
from ..guidance.tcfg import TCFG
from ..guidance.zero_star import CFGZeroStar
from ..harness.inside import enter

STEPS, CFG = 4, 4.0
SHAPE = 2, 128, 16, 16
# What a model's two predictions and the noise are like.
OFF, APART = 0.3, 0.2


def predictions(index):
    """`(x, sigma, {pass: velocity})` of a step, of a picture and noise of deviation 1."""
    generator = torch.Generator().manual_seed(index)
    picture, noise, off, apart, skip = (torch.randn(SHAPE, generator=generator) for _ in range(5))
    sigma = 1.0 - index / STEPS
    cond = noise - picture + OFF * off
    passes = {"cond": cond, "uncond": cond + APART * apart, "skip": cond + APART * skip}
    return picture + sigma * (noise - picture), sigma, passes


def ours(rules, index, memories, cfg=CFG):
    """x0 of our rules."""
    x, sigma, passes = predictions(index)
    step = plan_step(rules, index, STEPS, sigma, cfg)
    scaled = {name: sigma * v for name, v in passes.items()}
    extra = {name: scaled[name] for name in step.passes if name == "skip"}
    v = ScaledVelocities(x, scaled["cond"], scaled["uncond"], extra)
    guided = stack.apply(rules, v, step, memories)
    return x - (stack.combined(v, step) if guided is None else guided)


def of_diffusers(guider, index, form):
    """x0 of a guider that gets `form(velocity, x, sigma)`."""
    x, sigma, passes = predictions(index)
    guider.set_state(step=index, num_inference_steps=STEPS, timestep=torch.tensor(0))
    guider.prepare_inputs({})
    names = ["cond", "uncond", "skip"][: guider.num_conditions]
    to, back = form
    pred = guider.forward(**{f"pred_{'cond_' * (name == 'skip')}{name}": to(passes[name], x, sigma) for name in names}).pred
    return back(pred, x, sigma)


def as_x0(v, x, sigma):
    return x - sigma * v


class InFloat64(guiders.TangentialClassifierFreeGuidance):
    """What it does in float32, in float64."""

    def forward(self, **passes):
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            return super().forward(**{name: v.double() for name, v in passes.items()})


VELOCITY = lambda v, x, sigma: v, as_x0
DENOISED = as_x0, lambda pred, x, sigma: pred
TOKENS = lambda v, x, sigma: v.flatten(2), lambda pred, x, sigma: as_x0(pred.reshape(x.shape), x, sigma)
PICTURE = lambda v, x, sigma: unpacked(v), lambda pred, x, sigma: as_x0(packed(pred, x), x, sigma)
PROJECTED = dict(adaptive_projected_guidance_momentum=-0.5, eta=0.0)
SKIP = dict(skip_layer_guidance_layers=[0], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
# `(rules, guider, how it gets a prediction, its first step that counts)`.
GUIDERS = (
    ((), guiders.ClassifierFreeGuidance(CFG), VELOCITY, 0),
    ((CFGZeroStar(zero_init_steps=0),), guiders.ClassifierFreeZeroStarGuidance(CFG, zero_init_steps=0), VELOCITY, 0),
    ((SkipLayer(2.5, start=0.0, end=1.0),), guiders.SkipLayerGuidance(CFG, 2.5, **SKIP), VELOCITY, 1),
    ((APG(),), guiders.AdaptiveProjectedGuidance(CFG - 1.0, use_original_formulation=True, **PROJECTED), DENOISED, 0),
    ((APG(space="velocity"),), guiders.AdaptiveProjectedGuidance(CFG, **PROJECTED), VELOCITY, 0),
    (
        (APG(norm_threshold=10.0, space="velocity", start=0.5, scale=10.0),),
        guiders.AdaptiveProjectedMixGuidance(CFG, adaptive_projected_guidance_start_step=1),
        VELOCITY,
        0,
    ),
    ((MamboG(),), guiders.MagnitudeAwareGuidance(CFG), TOKENS, 0),
    ((FDG((1.0, 0.5)),), guiders.FrequencyDecoupledGuidance([CFG, 2.5]), PICTURE, 0),
    ((TCFG(),), guiders.TangentialClassifierFreeGuidance(CFG), VELOCITY, 0),
    ((TCFG(),), InFloat64(CFG), VELOCITY, 0),
)


class Recorder:
    """Of a ModelPatcher what ComfyUI's nodes for guidance use; it keeps their hooks."""

    def __init__(self):
        self.options = {}

    def clone(self):
        return self

    def set_model_sampler_pre_cfg_function(self, function):
        self.options["sampler_pre_cfg_function"] = [function]

    def set_model_sampler_cfg_function(self, function):
        self.options["sampler_cfg_function"] = function

    def set_model_sampler_post_cfg_function(self, function):
        self.options["sampler_post_cfg_function"] = [function]


def of_comfyui(node, pictures=SHAPE[0], **inputs):
    """x0 of ComfyUI's node in each step, for the first pictures of the batch."""
    cfg_function = importlib.import_module("comfy.samplers").cfg_function
    model, results = Recorder(), []
    (node.execute if hasattr(node, "execute") else node().patch)(model, **inputs)
    for index in range(STEPS):
        x, sigma, passes = predictions(index)
        x, *out = (t[:pictures] for t in (x, *(as_x0(passes[name], x, sigma) for name in ("cond", "uncond"))))
        sigma = torch.full((len(x),), sigma)
        for function in model.options.get("sampler_pre_cfg_function", ()):
            args = {"conds": [0, 0], "conds_out": out, "cond_scale": CFG, "input": x, "sigma": sigma}
            out = function(args)
        results.append(cfg_function(None, *out, CFG, x, sigma, model.options))
    return results


def run_of(rules, cfg=CFG):
    """x0 of our rules in each step."""
    memories = defaultdict(dict)
    return [ours(rules, index, memories, cfg) for index in range(STEPS)]


def rescaled(share):
    """x0 of plain CFG with the deviation of the positive's velocity, as `guidance_rescale` of diffusers' guiders."""
    guider = guiders.ClassifierFreeGuidance(CFG, guidance_rescale=share)
    return [of_diffusers(guider, index, VELOCITY) for index in range(STEPS)]


def apart(some, others):
    """The difference of two runs as a share of what guidance adds, in per cent."""
    lengths = []
    for index, (a, b) in enumerate(zip(some, others)):
        _, sigma, passes = predictions(index)
        guidance = (CFG - 1.0) * sigma * (passes["cond"] - passes["uncond"])[: len(a)]
        lengths.append(float((a - b).norm() / guidance.norm()))
    return 100.0 * max(lengths)


def main(arguments):
    enter()
    nodes = {
        name: getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        for module, name in (
            ("nodes_apg", "APG"),
            ("nodes_tcfg", "TCFG"),
            ("nodes_cfg", "CFGNorm"),
            ("nodes_cfg", "CFGZeroStar"),
            ("nodes_mahiro", "Mahiro"),
            ("nodes_model_advanced", "RescaleCFG"),
        )
    }
    print("largest difference in x0 to diffusers' guider:")
    for rules, guider, form, first in GUIDERS:
        memories, far = defaultdict(dict), 0.0
        for index in range(STEPS):
            difference = ours(rules, index, memories) - of_diffusers(guider, index, form)
            far = max(far, float(difference.abs().max())) if index >= first else far
        print(f"  {type(guider).__name__}: {far:.1e}")
    settings = dict(eta=0.2, norm_threshold=15.0, momentum=-0.5)
    apg = of_comfyui(nodes["APG"], **settings)
    norm, rescale = of_comfyui(nodes["CFGNorm"], strength=1.0), of_comfyui(nodes["RescaleCFG"], multiplier=0.7)
    mahiro = of_comfyui(nodes["Mahiro"])
    print(f"difference of ComfyUI's nodes at cfg {CFG:g}, in per cent of what guidance adds:")
    for name, some, others in (
        ("APG, to ours", apg, run_of((APG(**settings),))),
        ("APG, to ours at a cfg one higher", apg, run_of((APG(**settings),), CFG + 1.0)),
        ("TCFG, to ours", of_comfyui(nodes["TCFG"]), run_of((TCFG(),))),
        ("CFGNorm, to ours (token, shrink_only)", norm, run_of((Renorm("token"),))),
        (
            "CFGNorm with pre_cfg, to ours (token)",
            of_comfyui(nodes["CFGNorm"], strength=1.0, pre_cfg=True),
            run_of((Renorm("token", shrink_only=False),)),
        ),
        ("RescaleCFG 0.7, to the same in the velocity", rescale, rescaled(0.7)),
        ("Klein Renorm (global, 0.7), to the same", run_of((Renorm("global", 0.7, False),)), rescaled(0.7)),
        ("Mahiro, to plain CFG", mahiro, run_of(())),
        ("Mahiro, to itself for the picture alone", of_comfyui(nodes["Mahiro"], 1), [t[:1] for t in mahiro]),
        ("CFGZeroStar, to ours", of_comfyui(nodes["CFGZeroStar"]), run_of((CFGZeroStar(zero_init_steps=0),))),
    ):
        print(f"  {name}: {apart(some, others):.2g}")
    return 0
