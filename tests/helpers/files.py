"""safetensors files for tests: tables of shapes, whose zeros are holes that take no room on disk, and torch tensors."""

import json
import math
import struct

import torch

BITS = {"F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U8": 8, "I8": 8}
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.uint8: "U8",
    torch.int8: "I8",
}


def write(path, tensors, metadata=None, rows=None):
    """Write a safetensors file.

    Args:
        path: where; its folder is made.
        tensors: `{name: tensor, or (dtype, shape) of zeros}`, laid out in this order.
        metadata: strings for the header.
        rows: `{name: {number: tensor}}`, rows of those that are zeros otherwise.
    Returns:
        The path.
    """
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors.items():
        dtype, shape = (DTYPES[tensor.dtype], tensor.shape) if isinstance(tensor, torch.Tensor) else tensor
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(as_bytes(tensor))
            for number, row in (rows or {}).get(name, {}).items():
                file.seek(8 + len(text) + header[name]["data_offsets"][0] + number * len(as_bytes(row)))
                file.write(as_bytes(row))
        file.truncate(8 + len(text) + end)
    return path


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def klein(hidden=3072, double_blocks=5, single_blocks=20, text_width=7680, dtype="BF16", prefix=""):
    """`{name: (dtype, shape)}` of a FLUX.2 [klein] transformer; as given, of the 4B."""
    shapes = {
        "img_in": (hidden, 128),
        "txt_in": (hidden, text_width),
        "time_in.in_layer": (hidden, 256),
        "time_in.out_layer": (hidden, hidden),
        "double_stream_modulation_img.lin": (6 * hidden, hidden),
        "double_stream_modulation_txt.lin": (6 * hidden, hidden),
        "single_stream_modulation.lin": (3 * hidden, hidden),
        "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
        "final_layer.linear": (128, hidden),
    }
    norms = {}
    for i in range(double_blocks):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            shapes |= {
                f"{block}_attn.qkv": (3 * hidden, hidden),
                f"{block}_attn.proj": (hidden, hidden),
                f"{block}_mlp.0": (6 * hidden, hidden),
                f"{block}_mlp.2": (hidden, 3 * hidden),
            }
            norms |= {f"{block}_attn.norm.{which}_norm.scale": (128,) for which in ("query", "key")}
    for i in range(single_blocks):
        shapes |= {f"single_blocks.{i}.linear1": (9 * hidden, hidden), f"single_blocks.{i}.linear2": (hidden, 4 * hidden)}
        norms |= {f"single_blocks.{i}.norm.{which}_norm.scale": (128,) for which in ("query", "key")}
    shapes = {name + ".weight": shape for name, shape in shapes.items()} | norms
    return {prefix + name: (dtype, shape) for name, shape in shapes.items()}


def flux3_klein(hidden=3072, layers=5, joint=28, text_width=20480, dtype="BF16", prefix="", distilled=True):
    """`{name: (dtype, shape)}` of a FLUX 3 Image Klein transformer; as given, of the published distilled one."""
    modes = "image", "image_cond", "txt"
    shapes = {
        "emb_in.image.weight": (hidden, 128),
        "emb_in.image_cond.weight": (hidden, 128),
        "txt_in.weight": (hidden, text_width),
        "final_layer.image.adaLN_modulation.1.weight": (2 * hidden, hidden),
        "final_layer.image.linear.weight": (128, hidden),
    }
    for time in ("time_in", "ref_time_in") if distilled else ("time_in",):
        shapes |= {f"{time}.in_layer.weight": (hidden, 256), f"{time}.out_layer.weight": (hidden, hidden)}
    for stage in ("early", "single"):
        shapes |= {f"{stage}_stream_modulations.{mode}.lin.weight": (3 * hidden, hidden) for mode in modes}
    stacks = ("content_mode_blocks.image", layers), ("content_mode_blocks.image_cond", layers), ("txt_mode_blocks", layers)
    for stack, count in (*stacks, ("single_blocks", joint)):
        for i in range(count):
            block = f"{stack}.{i}"
            shapes |= {f"{block}.{name}.weight": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
            shapes |= {f"{block}.mlp_in.weight": (6 * hidden, hidden), f"{block}.mlp_out.weight": (hidden, 3 * hidden)}
            shapes |= {f"{block}.norm.{which}_norm.scale": (128,) for which in ("query", "key")}
    return {prefix + name: (dtype, shape) for name, shape in shapes.items()}


def qwen3_vl(vision=1024, **sizes):
    """`{name: (dtype, shape)}` of a Qwen3-VL, of its vision part only two; as given, of the 4B."""
    visual = {
        "model.visual.deepstack_merger_list.0.norm.weight": ("BF16", (4 * vision,)),
        "model.visual.merger.linear_fc2.weight": ("BF16", (sizes.get("hidden", 2560), 4 * vision)),
    }
    return qwen3(**sizes, prefix="model.language_model.") | visual


def qwen3(hidden=2560, layers=36, intermediate=9728, heads=32, kv_heads=8, vocabulary=151936, dtype="BF16", prefix="model."):
    """`{name: (dtype, shape)}` of a Qwen3; as given, of the 4B."""
    shapes = {"embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        shapes |= {
            f"layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
                "self_attn.q_norm": (128,),
                "self_attn.k_norm": (128,),
                "self_attn.q_proj": (heads * 128, hidden),
                "self_attn.k_proj": (kv_heads * 128, hidden),
                "self_attn.v_proj": (kv_heads * 128, hidden),
                "self_attn.o_proj": (hidden, heads * 128),
                "mlp.gate_proj": (intermediate, hidden),
                "mlp.up_proj": (intermediate, hidden),
                "mlp.down_proj": (hidden, intermediate),
            }.items()
        }
    shapes["norm.weight"] = (hidden,)
    return {prefix + name: (dtype, shape) for name, shape in shapes.items()}


def flux2_vae(channels=32, prefix=""):
    """Enough of `{name: (dtype, shape)}` of a VAE to tell which it is: 32 channels FLUX.2's, 16 FLUX.1's, 4 SDXL's."""
    tensors = {
        "decoder.conv_in.weight": ("F32", (512, channels, 3, 3)),
        "encoder.conv_out.weight": ("F32", (2 * channels, 512, 3, 3)),
    }
    if channels == 32:
        tensors["bn.running_mean"] = ("F32", (128,))
    return {prefix + name: entry for name, entry in tensors.items()}
