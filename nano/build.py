"""Write the nano family to disk: FLUX.2 [klein]'s architecture; trained weights, and those that come from a seed."""

import filecmp
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from . import vae

HEAD = 128
QWEN_VOCABULARY = 151936
# What the text encoder's layers add is small, so that after 27 of them each word is still itself.
BRANCH = 0.3
TEXT_ENCODER_SEED = 2
# Trained: see train.py and README.md.
SHIPPED = {role: Path(__file__).resolve().parent / "weights" / f"{role}.safetensors" for role in ("base", "distilled")}


def digest(role):
    """The sha256 of a model's file: which version of it something was made with."""
    return hashlib.sha256(SHIPPED[role].read_bytes()).hexdigest()


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

    def linear(rows, columns, gain=1.0):
        return (rng.standard_normal((rows, columns)) * gain / columns**0.5).astype(np.float16)

    weights = {
        "model.embed_tokens.weight": rng.standard_normal((vocabulary, hidden)).astype(np.float16),
        "model.norm.weight": np.ones(hidden, np.float16),
    }
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
            f"{layer}.self_attn.o_proj.weight": linear(hidden, heads * HEAD, BRANCH),
            f"{layer}.mlp.gate_proj.weight": linear(intermediate, hidden),
            f"{layer}.mlp.up_proj.weight": linear(intermediate, hidden),
            f"{layer}.mlp.down_proj.weight": linear(hidden, intermediate, BRANCH),
        }
    return weights


def knows_taef2(comfyui):
    """Whether a ComfyUI loads TAEF2: 0.20.1 does not, 0.24.1 does."""
    return '"taef2"' in (comfyui / "nodes.py").read_text("utf-8")


def build(models, comfyui):
    """Write the nano family into a ComfyUI `models` folder, where `KleinKitLoader` and ComfyUI's loaders find it.

    Files that are already there are kept, but for trained models of an earlier version. A file appears under its name only
    when it is whole.

    Args:
        models: the folder, which need not exist.
        comfyui: the folder of the ComfyUI that is to load them.
    Returns:
        `{role: path}` of the files `base`, `distilled`, `text_encoder`, `vae_encoder`, `vae_decoder` (TAEF2's), and
        `vae` (168 MB, in the format of FLUX.2's own) where that ComfyUI does not know TAEF2.
    """
    models = Path(models)
    files = {
        "base": models / "diffusion_models" / "flux-2-klein-nano-base.safetensors",
        "distilled": models / "diffusion_models" / "flux-2-klein-nano.safetensors",
        "text_encoder": models / "text_encoders" / "qwen_3_nano.safetensors",
        "vae_encoder": models / "vae_approx" / "taef2_encoder.safetensors",
        "vae_decoder": models / "vae_approx" / "taef2_decoder.safetensors",
    }
    if not knows_taef2(comfyui):
        # The demo takes a file named flux2-vae… for the real one.
        files["vae"] = models / "vae" / "flux-2-klein-nano-vae.safetensors"
    encoder, decoder = vae.taef2()
    makers = {
        "text_encoder": lambda: text_encoder(TEXT_ENCODER_SEED),
        "vae_encoder": lambda: encoder,
        "vae_decoder": lambda: decoder,
        "vae": vae.flux2,
    }
    for role, path in files.items():
        if path.exists() and (role not in SHIPPED or filecmp.cmp(path, SHIPPED[role], shallow=False)):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        if role in SHIPPED:
            shutil.copyfile(SHIPPED[role], partial)
        else:
            save_file(makers[role](), partial, {"format": "pt", "kleinkit": json.dumps({"nano": role})})
        partial.replace(path)
    return files


def main(arguments):
    """Write the family into the folder that is named, for the ComfyUI of `COMFYUI_PATH`."""
    [models] = arguments
    build(models, Path(os.environ["COMFYUI_PATH"]))
