"""Whole runs of guiders that own a pass or a memory, against diffusers' own guider or a paper's formula on its transformer."""

from contextlib import contextmanager

import pytest
import torch
from diffusers.guiders.auto_guidance import AutoGuidance
from diffusers.guiders.perturbed_attention_guidance import PerturbedAttentionGuidance
from diffusers.guiders.smoothed_energy_guidance import SmoothedEnergyGuidance
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig, _gaussian_blur_2d
from diffusers.models.transformers import transformer_flux2
from kleinkit.nano.build import transformer as weights
from kleinkit.nano.in_comfyui import random_klein
from sampling import (
    comfy_run,
    conditioning,
    diffusers_run,
    diffusers_transformer,
    diffusers_velocity,
    embeddings,
    far,
    latent_noise,
    with_nodes,
)

SIGMAS = torch.tensor([1.0, 0.93, 0.7, 0.0])
STEPS = len(SIGMAS) - 1
SHAPE = {"double_blocks": 1, "single_blocks": 2}
LIMIT = 1e-5
COND, UNCOND = embeddings(192, 1), embeddings(192, 2)
NOISE = latent_noise(48, 64, batch=2)


def of_seed(seed):
    return diffusers_transformer({key: torch.from_numpy(array) for key, array in weights(seed, **SHAPE).items()})


@pytest.fixture(scope="module")
def transformer():
    return of_seed(0)


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein(**SHAPE)


def ours(run_node, model, *nodes, cfg=1.0):
    return comfy_run(with_nodes(run_node, model, *nodes), SIGMAS, NOISE, conditioning(COND), conditioning(UNCOND), cfg)


def velocity_of(transformer, x, sigma, text):
    return diffusers_velocity(transformer, x, sigma, text.expand(len(x), -1, -1))


class TestAutoGuidance:
    @pytest.mark.parametrize("prompt, weak_text", [("positive", COND), ("negative", UNCOND)])
    def test_dropped_layers_are_diffusers_own_guider(self, transformer, klein, run_node, prompt, weak_text):
        config = LayerSkipConfig([1], fqn="single_transformer_blocks")
        guider = AutoGuidance(2.5, auto_guidance_config=config, start=0.0, stop=2 / 3)

        def velocity(x, sigma, step):
            guider.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(sigma))
            predictions = []
            # Of its two batches diffusers drops the layers in the second, which has the negative where there is one.
            for text in (COND, weak_text)[: guider.num_conditions]:
                guider.prepare_models(transformer)
                predictions.append(velocity_of(transformer, x, sigma, text))
                guider.cleanup_models(transformer)
            return guider.forward(*predictions).pred

        theirs = diffusers_run(SIGMAS, NOISE, velocity)
        node = ("KleinKitAutoGuidance", dict(scale=2.5, double_layers="", single_layers="1", prompt=prompt, start=0.0, end=0.6))
        assert far(ours(run_node, klein, node), theirs) <= LIMIT
        assert far(ours(run_node, klein), theirs) > 1e-2

    @pytest.mark.parametrize("prompt, cfg", [("positive", 1.0), ("both", 1.0), ("positive", 4.0), ("both", 4.0)])
    def test_a_weak_model(self, transformer, klein, run_node, prompt, cfg):
        """The paper's D = D_weak + w (D − D_weak) of the prompts that it guides, and CFG of what comes of it."""
        weak, scale = of_seed(5), 2.5

        def velocity(x, sigma, step):
            cond, uncond = (velocity_of(transformer, x, sigma, text).double() for text in (COND, UNCOND))
            weak_cond, weak_uncond = (velocity_of(weak, x, sigma, text).double() for text in (COND, UNCOND))
            if prompt == "both":
                cond, uncond = weak_cond + scale * (cond - weak_cond), weak_uncond + scale * (uncond - weak_uncond)
                return (uncond + cfg * (cond - uncond)).float()
            # For the positive alone its difference is added once, whatever cfg is.
            return (uncond + cfg * (cond - uncond) + (scale - 1) * (cond - weak_cond)).float()

        theirs = diffusers_run(SIGMAS, NOISE, velocity)
        node = dict(scale=scale, double_layers="", single_layers="", prompt=prompt, start=0.0, end=1.0)
        node["weak_model"] = random_klein(seed=5, **SHAPE)
        assert far(ours(run_node, klein, ("KleinKitAutoGuidance", node), cfg=cfg), theirs) <= LIMIT

    def test_beside_base_uncond_the_base_lacks_the_layers(self, transformer, klein, run_node):
        base, cfg, scale = of_seed(5), 3.0, 2.5

        def dropped(model, x, sigma, text):
            apply_layer_skip(model, LayerSkipConfig([0], fqn="single_transformer_blocks"))
            try:
                return velocity_of(model, x, sigma, text).double()
            finally:
                HookRegistry.check_if_exists_or_initialize(model).remove_hook("layer_skip_hook", recurse=True)

        def velocity(x, sigma, step):
            cond, uncond = (
                (1 - scale) * dropped(model, x, sigma, text) + scale * velocity_of(model, x, sigma, text).double()
                for model, text in ((transformer, COND), (base, UNCOND))
            )
            return (uncond + cfg * (cond - uncond)).float()

        theirs = diffusers_run(SIGMAS, NOISE, velocity)
        node = dict(scale=scale, double_layers="", single_layers="0", prompt="both", start=0.0, end=1.0)
        nodes = ("KleinKitAutoGuidance", node), ("KleinKitBaseUncond", {"base_model": random_klein(seed=5, **SHAPE)})
        assert far(ours(run_node, klein, *nodes, cfg=cfg), theirs) <= LIMIT

    def test_a_weak_model_with_the_negative_is_base_uncond(self, klein, run_node):
        """So diffusers' pairing costs no node: at cfg w it is Klein Base Uncond, at cfg 1 this one."""
        other = random_klein(seed=5, **SHAPE)
        node = dict(scale=3.0, double_layers="", single_layers="", prompt="negative", start=0.0, end=1.0, weak_model=other)
        base = ours(run_node, klein, ("KleinKitBaseUncond", {"base_model": other}), cfg=3.0)
        assert far(ours(run_node, klein, ("KleinKitAutoGuidance", node)), base) <= LIMIT


