"""Files in every format that ComfyUI loads: the same model as UNETLoader's, and the format told from the header."""

import json

import pytest
import torch
from files import qwen3, write
from kleinkit.checkpoint.inspection import MODEL, inspect
from kleinkit.nano.build import transformer
from loader import link_models, load, use_models
from quantise import quantised
from sampling import comfy_run, conditioning, embeddings, latent_noise

# Wide enough for every quantisation; the text encoder's shape follows.
WIDTH = 256


@pytest.fixture
def installed(comfy, models, monkeypatch, tmp_path):
    """An installation that lacks only the Klein; its folder of diffusion models."""
    base = tmp_path / "models"
    use_models(monkeypatch, base)
    write(
        base / "text_encoders/tiny.safetensors",
        qwen3(hidden=WIDTH, layers=27, heads=1, kv_heads=1, intermediate=64, vocabulary=10),
    )
    link_models(models, base, "vae")
    return base / "diffusion_models"


@pytest.fixture(scope="module")
def weights():
    arrays = transformer(0, double_blocks=1, single_blocks=1, heads=2, text_width=3 * WIDTH)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.fixture
def check(installed, run_node):
    """`check(tensors)`: KleinKitLoader makes of a file what UNETLoader makes of it; what `info` says of its weights."""

    def check(tensors, metadata=None):
        write(installed / "model.safetensors", tensors, metadata)
        ours, *_, info = load(run_node, "model.safetensors")
        [theirs] = run_node("UNETLoader", unet_name="model.safetensors", weight_dtype="default")
        text = conditioning(embeddings(3 * WIDTH, 1))
        pictures = [
            comfy_run(model, torch.tensor([1.0, 0.0]), latent_noise(32, 32), text, text, 1.0) for model in (ours, theirs)
        ]
        assert pictures[0].std() > 0
        assert torch.equal(*pictures)
        return info.split(", ")[1]

    return check


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    "dtype, name",
    [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float8_e4m3fn, "fp8_e4m3fn")],
)
def test_plain(check, weights, prefix, dtype, name):
    assert check({prefix + key: tensor.to(dtype) for key, tensor in weights.items()}) == name


@pytest.mark.parametrize("prefix", ["model.model.", "net.", "model."])
def test_prefixes_that_comfyui_takes_off(check, weights, prefix):
    assert check({prefix + key: tensor for key, tensor in weights.items()}) == "fp32"


NAMES = {
    "float8_e4m3fn": "fp8 scaled",
    "float8_e5m2": "fp8 scaled",
    "mxfp8": "fp8 scaled",
    "nvfp4": "nvfp4",
    "int8_tensorwise": "int8",
    "convrot_w4a4": "convrot_w4a4",
    # Since ComfyUI 0.31.
    "asym_w4a8_int8": "asym_w4a8_int8",
}


def test_quantisations(check, weights):
    from comfy.quant_ops import QUANT_ALGOS

    assert {"float8_e4m3fn", "nvfp4"} <= QUANT_ALGOS.keys() <= NAMES.keys()
    # ComfyUI takes the width of a packed text input for the real one.
    text_input = {"txt_in.weight": weights["txt_in.weight"]}
    others = {key: tensor for key, tensor in weights.items() if key not in text_input}
    for form in QUANT_ALGOS:
        assert check(quantised(others, form) | text_input) == NAMES[form]


def test_width_of_a_quantised_text_input(comfy, tmp_path, weights):
    from comfy.quant_ops import QUANT_ALGOS

    for form in QUANT_ALGOS:
        file = write(tmp_path / f"{form}.safetensors", quantised(weights, form))
        assert inspect(file).parts[MODEL].text_width == 3 * WIDTH


def test_quantisation_in_the_metadata(check, weights):
    tensors = quantised(weights, "float8_e4m3fn")
    layers = {key.removesuffix(".comfy_quant"): {"format": "float8_e4m3fn"} for key in tensors if key.endswith(".comfy_quant")}
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".comfy_quant")}
    assert check(tensors, {"_quantization_metadata": json.dumps({"layers": layers})}) == "float8_e4m3fn"


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_weight_dtype(installed, run_node, weights, weight_dtype):
    write(installed / "model.safetensors", weights)
    ours = load(run_node, "model.safetensors", weight_dtype=weight_dtype)[0].model
    [theirs] = run_node("UNETLoader", unet_name="model.safetensors", weight_dtype=weight_dtype)
    assert ours.model_config.optimizations == theirs.model.model_config.optimizations
    for key, tensor in theirs.model.state_dict().items():
        mine = ours.state_dict()[key]
        assert mine.dtype == tensor.dtype and torch.equal(mine.float(), tensor.float())
