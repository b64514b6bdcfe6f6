"""Guidance on models other than Klein: ComfyUI's own classes of FLUX.1, SD3 and SD 1.5, tiny and with random weights."""

import re

import pytest
import torch
from sampling import comfy_run, conditioning, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.0])
SKIP = dict(scale=2.0, double_layers="1", single_layers="", start=0.0, end=1.0, mode="block", rescale=0.0)
SEG = dict(scale=2.0, double_layers="1", single_layers="", start=0.0, end=1.0, blur_sigma=1.0)
CONFIGS = {
    "Flux": dict(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=32,
        context_in_dim=64,
        hidden_size=128,
        mlp_ratio=2.0,
        num_heads=1,
        depth=2,
        depth_single_blocks=2,
        axes_dim=[32, 48, 48],
        theta=10000,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
    ),
    "SD3": dict(
        in_channels=16,
        patch_size=2,
        depth=2,
        input_size=None,
        adm_in_channels=32,
        context_size=64,
        num_patches=64 * 64,
        pos_embed_max_size=64,
        pos_embed_scaling_factor=None,
        qkv_bias=True,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    ),
    "SD15": dict(
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=[1],
        channel_mult=[1],
        transformer_depth=[0],
        transformer_depth_output=[0, 0],
        transformer_depth_middle=0,
        context_dim=64,
        image_size=32,
        num_heads=1,
        use_spatial_transformer=True,
        legacy=False,
        use_linear_in_transformer=False,
        adm_in_channels=None,
        use_temporal_attention=False,
    ),
}