SQUARE, TOKENS = latent_noise(64, 64, batch=2), 16
REFERENCES = [latent_noise(32, 48, seed=3)]


def identity(attention, query, key, value, *args, **kwargs):
    """Perturbed attention, arXiv 2403.17377: the map is the identity, so each token gets its own value."""
    scores = torch.eye(value.shape[1], dtype=value.dtype).expand(*value.shape[:1], value.shape[2], -1, -1)
    return torch.einsum("bhij,bjhc->bihc", scores, value)


def smoothed(sigma):
    """Smoothed energy, arXiv 2408.00760: its equation blurs the logits of the picture's queries over where they ask."""

    def attend(attention, query, key, value, *args, **kwargs):
        logits = torch.einsum("bihc,bjhc->bhij", query, key) / query.shape[-1] ** 0.5
        asked = logits[:, :, 512 : 512 + TOKENS].flatten(0, 1)
        size = 7 if sigma == 1.0 else 1
        blurred = _gaussian_blur_2d(asked.clone(), size, sigma, 0.5 if sigma == 1.0 else torch.inf)
        logits[:, :, 512 : 512 + TOKENS] = blurred.unflatten(0, logits.shape[:2])
        return torch.einsum("bhij,bjhc->bihc", logits.softmax(-1), value)

    return attend


@contextmanager
def attention_is(other, places):
    """Inside, the attentions of a forward at these places are another."""
    attention, calls = transformer_flux2.dispatch_attention_fn, []

    def dispatch(*args, **kwargs):
        calls.append(None)
        return other(attention, *args, **kwargs) if len(calls) - 1 in places else attention(*args, **kwargs)

    transformer_flux2.dispatch_attention_fn = dispatch
    try:
        yield
    finally:
        transformer_flux2.dispatch_attention_fn = attention


