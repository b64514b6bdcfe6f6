"""The skip pass that runs only its tail gives what the whole pass gives: ComfyUI's own SkipLayerGuidanceDiT runs the whole."""

import pytest
import torch
from releases import is_older
from safetensors.torch import save_file
from sampling import comfy_run, conditioning, embeddings, latent_noise, longer, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.0])
PLACES = (("", "2"), ("1", "0, 3"), ("0", ""), ("", "0"))
LIMIT = 1e-5


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein()


def whole_pass(layers, rescale, scale=2.5):
    double, single = layers
    return (
        "SkipLayerGuidanceDiT",
        dict(
            double_layers=double,
            single_layers=single,
            scale=scale,
            start_percent=0.0,
            end_percent=1.0,
            rescaling_scale=rescale,
        ),
    )


def tail_pass(layers, rescale=0.3, scale=2.5):
    double, single = layers
    return (
        "KleinKitSkipLayerGuidance",
        dict(scale=scale, double_layers=double, single_layers=single, start=0.0, end=1.0, mode="block", rescale=rescale),
    )


def single_rows(model, run):
    """The result of `run()` and how many rows the first single block saw."""
    rows = []
    block = model.model.diffusion_model.single_blocks[0]
    hook = block.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    try:
        return run(), sum(rows)
    finally:
        hook.remove()


def compare(run_node, model, positive, layers=("", "2"), cfg=4.0, noise=None, negative=None, rescale=0.3):
    """Both nodes' runs agree; the rows that the first single block saw in theirs and in ours."""
    noise = latent_noise(64, 96) if noise is None else noise

    def run(*nodes):
        patched = with_nodes(run_node, model, *nodes)
        prompts = positive, negative or conditioning(embeddings(192, 2))
        return single_rows(patched, lambda: comfy_run(patched, SIGMAS, noise, *prompts, cfg))

    (plain, _), (whole, whole_rows), (tail, tail_rows) = (
        run(),
        run(whole_pass(layers, rescale)),
        run(tail_pass(layers, rescale)),
    )
    assert (whole - plain).abs().max() > 0.1
    assert (whole - tail).abs().max() <= LIMIT * whole.abs().max()
    return whole_rows, tail_rows


@pytest.mark.parametrize("cfg", (1.0, 4.0))
@pytest.mark.parametrize("layers", PLACES)
def test_every_place_of_the_first_layer(klein, run_node, layers, cfg):
    compare(run_node, klein, conditioning(embeddings(192, 1)), layers, cfg)


def test_batch_with_prompts_in_two_calls(klein, run_node):
    # ComfyUI's node rescales by the deviation of the whole batch, ours by each picture's.
    positive = conditioning(longer(embeddings(192, 1)))
    whole, tail = compare(run_node, klein, positive, noise=latent_noise(64, 96, batch=3), rescale=0.0)
    assert (whole, tail) == (3 * 3 * 3, 2 * 3 * 3)


def test_reference_latents(klein, run_node):
    positive = conditioning(embeddings(192, 1), reference_latents=[latent_noise(64, 64, seed=3)])
    whole, tail = compare(run_node, klein, positive)
    assert (whole, tail) == (9, 6)


def test_kv_cache_runs_the_whole_pass(klein, run_node, comfy):
    if is_older("0.20", "FluxKVCache" in comfy.NODE_CLASS_MAPPINGS):
        return
    positive = conditioning(embeddings(192, 1), reference_latents=[latent_noise(64, 64, seed=3)])
    (cached,) = run_node("FluxKVCache", model=klein)
    compare(run_node, cached, positive)


def test_several_positives_run_the_whole_pass(klein, run_node):
    positive = conditioning(embeddings(192, 1)) + conditioning(embeddings(192, 3))
    whole, tail = compare(run_node, klein, positive)
    assert whole == tail


def test_a_positive_on_part_of_the_steps(klein, run_node):
    (first,) = run_node("ConditioningSetTimestepRange", conditioning=conditioning(embeddings(192, 1)), start=0.0, end=0.5)
    (second,) = run_node("ConditioningSetTimestepRange", conditioning=conditioning(embeddings(192, 3)), start=0.5, end=1.0)
    compare(run_node, klein, first + second)


def test_masks_and_areas_run_the_whole_pass(klein, run_node):
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1.0
    rest, part = conditioning(embeddings(192, 1)), conditioning(embeddings(192, 3))
    (masked,) = run_node("ConditioningSetMask", conditioning=part, mask=mask, set_cond_area="default", strength=1.0)
    whole, tail = compare(run_node, klein, rest + masked)
    assert whole == tail
    (area,) = run_node("ConditioningSetAreaPercentage", conditioning=part, width=0.5, height=1.0, x=0.5, y=0.0, strength=1.0)
    whole, tail = compare(run_node, klein, rest + area)
    assert whole == tail


def test_context_windows_run_the_whole_pass(klein, run_node):
    inputs = dict(
        context_length=4,
        context_overlap=2,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=3,
        freenoise=False,
    )
    (windowed,) = run_node("ContextWindowsManual", model=klein, **inputs)
    whole, tail = compare(run_node, windowed, conditioning(embeddings(192, 1)))
    assert whole == tail