def tiny(architecture):
    """A `ModelPatcher` of one of ComfyUI's own architectures."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, architecture)(CONFIGS[architecture])
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    generator = torch.Generator().manual_seed(0)
    # SD3 keeps its positions in a buffer.
    for weight in (*model.parameters(), *model.diffusion_model.buffers()):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def text(seed):
    generator = torch.Generator().manual_seed(seed)
    return conditioning(torch.randn(1, 16, 64, generator=generator), pooled_output=torch.randn(1, 32, generator=generator))


def run(model, cfg=4.0, batch=2):
    noise = torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(9))
    return comfy_run(model, SIGMAS, noise, text(1), text(2), cfg)


PREDICTIONS_ONLY = {
    "KleinKitCFG": dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.5}, unguided="conditional"),
    "KleinKitCFGZeroStar": dict(optimized_scale=True, zero_init_steps=1),
    "KleinKitRenorm": dict(mode="global", strength=1.0, shrink_only=False),
    "KleinKitSlerpCFG": {},
    "KleinKitAPG": dict(eta=0.0, norm_threshold=1.0, momentum=-0.5, space="denoised", start=0.0, scale=0.0),
    "KleinKitMAMBOG": dict(alpha=2.0),
    "KleinKitFDG": dict(shares="1, 0.4"),
    "KleinKitTCFG": {},
    "KleinKitAdaptiveGuidance": dict(threshold=-1.0),
}


@pytest.mark.parametrize("architecture", ("Flux", "SD3"))
class TestFlowModels:
    @pytest.mark.parametrize("node", PREDICTIONS_ONLY)
    def test_rules_of_predictions_run(self, comfy, run_node, architecture, node):
        model = tiny(architecture)
        guided = run(with_nodes(run_node, model, (node, PREDICTIONS_ONLY[node])))
        assert torch.isfinite(guided).all()
        assert not torch.allclose(guided, run(model), atol=1e-4)

    def test_skip_layer_equals_comfyui_s_whole_pass(self, comfy, run_node, architecture):
        model = tiny(architecture)
        ours = run(with_nodes(run_node, model, ("KleinKitSkipLayerGuidance", SKIP)))
        theirs = run(
            with_nodes(
                run_node,
                model,
                (
                    "SkipLayerGuidanceDiT",
                    dict(
                        double_layers="1",
                        single_layers="",
                        scale=2.0,
                        start_percent=0.0,
                        end_percent=1.0,
                        rescaling_scale=0.0,
                    ),
                ),
            )
        )
        assert not torch.allclose(theirs, run(model), atol=1e-4)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()

    def test_a_layer_that_this_model_lacks_gives_its_range(self, comfy, run_node, architecture):
        with pytest.raises(ValueError, match="^Klein Skip-Layer Guidance: Expected `double_layers` to be .* 0 to 1 .*got '7'"):
            with_nodes(run_node, tiny(architecture), ("KleinKitSkipLayerGuidance", SKIP | {"double_layers": "7"}))


@pytest.mark.parametrize("node", PREDICTIONS_ONLY)
def test_models_that_predict_noise_are_refused(comfy, run_node, node):
    title = comfy.NODE_CLASS_MAPPINGS[node].GET_SCHEMA().display_name
    with pytest.raises(
        ValueError, match=f"^{re.escape(title)}: Expected `model` to be a flow matching model .*, but got BaseModel"
    ):
        with_nodes(run_node, tiny("SD15"), (node, PREDICTIONS_ONLY[node]))


def test_a_blur_needs_to_know_where_the_picture_s_tokens_are(comfy, run_node):
    with pytest.raises(ValueError, match="^Klein SEG: Expected `model` to be a FLUX.2 .klein., .*'SD3'"):
        with_nodes(run_node, tiny("SD3"), ("KleinKitSEG", SEG))


def test_skip_layer_needs_blocks(comfy, run_node):
    with pytest.raises(ValueError, match="^Klein Skip-Layer Guidance: Expected `model` to be made of double and single blocks"):
        with_nodes(run_node, tiny("SD15"), ("KleinKitSkipLayerGuidance", SKIP))


@pytest.mark.parametrize(
    "node, name, inputs",
    [
        ("KleinKitBaseUncond", "base_model", {}),
        (
            "KleinKitAutoGuidance",
            "weak_model",
            dict(scale=2.0, double_layers="", single_layers="", prompt="positive", start=0.0, end=1.0),
        ),
    ],
)
class TestAnotherModel:
    def test_another_architecture_is_refused(self, comfy, run_node, node, name, inputs):
        klein, title = small_klein(), comfy.NODE_CLASS_MAPPINGS[node].GET_SCHEMA().display_name
        for other in (small_klein(single_blocks=3), tiny("Flux")):
            with pytest.raises(ValueError, match=f"^{title}: Expected `{name}` to be of the same architecture"):
                with_nodes(run_node, klein, (node, inputs | {name: other}))

    def test_the_same_weights_are_refused(self, comfy, run_node, node, name, inputs):
        klein, title = small_klein(), comfy.NODE_CLASS_MAPPINGS[node].GET_SCHEMA().display_name
        with pytest.raises(ValueError, match=f"^{title}: .*second loader"):
            with_nodes(run_node, klein, (node, inputs | {name: klein.clone()}))


class TestTwoOtherModels:
    """Klein Base Uncond's and Klein AutoGuidance's, of one set of weights."""

    AUTO = dict(scale=2.0, double_layers="0", single_layers="", prompt="positive", start=0.0, end=1.0)

    def chain(self, run_node, base, weak):
        nodes = ("KleinKitBaseUncond", {"base_model": base}), ("KleinKitAutoGuidance", self.AUTO | {"weak_model": weak})
        for order in (nodes, nodes[::-1]):
            yield lambda order=order: with_nodes(run_node, small_klein(), *order)

    def test_with_one_lora_or_none_they_may_share_it(self, comfy, run_node):
        base, again = small_klein(seed=5), small_klein(seed=5)
        noise, prompts = torch.randn(1, 128, 2, 2), [conditioning(torch.randn(1, 16, 192)) for _ in range(2)]
        shared, apart = (
            comfy_run(next(self.chain(run_node, base, weak))(), SIGMAS, noise, *prompts, 4.0) for weak in (base.clone(), again)
        )
        assert torch.equal(shared, apart)

    def test_with_two_it_is_refused(self, comfy, run_node):
        base = small_klein(seed=5)
        weak, key = base.clone(), "diffusion_model.img_in.weight"
        weak.add_patches({key: (torch.ones_like(base.model.state_dict()[key]),)})
        for build in self.chain(run_node, base, weak):
            with pytest.raises(ValueError, match="Expected `(base|weak)_model` to be .* of its own, .*`(weak|base)_model`"):
                build()

    def test_what_a_later_node_replaces_is_not_loaded(self, comfy, run_node):
        weaker = "KleinKitAutoGuidance", self.AUTO | {"weak_model": small_klein(seed=5)}
        model = with_nodes(run_node, small_klein(), weaker, ("KleinKitAutoGuidance", self.AUTO))
        assert not model.get_additional_models()
        noise, prompt = torch.randn(1, 128, 2, 2), conditioning(torch.randn(1, 16, 192))
        assert torch.isfinite(comfy_run(model, SIGMAS, noise, prompt, prompt, 1.0)).all()


def test_image_cfg_without_a_reference_in_the_negative(comfy, run_node):
    model = with_nodes(run_node, small_klein(), ("KleinKitImageCFG", {"image_scale": 2.0}))
    noise = torch.randn(1, 128, 2, 2)
    prompt = conditioning(torch.randn(1, 16, 192))
    with pytest.raises(ValueError, match="^Klein Image CFG: The negative prompt has no reference latent"):
        comfy_run(model, SIGMAS, noise, prompt, prompt, 4.0)


def test_a_model_that_shows_no_parameters(comfy, run_node):
    """TensorRT's engine stands where ComfyUI has its transformer, and is no module of torch."""

    class Engine:
        def __init__(self, transformer):
            self.transformer, self.dtype = transformer, transformer.dtype

        def __call__(self, *args, **kwargs):
            return self.transformer(*args, **kwargs)

    flux = tiny("Flux")
    model = with_nodes(run_node, flux, ("KleinKitRenorm", dict(mode="token", strength=0.7, shrink_only=False)))
    expected = run(model)
    flux.model.diffusion_model, engine = None, Engine(flux.model.diffusion_model)
    del flux.model.diffusion_model
    flux.model.diffusion_model = engine
    assert torch.equal(run(model), expected)
