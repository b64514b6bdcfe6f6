"""A tiny FLUX 3 Image Klein as a MODEL of a ComfyUI that has none: diffusers' own transformer in ComfyUI's `BaseModel`.

What a ComfyUI with FLUX 3 of its own does is assumed in three places, and nowhere else: where it finds the time that a step
goes to (`target_of`), how it replaces a block (`Replaceable`), and what it calls the conditionings of references.
"""

import contextlib
import functools
import io
import zlib

import torch

HEADS, HEAD_WIDTH, MODE_BLOCKS, JOINT_BLOCKS = 2, 32, 1, 4
TEXT_WIDTH, WINDOW = 48, 80
SIZE = dict(
    num_layers=MODE_BLOCKS,
    num_single_layers=JOINT_BLOCKS,
    attention_head_dim=HEAD_WIDTH,
    num_attention_heads=HEADS,
    joint_attention_dim=TEXT_WIDTH,
)
# Of the published ones.
TRUE_SIZE = dict(num_layers=5, num_single_layers=28, attention_head_dim=128, num_attention_heads=24, joint_attention_dim=20480)
MODES = 3
SHIFT = 6.93
POSITIONS = 0.5
# A larger one makes the result depend on the last digit of a sigma.
TIME_GAIN = 0.5


def text(seed, windows=1, batch=1):
    """What stands for a prompt: [batch, 80·windows, text width]."""
    return torch.randn(batch, WINDOW * windows, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def made_as(device, dtype):
    """Inside, torch makes new tensors there and of that type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def transformer(flow_map=False, seed=0, device="cpu", dtype=torch.float32, **size):
    """diffusers' `Flux3Transformer2DModel`. Base and distilled share every weight but those of the target time.

    Args:
        size: what differs from the tiny one, by diffusers' names.
    """
    from diffusers import Flux3Transformer2DModel

    size = SIZE | size
    with made_as(device, dtype):
        model = Flux3Transformer2DModel(**size, axes_dims_rope=(size["attention_head_dim"] // 4,) * 4, flow_map=flow_map)
        for name, parameter in model.named_parameters():
            random = torch.Generator(device).manual_seed(zlib.crc32(name.encode()) + seed)
            value = torch.randn(parameter.shape, generator=random)
            gain = TIME_GAIN if "timestep_embedder" in name else 1.0
            parameter.data = 2.0 + 0.3 * value if value.ndim == 1 else value * gain * value.shape[1] ** -0.5
    return model.eval().requires_grad_(False)


def grid(height, width, place=0, device=None):
    """The positions (t, h, w, l) of a picture's tokens: place 0 is the picture, −1, −2, … the references."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in (height, width)), indexing="ij")
    zeros = torch.zeros_like(rows)
    return torch.stack([zeros, rows * POSITIONS, columns * POSITIONS, zeros + place], dim=-1).reshape(-1, 4).float()


def tokens(latent):
    return latent.flatten(2).transpose(1, 2)


def velocity(model, x, sigma, prompt, references=(), target=None):
    """What diffusers' transformer predicts.

    Args:
        x: [B, 128, h, w].
        sigma, target: floats or [B]: of the call, and where its step goes; None where the model is no flow map.
        prompt: [1 or B, L, text width].
        references: latents, each [1 or B, 128, h, w].
    Returns:
        [B, 128, h, w].
    """
    batch, _, height, width = x.shape
    more = {}
    if len(references):
        more["image_cond_hidden_states"] = torch.cat([tokens(one).expand(batch, -1, -1) for one in references], dim=1)
        more["image_cond_ids"] = torch.cat([grid(*one.shape[2:], -(1 + i), x.device) for i, one in enumerate(references)])
    if target is not None:
        more["target_timestep"] = torch.as_tensor(target).expand(batch)
    positions = torch.arange(prompt.shape[1], device=x.device)
    out = model(
        hidden_states=tokens(x),
        encoder_hidden_states=prompt.expand(batch, -1, -1),
        timestep=torch.as_tensor(sigma).expand(batch),
        img_ids=grid(height, width, device=x.device),
        txt_ids=torch.nn.functional.pad(positions[:, None].float(), (3, 0)),
        return_dict=False,
        **more,
    )[0]
    return out.transpose(1, 2).unflatten(2, (height, width))


def euler(sigmas, noise, predict):
    """A plain loop of Euler steps: `predict(x, sigma, target, step)` is the velocity of a step."""
    x = noise
    for step, (sigma, target) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        x = x + (target - sigma) * predict(x, sigma, target, step)
    return x


def blocks_of_diffusers(model, steps, noise, prompt, negative=None, references=(), cfg=1.0):
    """A run by the denoise blocks of diffusers' own modular pipeline."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.guiders import ClassifierFreeGuidance
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoCoreDenoiseStep
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3_distilled import Flux3DistilledAutoCoreDenoiseStep

    flow_map = model.config.flow_map
    pipeline = (Flux3DistilledAutoCoreDenoiseStep if flow_map else Flux3AutoCoreDenoiseStep)().init_pipeline()
    pipeline.update_components(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT))
    height, width = (16 * side for side in noise.shape[2:])
    inputs = dict(prompt_embeds=prompt, latents=noise, num_inference_steps=steps, height=height, width=width)
    if not flow_map:
        pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=cfg))
        inputs["negative_prompt_embeds"] = negative
    if references:
        inputs["image_cond_latents"] = list(references)
    with contextlib.redirect_stderr(io.StringIO()):
        return pipeline(**inputs, output="latents")


def encoded_by_diffusers(vae, pictures):
    """The latents of references by the blocks of diffusers' own modular pipeline.

    Args:
        vae: `AutoencoderKLFlux2`.
        pictures: of Pillow's.
    """
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoVaeEncoderStep

    pipeline = Flux3AutoVaeEncoderStep().init_pipeline()
    pipeline.update_components(vae=vae)
    return pipeline(image=list(pictures), output="image_cond_latents")


def target_of(sigma, sigmas):
    """The sigma that a step goes to, as ComfyUI's HunyuanVideo (MeanFlow) finds it; None between the run's own."""
    [found] = torch.where(sigma == sigmas)
    return sigmas[found[0] + 1] if len(found) and found[0] + 1 < len(sigmas) else None


class Replaceable(torch.nn.Module):
    """A joint block that `patches_replace` can take the place of, in the way of the single blocks of ComfyUI's Flux."""

    def __init__(self, block, index, host):
        super().__init__()
        # In lists: the block is the host's.
        self.block, self.index, self.host = [block], index, [host]

    def forward(self, hidden_states, encoder_hidden_states, temb_mod, temb_mod_context, image_rotary_emb):
        [block], [host] = self.block, self.host
        words = encoder_hidden_states.shape[1]

        def run(args):
            states, (of_words, of_pictures) = args["img"], args["vec"]
            host.options = args["transformer_options"]
            out = block(states[:, words:], states[:, :words], of_pictures, of_words, args["pe"])
            host.options = options
            return {"img": torch.cat(out, dim=1)}

        options = host.options
        args = {
            "img": torch.cat([encoder_hidden_states, hidden_states], dim=1),
            "vec": (temb_mod_context, temb_mod),
            "pe": image_rotary_emb,
            "attn_mask": None,
            "transformer_options": options,
        }
        patch = options.get("patches_replace", {}).get("dit", {}).get(("single_block", self.index))
        states = (patch(args, {"original_block": run}) if patch else run(args))["img"]
        return states[:, :words], states[:, words:]


class Attention:
    """An attention processor of diffusers that asks ComfyUI's attention, which can be overridden."""

    def __init__(self, host):
        self.host = host

    def __call__(self, attn, hidden_states, attention_mask=None, image_rotary_emb=None):
        from comfy.ldm.modules.attention import optimized_attention
        from diffusers.models.embeddings import apply_rotary_emb

        q, k, v = (layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (
            apply_rotary_emb(norm(one), image_rotary_emb, sequence_dim=1) for norm, one in ((attn.norm_q, q), (attn.norm_k, k))
        )
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        out = optimized_attention(q, k, v, attn.heads, skip_reshape=True, transformer_options=self.host.options)
        return attn.to_out[0](out)


class Transformer(torch.nn.Module):
    """The `diffusion_model`: its parts have the names of the original files.

    Attributes:
        calls: `(sigma, target or None, rows)` of each call, on the device: a benchmark's host does not wait for them.
    """

    def __init__(self, model, replaceable):
        super().__init__()
        self.emb_in, self.txt_in, self.time_in = model.x_embedders, model.context_embedder, model.timestep_embedder
        self.ref_time_in = model.target_timestep_embedder
        self.early_stream_modulations = model.early_stream_modulations
        self.single_stream_modulations = model.single_stream_modulations
        self.content_mode_blocks, self.txt_mode_blocks = model.mode_blocks, model.txt_mode_blocks
        self.single_blocks = model.single_transformer_blocks
        self.final_layer = torch.nn.ModuleDict({"norm": model.norm_out, "linear": model.proj_out})
        self.dtype, self.calls, self.options = model.dtype, [], {}
        if replaceable:
            for block in self.single_blocks:
                block.attn.set_processor(Attention(self))
            blocks = [Replaceable(block, i, self) for i, block in enumerate(self.single_blocks)]
            model.single_transformer_blocks = torch.nn.ModuleList(blocks)
        # In a list: its parts are registered above.
        self.model = [model]

    def forward(self, x, timesteps, context, transformer_options, ref_latents=(), **_):
        [model], self.options = self.model, transformer_options
        # A LoRA or another node may have brought the layer for the target time.
        model.target_timestep_embedder = self.ref_time_in
        model.register_to_config(flow_map=self.ref_time_in is not None)
        target = None
        if self.ref_time_in is not None:
            target = target_of(transformer_options["sigmas"][0], transformer_options["sample_sigmas"])
        self.calls.append((timesteps[0], target, len(x)))
        if self.ref_time_in is not None and target is None:
            target = torch.zeros(())
        return velocity(model, x, timesteps, context, ref_latents, target)


@functools.cache
def classes():
    """ComfyUI's model class and configuration of the stand-in."""
    import comfy.conds
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models_base

    class Flux3(comfy.model_base.BaseModel):
        def extra_conds(self, **kwargs):
            out = super().extra_conds(**kwargs)
            out["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
            if references := kwargs.get("reference_latents"):
                out["ref_latents"] = comfy.conds.CONDList([self.process_latent_in(one) for one in references])
            return out

    class Config(comfy.supported_models_base.BASE):
        unet_config, unet_extra_config = {}, {}
        sampling_settings = {"shift": SHIFT, "multiplier": 1.0}
        latent_format = comfy.latent_formats.Flux2
        memory_usage_factor = 1.0

    return Flux3, Config


def stand_in(flow_map=False, seed=0, replaceable=True, device="cpu", dtype=torch.float32, **size):
    """The MODEL, a `ModelPatcher`. `replaceable`: its joint blocks look at `patches_replace`; the rest as of `transformer`."""
    import comfy.model_base
    import comfy.model_patcher

    flux3, config = classes()
    config = config({"disable_unet_model_creation": True, "image_model": "flux3"})
    model = flux3(config, comfy.model_base.ModelType.FLOW, device=device)
    model.diffusion_model = Transformer(transformer(flow_map, seed, device, dtype, **size), replaceable)
    device = torch.device(device)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
