"""Stand-ins for the two nodes of ComfyUI-GGUF that Klein Loader calls: the same ids, inputs and lists.

That pack is on no package index. These dequantise the whole file and hand it to ComfyUI's own loaders;
docs/reliability.md says what the pack itself did.
"""

from files import qwen3
from gguf_files import llama_name, read_gguf_weights

# What was asked of the nodes, in order.
calls = []
# Of a Qwen3 8B that is tiny, except for the width, by which ComfyUI knows it.
SHAPE = dict(hidden=4096, layers=29, heads=1, kv_heads=1, intermediate=64, vocabulary=500)
CONFIG = {
    "num_hidden_layers": SHAPE["layers"],
    "num_attention_heads": SHAPE["heads"],
    "num_key_value_heads": SHAPE["kv_heads"],
    "intermediate_size": SHAPE["intermediate"],
    "vocab_size": SHAPE["vocabulary"],
}
LISTS = {"unet_gguf": "diffusion_models", "clip_gguf": "text_encoders"}


def weights_of(folder, name):
    import folder_paths

    return read_gguf_weights(folder_paths.get_full_path_or_raise(folder, name))


class UnetLoaderGGUF:
    FUNCTION = "load_unet"

    def load_unet(self, unet_name):
        import comfy.sd

        calls.append(("UnetLoaderGGUF", unet_name))
        return (comfy.sd.load_diffusion_model_state_dict(weights_of("unet_gguf", unet_name)),)


class CLIPLoaderGGUF:
    FUNCTION = "load_clip"

    def load_clip(self, clip_name, type="stable_diffusion"):
        import comfy.sd

        calls.append(("CLIPLoaderGGUF", clip_name, type))
        original = {llama_name(name): name for name in (*qwen3(), "lm_head.weight")}
        weights = {original[name]: weight for name, weight in weights_of("clip_gguf", clip_name).items()}
        return (
            comfy.sd.load_text_encoder_state_dicts(
                [weights], clip_type=comfy.sd.CLIPType[type.upper()], model_options={"qwen3_8b_model_config": CONFIG}
            ),
        )


def install(monkeypatch):
    """Register the nodes and their lists, until the test ends."""
    import folder_paths
    import nodes

    for node in (UnetLoaderGGUF, CLIPLoaderGGUF):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
    for name, folder in LISTS.items():
        folders, _ = folder_paths.folder_names_and_paths[folder]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, (folders, {".gguf"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    calls.clear()