@pytest.mark.parametrize("references", [[], REFERENCES], ids=["text", "edit"])
@pytest.mark.parametrize(
    "node, inputs, other",
    [
        ("KleinKitSkipLayerGuidance", dict(mode="attention", rescale=0.0), identity),
        ("KleinKitSEG", dict(blur_sigma=10000.0), smoothed(10000.0)),
        ("KleinKitSEG", dict(blur_sigma=1.0), smoothed(1.0)),
    ],
    ids=["PAG", "SEG, infinite", "SEG, 1 token"],
)
def test_a_changed_attention_is_the_papers(transformer, klein, run_node, node, inputs, other, references):
    def velocity(x, sigma, step):
        cond = diffusers_velocity(transformer, x, sigma, COND.expand(len(x), -1, -1), references)
        with attention_is(other, (0, 2)):
            changed = diffusers_velocity(transformer, x, sigma, COND.expand(len(x), -1, -1), references)
        return cond + 2.5 * (cond - changed)

    theirs = diffusers_run(SIGMAS, SQUARE, velocity)
    model = with_nodes(
        run_node, klein, (node, dict(scale=2.5, double_layers="0", single_layers="1", start=0.0, end=1.0) | inputs)
    )
    values = {"reference_latents": references} if references else {}
    run = comfy_run(model, SIGMAS, SQUARE, conditioning(COND, **values), conditioning(UNCOND), 1.0)
    assert far(run, theirs) <= LIMIT


@pytest.mark.parametrize(
    "guider",
    [
        PerturbedAttentionGuidance(
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_config=LayerSkipConfig(
                [0], "transformer_blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False
            ),
        ),
        SmoothedEnergyGuidance(seg_guidance_config=SmoothedEnergyGuidanceConfig([0], "transformer_blocks")),
    ],
    ids=["PAG", "SEG"],
)
def test_diffusers_own_class_does_not_run_on_flux2(transformer, guider):
    """So the two above compare with the papers. Where this fails, diffusers has learnt it: compare with its class."""
    guider.set_state(step=1, num_inference_steps=STEPS, timestep=torch.tensor(1.0))
    # The third of its batches is the perturbed one.
    guider._count_prepared = 2 if isinstance(guider, PerturbedAttentionGuidance) else 3
    with pytest.raises(AttributeError, match="is_cross_attention"):
        guider.prepare_models(transformer)


class TestMomentum:
    @pytest.mark.parametrize("cfg, alpha, beta", [(1.0, 0.5, 0.6), (4.0, 1.25, 0.3), (1.0, 0.8, 1.0)])
    def test_a_run_is_the_papers_algorithm(self, transformer, klein, run_node, cfg, alpha, beta):
        mean = None

        def velocity(x, sigma, step):
            nonlocal mean
            cond, uncond = (velocity_of(transformer, x, sigma, text).double() for text in (COND, UNCOND))
            v = uncond + cfg * (cond - uncond)
            mean = v if mean is None else mean
            led, mean = v + alpha * (v - mean), (1 - beta) * v + beta * mean
            return led.float()

        theirs = diffusers_run(SIGMAS, NOISE, velocity)
        node = ("KleinKitMomentum", dict(alpha=alpha, beta=beta, start=0.0, end=1.0))
        assert far(ours(run_node, klein, node, cfg=cfg), theirs) <= LIMIT
        assert far(ours(run_node, klein, cfg=cfg), theirs) > 1e-3

    def test_half_of_the_last_step_is_comfyui_s_sampler_of_second_order(self, klein, run_node):
        """The paper's special case: beta 0 and alpha ½ are Adams and Bashforth's method of second order."""
        import comfy.samplers

        second, sigmas = comfy.samplers.ksampler("ipndm", {"max_order": 2}), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.2])
        prompts = conditioning(COND), conditioning(UNCOND)
        node = ("KleinKitMomentum", dict(alpha=0.5, beta=0.0, start=0.0, end=1.0))
        theirs = comfy_run(klein, sigmas, NOISE, *prompts, 1.0, second)
        assert far(comfy_run(with_nodes(run_node, klein, node), sigmas, NOISE, *prompts, 1.0), theirs) <= LIMIT
        assert far(comfy_run(klein, sigmas, NOISE, *prompts, 1.0), theirs) > 1e-3