def where_the_picture_is_cut(run_node, comfy):
    """`{name: (nodes, positive)}` in which the model sees other tokens of the picture, or others beside them."""
    whole, part = conditioning(embeddings(192, 1)), conditioning(embeddings(192, 3))
    reference = conditioning(embeddings(192, 1), reference_latents=[latent_noise(64, 32, seed=3)])
    area = dict(width=0.5, height=0.75, x=0.5, y=0.25, strength=1.0)
    windows = dict(context_length=4, context_overlap=2, context_schedule="standard_static", context_stride=1)
    windows |= dict(closed_loop=False, fuse_method="pyramid", dim=3, freenoise=False)
    nag = dict(scale=4.0, tau=2.0, alpha=0.5, start=0.0, end=1.0)
    cut = {
        "whole": ((), whole),
        "area": ((), whole + run_node("ConditioningSetAreaPercentage", conditioning=part, **area)[0]),
        "windows": ((("ContextWindowsManual", windows),), whole),
        "reference": ((), reference),
        "NAG": ((("KleinKitNAG", nag),), reference),
    }
    if "FluxKVCache" in comfy.NODE_CLASS_MAPPINGS:
        cut["KV cache"] = ((("FluxKVCache", {}),), reference)
    return cut


def seg(blur_sigma):
    return "KleinKitSEG", dict(scale=2.5, double_layers="0", single_layers="1", start=0.0, end=1.0, blur_sigma=blur_sigma)


def test_a_blur_of_no_width_changes_nothing_and_a_wide_one_does(klein, run_node, comfy):
    for cut, (nodes, positive) in where_the_picture_is_cut(run_node, comfy).items():
        plain, none, wide = (
            comfy_run(
                with_nodes(run_node, klein, *nodes, *blur),
                SIGMAS,
                latent_noise(64, 96),
                positive,
                conditioning(embeddings(192, 2)),
                1.0,
            )
            for blur in ((), (seg(0.1),), (seg(10000.0),))
        )
        assert (none - plain).abs().max() <= LIMIT * plain.abs().max(), cut
        assert (wide - plain).abs().max() > 1e-3, cut


def test_a_blur_and_a_skipped_layer_add_up(klein, run_node):
    skip, blur = tail_pass(("", "2"), rescale=0.0), seg(1.0)
    plain, skipped, blurred, both = (
        comfy_run(
            with_nodes(run_node, klein, *nodes),
            SIGMAS[:2],
            latent_noise(64, 96),
            conditioning(embeddings(192, 1)),
            conditioning(embeddings(192, 2)),
            4.0,
        )
        for nodes in ((), (skip,), (blur,), (skip, blur))
    )
    for other in (skipped, blurred):
        assert (both - other).abs().max() > 1e-3
    assert (both - (skipped + blurred - plain)).abs().max() <= LIMIT * both.abs().max()


def test_lora_hooks_on_the_positive(klein, run_node, models, comfy):
    import folder_paths

    folder = folder_paths.get_folder_paths("loras")[0]
    key = "diffusion_model.single_blocks.3.linear2"
    rows, columns = klein.model.state_dict()[f"{key}.weight"].shape
    down, up = (
        torch.randn(4, columns, generator=torch.Generator().manual_seed(1)) * 0.3,
        torch.randn(rows, 4, generator=torch.Generator().manual_seed(2)) * 0.3,
    )
    (models["base"].parent.parent / "loras").mkdir(exist_ok=True)
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, f"{folder}/hook.safetensors")
    (hooks,) = run_node("CreateHookLoraModelOnly", lora_name="hook.safetensors", strength_model=1.0)
    (hooked,) = run_node(
        "ConditioningSetProperties",
        cond_NEW=conditioning(embeddings(192, 1)),
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    assert not torch.allclose(
        *(
            comfy_run(klein, SIGMAS, latent_noise(64, 96), positive, conditioning(embeddings(192, 2)), 4.0)
            for positive in (hooked, conditioning(embeddings(192, 1)))
        ),
        atol=1e-2,
    )
    whole, tail = compare(run_node, klein, hooked)
    assert (whole, tail) == (9, 6)


def test_compiled_models_run_the_whole_pass(comfy, run_node):
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    # As ComfyUI's TorchCompileModel, but with a backend that needs no C compiler, and with the attention of GPUs, without
    # which the model does not become one graph.
    klein = small_klein(double_blocks=1, single_blocks=2)
    compiled = klein.clone()
    compiled.model_options["transformer_options"]["optimized_attention_override"] = lambda _, *args, **kwargs: (
        attention_pytorch(*args, **kwargs)
    )
    set_torch_compile_wrapper(compiled, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    negative, positive, noise = conditioning(embeddings(192, 2)), conditioning(embeddings(192, 1)), latent_noise(64, 96)
    for cfg in (1.0, 4.0):
        runs = [
            comfy_run(with_nodes(run_node, model, tail_pass(("", "1"))), SIGMAS, noise, positive, negative, cfg)
            for model in (klein, compiled)
        ]
        assert (runs[0] - runs[1]).abs().max() <= LIMIT * runs[0].abs().max()


def test_multi_gpu_runs_the_whole_pass(models, comfy, run_node):
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(models["base"]), {"dtype": torch.float32})
    # An older ComfyUI runs on one GPU only.
    if is_older("0.24", hasattr(model, "deepclone_multigpu")):
        return
    from comfy.multigpu import GPUOptionsGroup

    # Two devices for ComfyUI, one for torch.
    second = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
    second.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [second])
    model.match_multigpu_clones()
    GPUOptionsGroup().register(model)
    (whole, tail), on_second = single_rows(
        second, lambda: compare(run_node, model, conditioning(embeddings(192, 1)), rescale=0.0)
    )
    assert whole == tail and on_second > 0
