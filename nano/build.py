"""Write a tiny Klein to disk: the architecture is FLUX.2 [klein]'s, the weights come from a seed."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HEAD = 128
QWEN_VOCABULARY = 151936
TAE_WIDTH = 64


def transformer(seed, *, double_blocks=2, single_blocks=4, heads=1, text_width=192, channels=128):
    """Random weights of a FLUX.2 [klein] transformer, keyed as in the original files.

    Args:
        seed: of numpy's `RandomState`, whose stream is guaranteed.
        double_blocks, single_blocks, heads: the size; a head is 128 wide.
        text_width: width of `txt_in`, 3 × the text encoder's hidden size.
    Returns:
        `{key: float32 array}`.
    """
    rng = np.random.RandomState(seed)
    hidden = heads * HEAD
    mlp = 3 * hidden

    def linear(rows, columns, gain=1.0):
        return (rng.standard_normal((rows, columns)) * gain / columns**0.5).astype(np.float32)

    def norms(prefix):
        return {f"{prefix}.{which}_norm.scale": np.ones(HEAD, np.float32) for which in ("query", "key")}

    weights = {
        "img_in.weight": linear(hidden, channels),
        "txt_in.weight": linear(hidden, text_width),
        "time_in.in_layer.weight": linear(hidden, 256),
        "time_in.out_layer.weight": linear(hidden, hidden),
        "double_stream_modulation_img.lin.weight": linear(6 * hidden, hidden, 0.5),
        "double_stream_modulation_txt.lin.weight": linear(6 * hidden, hidden, 0.5),
        "single_stream_modulation.lin.weight": linear(3 * hidden, hidden, 0.5),
        "final_layer.adaLN_modulation.1.weight": linear(2 * hidden, hidden, 0.5),
        "final_layer.linear.weight": linear(channels, hidden),
    }
    for i in range(double_blocks):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            weights |= {
                f"{block}_attn.qkv.weight": linear(3 * hidden, hidden),
                f"{block}_attn.proj.weight": linear(hidden, hidden),
                f"{block}_mlp.0.weight": linear(2 * mlp, hidden),
                f"{block}_mlp.2.weight": linear(hidden, mlp),
                **norms(f"{block}_attn.norm"),
            }
    for i in range(single_blocks):
        weights |= {
            f"single_blocks.{i}.linear1.weight": linear(3 * hidden + 2 * mlp, hidden),
            f"single_blocks.{i}.linear2.weight": linear(hidden, hidden + mlp),
            **norms(f"single_blocks.{i}.norm"),
        }
    return weights


def text_encoder(seed, *, hidden=64, layers=36, heads=1, intermediate=128, vocabulary=QWEN_VOCABULARY):
    """Random weights of a Qwen3 text encoder, keyed as in `qwen_3_4b.safetensors`.

    Args:
        seed: of numpy's `RandomState`.
        hidden, layers, heads, intermediate, vocabulary: Qwen3's shape; a head is 128 wide.
    Returns:
        `{key: float16 array}`.
    """
    rng = np.random.RandomState(seed)

    def linear(rows, columns):
        return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float16)

    weights = {"model.embed_tokens.weight": rng.standard_normal((vocabulary, hidden)).astype(np.float16),
               "model.norm.weight": np.ones(hidden, np.float16)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        weights |= {
            f"{layer}.input_layernorm.weight": np.ones(hidden, np.float16),
            f"{layer}.post_attention_layernorm.weight": np.ones(hidden, np.float16),
            f"{layer}.self_attn.q_norm.weight": np.ones(HEAD, np.float16),
            f"{layer}.self_attn.k_norm.weight": np.ones(HEAD, np.float16),
            f"{layer}.self_attn.q_proj.weight": linear(heads * HEAD, hidden),
            f"{layer}.self_attn.k_proj.weight": linear(heads * HEAD, hidden),
            f"{layer}.self_attn.v_proj.weight": linear(heads * HEAD, hidden),
            f"{layer}.self_attn.o_proj.weight": linear(hidden, heads * HEAD),
            f"{layer}.mlp.gate_proj.weight": linear(intermediate, hidden),
            f"{layer}.mlp.up_proj.weight": linear(intermediate, hidden),
            f"{layer}.mlp.down_proj.weight": linear(hidden, intermediate),
        }
    return weights


def vae():
    """Weights of a VAE in TAEF2's format, set by hand: a latent holds the colours of 8×8 pixel cells.

    Signed values pass TAEF2's ReLUs as pairs (x, −x). Encoding and decoding a picture of 8×8 cells returns it
    within 0.02.

    Returns:
        `(encoder, decoder)`, two dicts `{key: float16 array}`.
    """
    colours, pairs = 3, 6
    # TAEF2 squashes latents with 3·tanh(x/3): small latents stay linear.
    latent_scale = 0.5

    def conv(rows, columns, size=3):
        return np.zeros((rows, columns, size, size), np.float16)

    def carry(layers, stages):
        """Blocks that return what they get; strides average 2×2 pixels, upsampled stages repeat."""
        for index, kind in stages:
            if kind in ("stride", "repeat"):
                kernel = conv(TAE_WIDTH, TAE_WIDTH)
                for c in range(pairs):
                    if kind == "stride":
                        kernel[c, c, 1:, 1:] = 0.25
                    else:
                        kernel[c, c, 1, 1] = 1.0
                layers[f"{index}.weight"] = kernel
                continue
            for part in (0, 2, 4):
                layers[f"{index}.conv.{part}.weight"] = conv(TAE_WIDTH, TAE_WIDTH)
                layers[f"{index}.conv.{part}.bias"] = np.zeros(TAE_WIDTH, np.float16)
            if kind == "group norm":
                layers[f"{index}.pool.0.weight"] = conv(4 * TAE_WIDTH, TAE_WIDTH, 1)
                layers[f"{index}.pool.1.weight"] = np.ones(4 * TAE_WIDTH, np.float16)
                layers[f"{index}.pool.1.bias"] = np.zeros(4 * TAE_WIDTH, np.float16)
                layers[f"{index}.pool.3.weight"] = conv(TAE_WIDTH, 4 * TAE_WIDTH, 1)

    encoder = {"0.weight": conv(TAE_WIDTH, 3), "0.bias": np.zeros(TAE_WIDTH, np.float16),
               "14.weight": conv(32, TAE_WIDTH), "14.bias": np.zeros(32, np.float16)}
    decoder = {"1.weight": conv(TAE_WIDTH, 32), "1.bias": np.zeros(TAE_WIDTH, np.float16),
               "19.weight": conv(3, TAE_WIDTH), "19.bias": np.full(3, 0.5, np.float16)}
    for c in range(colours):
        for sign, channel in ((1, 2 * c), (-1, 2 * c + 1)):
            encoder["0.weight"][channel, c, 1, 1] = sign
            encoder["0.bias"][channel] = -0.5 * sign
            encoder["14.weight"][c, channel, 1, 1] = sign * 2 * latent_scale
            decoder["1.weight"][channel, c, 1, 1] = sign
            decoder["19.weight"][c, channel, 1, 1] = sign / (2 * latent_scale)
    carry(encoder, [(1, "block"), (2, "stride"), *((i, "block") for i in (3, 4, 5)), (6, "stride"),
                    *((i, "block") for i in (7, 8, 9)), (10, "stride"), *((i, "group norm") for i in (11, 12, 13))])
    carry(decoder, [*((i, "group norm") for i in (3, 4, 5)), (7, "repeat"), *((i, "block") for i in (8, 9, 10)),
                    (12, "repeat"), *((i, "block") for i in (13, 14, 15)), (17, "repeat"), (18, "block")])
    return encoder, decoder


def build(models, seed=0):
    """Write the nano family into a ComfyUI `models` folder, where `KleinKitLoader` and ComfyUI's loaders find it.

    Files that are already there are kept. A file appears under its name only when it is whole.

    Args:
        models: the folder, which need not exist.
        seed: of the weights.
    Returns:
        `{role: path}` of the files `base`, `distilled`, `text_encoder`, `vae_encoder`, `vae_decoder`.
    """
    models = Path(models)
    files = {
        "base": models / "diffusion_models" / "flux-2-klein-nano-base.safetensors",
        "distilled": models / "diffusion_models" / "flux-2-klein-nano.safetensors",
        "text_encoder": models / "text_encoders" / "qwen_3_nano.safetensors",
        "vae_encoder": models / "vae_approx" / "taef2_encoder.safetensors",
        "vae_decoder": models / "vae_approx" / "taef2_decoder.safetensors",
    }
    encoder, decoder = vae()
    makers = {
        "base": lambda: (transformer(seed), {"is_distilled": "false"}),
        "distilled": lambda: (transformer(seed + 1), {"is_distilled": "true"}),
        "text_encoder": lambda: (text_encoder(seed + 2), {}),
        "vae_encoder": lambda: (encoder, {}),
        "vae_decoder": lambda: (decoder, {}),
    }
    for role, path in files.items():
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        weights, metadata = makers[role]()
        partial = path.with_suffix(".partial")
        save_file(weights, partial, {"format": "pt", "kleinkit": json.dumps({"nano": role, "seed": seed}), **metadata})
        partial.replace(path)
    return files
