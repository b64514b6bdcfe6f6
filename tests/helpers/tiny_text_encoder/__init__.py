"""A custom node pack for tests: ComfyUI's CLIPLoader for a Qwen3 narrower than the official ones, by which it knows them."""

import comfy.sd
import comfy.utils
import folder_paths
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders import flux
from comfy.text_encoders.hunyuan_video import llama_detect

HEAD = 128


class TinyCLIPLoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        names = (folder_paths.get_filename_list("text_encoders"),)
        return {"required": {"clip_name": names, "type": (["flux2"],)}, "optional": {"device": (["default"],)}}

    def load(self, clip_name, type, device="default"):
        weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("text_encoders", clip_name))
        first = {
            name: weights[f"model.layers.0.{name}_proj.weight"].shape[0] for name in ("mlp.gate", "self_attn.q", "self_attn.k")
        }
        config = {
            "hidden_size": weights["model.norm.weight"].shape[0],
            "intermediate_size": first["mlp.gate"],
            "num_attention_heads": first["self_attn.q"] // HEAD,
            "num_key_value_heads": first["self_attn.k"] // HEAD,
        }
        target = ClipTarget(flux.KleinTokenizer, flux.klein_te(**llama_detect(weights)))
        return (
            comfy.sd.CLIP(
                target,
                parameters=comfy.utils.calculate_parameters(weights),
                state_dict=[weights],
                model_options={"qwen3_4b_model_config": config},
            ),
        )


NODE_CLASS_MAPPINGS = {"TinyCLIPLoader": TinyCLIPLoader}
