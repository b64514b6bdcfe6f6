"""GGUF files for tests, written by the gguf package, and read back by it."""

import gguf
import torch

NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 64)


def llama_name(name):
    """llama.cpp's name of a tensor of a Qwen3, by the gguf package's own table."""
    return NAMES.get_name(name, try_suffixes=(".weight",))


def write_gguf(path, tensors, form="Q8_0", architecture="flux", **texts):
    """Write a GGUF file as ComfyUI-GGUF's converter does: what has one dimension stays float32.

    Args:
        path: where; its folder is made.
        tensors: `{name: tensor}`.
        form: the name of a quantisation.
        architecture: "" leaves it out, as stable-diffusion.cpp does.
        texts: more metadata, by their names with `__` for a dot.
    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for name, text in texts.items():
        writer.add_string(name.replace("__", "."), text)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[form if tensor.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_gguf_weights(path):
    """`{name: float32 tensor}` of a GGUF file, dequantised by the gguf package."""
    return {
        tensor.name: torch.tensor(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(map(int, reversed(tensor.shape))))
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
