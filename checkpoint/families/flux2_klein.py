"""FLUX.2 [klein]: 4B and 9B, base, distilled and KV."""

from .family import QWEN3, QWEN3_VL, Family, Settings, Stack

# Source: diffusers/loaders/single_file_utils.py, `convert_flux2_transformer_checkpoint_to_diffusers`.
OUTSIDE = {
    "img_in": (1, "x_embedder"),
    "txt_in": (1, "context_embedder"),
    "time_in.in_layer": (1, "time_guidance_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": (1, "time_guidance_embed.timestep_embedder.linear_2"),
    "double_stream_modulation_img.lin": (6, "double_stream_modulation_img.linear"),
    "double_stream_modulation_txt.lin": (6, "double_stream_modulation_txt.linear"),
    "single_stream_modulation.lin": (3, "single_stream_modulation.linear"),
    "final_layer.adaLN_modulation.1": (2, "norm_out.linear"),
    "final_layer.linear": (None, "proj_out"),
}
DOUBLE_BLOCK = {
    "img_attn.qkv": (3, "attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": (None, "attn.norm_q"),
    "img_attn.norm.key_norm": (None, "attn.norm_k"),
    "img_attn.proj": (1, "attn.to_out.0"),
    "img_mlp.0": (6, "ff.linear_in"),
    "img_mlp.2": (1, "ff.linear_out"),
    "txt_attn.qkv": (3, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": (None, "attn.norm_added_q"),
    "txt_attn.norm.key_norm": (None, "attn.norm_added_k"),
    "txt_attn.proj": (1, "attn.to_add_out"),
    "txt_mlp.0": (6, "ff_context.linear_in"),
    "txt_mlp.2": (1, "ff_context.linear_out"),
}
SINGLE_BLOCK = {
    "linear1": (9, "attn.to_qkv_mlp_proj"),
    "linear2": (1, "attn.to_out"),
    "norm.query_norm": (None, "attn.norm_q"),
    "norm.key_norm": (None, "attn.norm_k"),
}

FLUX2_KLEIN = Family(
    name="FLUX.2 [klein]",
    # (double blocks, single blocks, hidden size): black-forest-labs' configurations.
    sizes={(5, 20, 3072): "4B", (8, 24, 4096): "9B"},
    outside=OUTSIDE,
    stacks=(
        Stack("double_blocks.", "transformer_blocks.", DOUBLE_BLOCK),
        Stack("single_blocks.", "single_transformer_blocks.", SINGLE_BLOCK),
    ),
    signs=("double_stream_modulation_img.lin", "img_in", "txt_in", "final_layer.linear"),
    image="img_in",
    text="txt_in",
    final_modulation="final_layer.adaLN_modulation.1",
    siblings={"guidance_in.": "FLUX.2 [dev]", "time_guidance_embed.guidance_embedder.": "FLUX.2 [dev]"},
    rope_theta=1_000_000,
    taps=(9, 18, 27),
    encoders=(QWEN3, QWEN3_VL),
    official_encoders={
        2560: ("qwen_3_4b", "qwen_3_4b_fp8mixed", "qwen_3_4b_fp4_flux2"),
        4096: ("qwen_3_8b", "qwen_3_8b_fp8mixed", "qwen_3_8b_fp4mixed"),
    },
    official_vaes=("flux2-vae", "full_encoder_small_decoder"),
    distilled=Settings(4, 1.0),
    base=Settings(50, 4.0),
    note_on_base="ComfyUI's own templates take 20 steps and cfg 5, which is faster.",
    shift="flux2",
    official_models=r"flux[.-]2-klein-(base-)?(4b|9b)(-kv)?(-fp8|-nvfp4)?",
    pipeline="Flux2Klein",
    clip_type="flux2",
)
