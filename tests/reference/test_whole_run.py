"""Whole sampling runs: ComfyUI with KleinKit against diffusers, on the same weights, noise, embeddings and sigmas."""

import pytest
import torch
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.skip_layer_guidance import SkipLayerGuidance
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from diffusers.hooks.layer_skip import AttentionProcessorSkipHook
from safetensors.torch import load_file
from sampling import (
    comfy_run,
    conditioning,
    diffusers_run,
    diffusers_transformer,
    diffusers_velocity,
    embeddings,
    latent_noise,
)
from sigmas import scheduler_inputs

# Steps, and height and width.
SCENES = ((4, (128, 128)), (8, (96, 192)))
TEXT_WIDTH = 192
LIMIT = 1e-5


@pytest.fixture(scope="module")
def transformers(models):
    return {role: diffusers_transformer(load_file(models[role])) for role in ("base", "distilled")}


@pytest.fixture
def klein(comfy, models):
    import comfy.sd

    return lambda role: comfy.sd.load_diffusion_model(str(models[role]), {"dtype": torch.float32})


def sigmas_of(run_node, steps, size):
    height, width = size
    return run_node("KleinKitScheduler", **scheduler_inputs(steps=steps, width=width, height=height))[0]


def guider_run(transformer, sigmas, noise, cond, uncond, guider, skipping=None):
    """diffusers' transformer guided by one of diffusers' own guiders."""
    steps = len(sigmas) - 1

    def velocity(x, sigma, step):
        guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(sigma))
        passes = {"pred_cond": diffusers_velocity(transformer, x, sigma, cond)}
        if guider._is_cfg_enabled():
            passes["pred_uncond"] = diffusers_velocity(transformer, x, sigma, uncond)
        if skipping and guider._is_slg_enabled():
            passes["pred_cond_skip"] = skipping(x, sigma)
        return guider.forward(**passes).pred

    return diffusers_run(sigmas, noise, velocity)


def skip_with_hooks(transformer, cond, mode, double_layers, single_layers):
    """The positive pass of diffusers with diffusers' own layer-skip hooks.

    diffusers 0.42 cannot use two of them on FLUX.2 as they are: the hook for whole blocks returns the two streams of a
    double block in the wrong order, so a double block is taken out of the transformer instead; and the search for
    attention modules misses FLUX.2's, so the hook is put on them directly.
    """
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    rest = torch.nn.ModuleList(block for i, block in enumerate(double) if i not in double_layers)

    def velocity(x, sigma):
        if mode == "block":
            apply_layer_skip(transformer, LayerSkipConfig(single_layers, fqn="single_transformer_blocks"))
            transformer.transformer_blocks = rest
        else:
            for block in (*(double[i] for i in double_layers), *(single[i] for i in single_layers)):
                hook = AttentionProcessorSkipHook(None, skip_attention_scores=True)
                HookRegistry.check_if_exists_or_initialize(block.attn).register_hook(hook, "layer_skip_hook")
        try:
            return diffusers_velocity(transformer, x, sigma, cond)
        finally:
            transformer.transformer_blocks = double
            HookRegistry.check_if_exists_or_initialize(transformer).remove_hook("layer_skip_hook", recurse=True)

    return velocity


@pytest.mark.parametrize("steps, size", SCENES)
class TestAgainstDiffusers:
    @pytest.fixture(autouse=True)
    def scene(self, klein, transformers, run_node, steps, size):
        self.noise = latent_noise(*size)
        self.cond, self.uncond = embeddings(TEXT_WIDTH, 1), embeddings(TEXT_WIDTH, 2)
        self.sigmas = sigmas_of(run_node, steps, size)
        self.klein, self.transformers, self.run_node = klein, transformers, run_node

    def ours(self, cfg, *nodes, role="base"):
        model = self.klein(role)
        for node, inputs in nodes:
            (model,) = self.run_node(node, model=model, **inputs)
        return comfy_run(model, self.sigmas, self.noise, conditioning(self.cond), conditioning(self.uncond), cfg)

    def theirs(self, guider, skipping=None, role="base"):
        return guider_run(self.transformers[role], self.sigmas, self.noise, self.cond, self.uncond, guider, skipping)

    def agree(self, ours, theirs):
        assert theirs.std() > 0.1
        assert (ours - theirs).abs().max() <= LIMIT * theirs.abs().max().clamp_min(1.0)

    def test_cfg(self):
        self.agree(
            self.ours(4.0, ("KleinKitCFG", {"schedule": {"schedule": "constant"}, "unguided": "conditional"})),
            self.theirs(ClassifierFreeGuidance(4.0)),
        )

    def test_cfg_interval(self):
        interval = {"schedule": "interval", "start": 0.25, "end": 0.75}
        self.agree(
            self.ours(4.0, ("KleinKitCFG", {"schedule": interval, "unguided": "conditional"})),
            self.theirs(ClassifierFreeGuidance(4.0, start=0.25, stop=0.75)),
        )

    def test_cfg_zero_star(self):
        self.agree(
            self.ours(4.0, ("KleinKitCFGZeroStar", {"optimized_scale": True, "zero_init_steps": 1})),
            self.theirs(ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=1)),
        )

    @pytest.mark.parametrize("mode", ("block", "attention"))
    def test_skip_layer(self, mode, steps):
        # diffusers leaves out step `start`·n itself, so its range begins a step before ours.
        guider = SkipLayerGuidance(
            4.0,
            skip_layer_guidance_scale=2.5,
            skip_layer_guidance_start=0.25,
            skip_layer_guidance_stop=0.75,
            skip_layer_guidance_layers=[0],
        )
        skipping = skip_with_hooks(self.transformers["base"], self.cond, mode, [1], [0, 2])
        inputs = {
            "scale": 2.5,
            "double_layers": "1",
            "single_layers": "0, 2",
            "start": (steps // 4 + 1) / steps,
            "end": 0.75,
            "mode": mode,
            "rescale": 0.0,
        }
        self.agree(self.ours(4.0, ("KleinKitSkipLayerGuidance", inputs)), self.theirs(guider, skipping))

    def test_distilled(self):
        self.agree(self.ours(1.0, role="distilled"), self.theirs(ClassifierFreeGuidance(1.0), role="distilled"))
