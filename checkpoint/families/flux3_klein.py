"""FLUX 3 Image Klein: base and distilled; the distilled one is a flow map, which its tensors say."""

from .family import QWEN3_VL, Family, Settings, Stack

# Source: diffusers/loaders/single_file_utils.py, `convert_flux3_transformer_checkpoint_to_diffusers`.
OUTSIDE = {
    "emb_in.image": (1, "x_embedders.image"),
    "emb_in.image_cond": (1, "x_embedders.image_cond"),
    "txt_in": (1, "context_embedder"),
    "time_in.in_layer": (1, "timestep_embedder.linear_1"),
    "time_in.out_layer": (1, "timestep_embedder.linear_2"),
    "ref_time_in.in_layer": (1, "target_timestep_embedder.linear_1"),
    "ref_time_in.out_layer": (1, "target_timestep_embedder.linear_2"),
    **{
        f"{stage}_stream_modulations.{mode}.lin": (3, f"{stage}_stream_modulations.{mode}.linear")
        for stage in ("early", "single")
        for mode in ("image", "image_cond", "txt")
    },
    "final_layer.image.adaLN_modulation.1": (2, "norm_out.linear"),
    "final_layer.image.linear": (None, "proj_out"),
}
BLOCK = {
    "q_proj": (1, "attn.to_q"),
    "k_proj": (1, "attn.to_k"),
    "v_proj": (1, "attn.to_v"),
    "norm.query_norm": (None, "attn.norm_q"),
    "norm.key_norm": (None, "attn.norm_k"),
    "attn_out": (1, "attn.to_out.0"),
    "mlp_in": (6, "ff.linear_in"),
    "mlp_out": (1, "ff.linear_out"),
}

FLUX3_KLEIN = Family(
    name="FLUX 3 Image Klein",
    # (mode blocks of the picture, of references and of the text, joint blocks, hidden size)
    sizes={(5, 5, 5, 28, 3072): "5.5B"},
    outside=OUTSIDE,
    stacks=(
        Stack("content_mode_blocks.image.", "mode_blocks.image.", BLOCK),
        Stack("content_mode_blocks.image_cond.", "mode_blocks.image_cond.", BLOCK),
        Stack("txt_mode_blocks.", "txt_mode_blocks.", BLOCK),
        Stack("single_blocks.", "single_transformer_blocks.", BLOCK),
    ),
    signs=("early_stream_modulations.image.lin", "emb_in.image", "emb_in.image_cond", "txt_in"),
    image="emb_in.image",
    text="txt_in",
    final_modulation="final_layer.image.adaLN_modulation.1",
    siblings=dict.fromkeys(
        ("emb_in.video", "emb_in.action", "x_embedders.video", "vector_in.", "late_"), "FLUX 3 Video or Action"
    ),
    flow_map="ref_time_in.in_layer",
    fused=("q_proj", "k_proj", "v_proj"),
    unused=("repa_projectors.",),
    fixed_depth=True,
    made_for={"fp8r": "sglang", "nvfp4": "sglang"},
    rope_theta=5_000_000,
    taps=(4, 8, 12, 16, 20, 24, 28, 32),
    encoders=(QWEN3_VL,),
    mistaken={"Qwen3.5": "which is what FLUX 3's prompt upsampler is: load that with CLIPLoader, for TextGenerate"},
    official_encoders={2560: ("qwen3vl_4b_bf16", "qwen3vl_4b_int8_convrot")},
    official_vaes=("flux2-vae",),
    distilled=Settings(16, 1.0),
    base=Settings(50, 3.5),
    note_on_base="Black Forest Labs' README says cfg 4.",
    shift="flux3",
    pipeline="Flux3",
    transformer="Flux3Transformer2DModel",
    clip_type="flux3",
    encoder_config="qwen3vl_4b",
    comfyui="0.41.0",
)
