"""Every node of ComfyUI that changes a model, guides or samples, beside our nodes; docs/reliability.md holds the table."""

import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from guidance_nodes import skips
from releases import may_lack
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
MARKS = "<!-- comfyui nodes -->\n", "<!-- end -->\n"
SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
LATE = ("KleinKitCFG", dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.75}, unguided="conditional"))
SKIP, COMFYUI_SKIP = skips("1")
ZERO_STAR = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0))
RENORM = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=False))
INTERVAL, ZERO = "interval and skip-layer", "CFG-Zero\\* and renorm"
STACKS = {INTERVAL: (LATE, SKIP), ZERO: (ZERO_STAR, RENORM)}
BEHIND, BEFORE = "behind ours", "before ours"
WIRINGS = (BEHIND, BEFORE)
TWO_COMBINE = "both change how the positive and the negative are combined"
BOTH_PASSES = "asks for both passes in every step"
OTHER_SAMPLING = "makes the model sample in a way that FLUX.2 was not trained for"
FOLLOWS = "Another node changed cfg to 2 behind KleinKit's nodes, which follow it"
CACHED = "does nothing in steps that a cache answers"
ANSWERED = "another node answered for the model"


@dataclass(frozen=True)
class Node:
    """What a node of ComfyUI does beside ours.

    Attributes:
        inputs: of the node, besides `model`.
        same: either order of the wiring gives the same latent.
        warns: part of the one warning, by our nodes and by where theirs stands.
        refused: our nodes refuse the model behind it.
        reference: our skip-layer guidance is ComfyUI's.
        note: what else the table says.
    """

    inputs: dict = field(default_factory=dict)
    same: bool = True
    warns: dict = field(default_factory=dict)
    refused: bool = False
    reference: bool = True
    note: str = ""


def both_wirings(stack, sentence):
    return {(stack, wiring): sentence for wiring in WIRINGS}


def combines(**inputs):
    return Node(inputs, warns=both_wirings(ZERO, TWO_COMBINE))


def other_sampling(**inputs):
    return Node(inputs, refused=True, warns={(stack, BEHIND): OTHER_SAMPLING for stack in STACKS})


WINDOWS = dict(
    context_length=2,
    context_overlap=1,
    context_schedule="standard_static",
    context_stride=1,
    closed_loop=False,
    fuse_method="pyramid",
    dim=2,
    freenoise=False,
    cond_retain_index_list="",
    split_conds_to_windows=False,
    latent_retain_index_list="",
    causal_window_fix=False,
)
CACHE = dict(reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)
LAYERS = dict(double_layers="0", single_layers="", start_percent=0.0, end_percent=1.0)
# Nodes that act on FLUX.2.
ACTING = {
    "APG": Node(dict(eta=0.5, norm_threshold=2.0, momentum=-0.5)),
    "CFGNorm": Node(dict(strength=0.9), same=False),
    "CFGNorm (pre_cfg)": combines(strength=0.9, pre_cfg=True),
    "CFGOverride": Node(
        dict(cfg=2.0, start_percent=0.0, end_percent=1.0),
        same=False,
        warns={(stack, BEHIND): FOLLOWS for stack in STACKS},
        note="before ours it sets the cfg that ours begin from",
    ),
    "CFGZeroStar": Node(same=False, warns=both_wirings(ZERO, "Klein CFG-Zero* and ComfyUI's CFGZeroStar both scale")),
    "ContextWindowsManual": Node(WINDOWS, note="on pictures with `dim` 2 or 3"),
    "EasyCache": Node(
        CACHE,
        warns=both_wirings(INTERVAL, CACHED),
        reference=False,
        note="it never answers in a step without a negative",
    ),
    "Epsilon Scaling": Node(dict(scaling_factor=1.1), same=False),
    "FreSca": Node(dict(scale_low=1.2, scale_high=1.25, freq_cutoff=20)),
    "LatentApplyOperationCFG": Node(),
    "LazyCache": Node(
        CACHE,
        warns={(stack, BEHIND): ANSWERED for stack in STACKS},
        note="before ours it answers for ours too, and the log counts what ran",
    ),
    "Mahiro": Node(same=False),
    "NAGuidance": Node(
        dict(nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
        warns=both_wirings(INTERVAL, BOTH_PASSES),
        note="Klein Base Uncond and it exclude each other, which one warning says",
    ),
    "PerpNeg": combines(neg_scale=1.0),
    "RenormCFG": combines(cfg_trunc=100.0, renorm_cfg=0.9),
    "RescaleCFG": combines(multiplier=0.7),
    "ScaleROPE": Node(dict(scale_x=2.0, shift_x=0.0, scale_y=1.0, shift_y=0.0, scale_t=1.0, shift_t=0.0)),
    "SkipLayerGuidanceDiT": Node({**LAYERS, "scale": 1.5, "rescaling_scale": 0.0}, same=False, note="each has its own pass"),
    "SkipLayerGuidanceDiTSimple": Node(LAYERS),
    "SkipLayerGuidanceSD3": Node(
        dict(layers="0", scale=1.5, start_percent=0.0, end_percent=1.0), same=False, note="each has its own pass"
    ),
    "TCFG": Node(),
    "TemporalScoreRescaling": Node(dict(tsr_k=0.8, tsr_sigma=1.0), same=False),
    "VideoLinearCFGGuidance": combines(min_cfg=1.0),
    "VideoTriangleCFGGuidance": combines(min_cfg=1.0),
    "ModelMergeSimple": Node(dict(ratio=0.5)),
    "ModelSamplingSD3": Node(dict(shift=3.0)),
    "MiniMaxH3SigmaShift": Node(dict(shift_video=12.0, shift_audio=3.0)),
    "ModelSamplingContinuousEDM": other_sampling(sampling="cosmos_rflow", sigma_max=120.0, sigma_min=0.002),
    "ModelSamplingContinuousV": other_sampling(sampling="v_prediction", sigma_max=120.0, sigma_min=0.002),
    "ModelSamplingDiscrete": other_sampling(sampling="eps", zsnr=False),
}
# Nodes that change nothing in a run with given sigmas.
ATTENTION = dict(q=2.0, k=1.0, v=1.0, out=1.0)
IDLE = {
    "DifferentialDiffusion": Node(dict(strength=1.0), note="without a mask; with one in test_guidance_odd_graphs.py"),
    "ModelComputeDtype": Node(dict(dtype="fp32")),
    "ModelSamplingAuraFlow": Node(dict(shift=3.0), note="it sets the sigmas alone"),
    "ModelSamplingFlux": Node(
        dict(max_shift=1.15, base_shift=0.5, width=1024, height=1024),
        note="it sets the sigmas alone; so does ModelSamplingLTXV",
    ),
    "PatchModelAddDownscale": Node(
        dict(
            block_number=3,
            downscale_factor=2.0,
            start_percent=0.0,
            end_percent=0.35,
            downscale_after_skip=True,
            downscale_method="bicubic",
            upscale_method="bicubic",
        )
    ),
    "PerturbedAttentionGuidance": Node(dict(scale=3.0), note="on FLUX.2 its pass equals the positive; the log counts it"),
    "UNetCrossAttentionMultiply": Node(ATTENTION),
    "UNetSelfAttentionMultiply": Node(ATTENTION),
    "UNetTemporalAttentionMultiply": Node(
        dict(self_structural=2.0, self_temporal=1.0, cross_structural=1.0, cross_temporal=1.0)
    ),
}
# Nodes with which FLUX.2 fails in ComfyUI.
FAILING = {
    "FreeU": dict(b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "HyperTile": dict(tile_size=256, swap_size=2, max_depth=0, scale_depth=False),
    "ModelNoiseScale": dict(noise_scale=1.5),
    "SelfAttentionGuidance": dict(scale=0.5, blur_sigma=2.0),
    "TomePatchModel": dict(ratio=0.3),
}
SAMPLERS = (
    "SamplerDPMAdaptative",
    "SamplerDPMPP_2M_SDE",
    "SamplerDPMPP_2S_Ancestral",
    "SamplerDPMPP_3M_SDE",
    "SamplerDPMPP_SDE",
    "SamplerER_SDE",
    "SamplerEulerAncestral",
    "SamplerLCM",
    "SamplerLMS",
    "SamplerSASolver",
    "SamplerSEEDS2",
)
CFG_PP = ("SamplerEulerAncestralCFGPP", "SamplerEulerCFGpp")
# Nodes that run a sampler.
RUNNING = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
# Nodes that make or change sigmas.
SCHEDULES = (
    "AlignYourStepsScheduler",
    "BasicScheduler",
    "BetaSamplingScheduler",
    "ExponentialScheduler",
    "ExtendIntermediateSigmas",
    "FlipSigmas",
    "Flux2Scheduler",
    "GITSScheduler",
    "Ideogram4Scheduler",
    "KarrasScheduler",
    "LTXVScheduler",
    "LaplaceScheduler",
    "ManualSigmas",
    "OptimalStepsScheduler",
    "PolyexponentialScheduler",
    "SDTurboScheduler",
    "SetFirstSigma",
    "SplitSigmas",
    "SplitSigmasDenoise",
    "VPScheduler",
)
# What is given to them, where their defaults leave no run.
GIVEN = {"SplitSigmas": {"step": 2}, "SplitSigmasDenoise": {"denoise": 0.5}}
# Those whose sigmas are the ones of a scheduler in KSampler's list.
SHIFTED = ("BasicScheduler", "BetaSamplingScheduler")
ELSEWHERE = {
    "each in tests/comfy/test_guidance_guiders.py": (
        "BasicGuider CFGGuider DualCFGGuider DualModelGuider LTXVDualCFGGuider PerpNegGuider",
        "both act, or one warning names what has no effect",
    ),
    "each sampler of it in tests/comfy/test_guidance_samplers.py": ("KSamplerSelect", "both act"),
    "tests/comfy/test_guidance_multigpu.py": ("MultiGPU_WorkUnits SelectModelDevice", "both act"),
    "tests/comfy/test_guidance_skip_pass.py": ("FluxKVCache TorchCompileModel", "both act"),
    "an attention override, as those in tests/comfy/test_guidance_other_hooks.py": ("ModelAttentionBackend", "both act"),
    "they change weights as ModelMergeSimple does": (
        "HypernetworkLoader LoraLoader LoraLoaderBypass LoraLoaderBypassModelOnly LoraLoaderModelOnly LoraModelLoader "
        "ModelMergeAdd ModelMergeBlocks ModelMergeSubtract and every node of “model/merging/model specific”",
        "both act; merge nodes keep the guidance of their first model",
    ),
    "refused as ModelSamplingDiscrete is": (
        "ModelSamplingStableCascade",
        "before ours: our nodes refuse the model with an error",
    ),
    "for other models than FLUX.2, not run": (
        "ARVideoI2V AnimaLLLiteApply ChromaRadianceOptions HiDreamO1PatchSeamSmoothing LTXVContextWindows LTXVModalityGuidance "
        "LTXVReferenceAudio LTXVSpatioTemporalGuidance "
        "ModelSamplingLTXV QwenImageDiffsynthControlnet SUPIRApply SamplerARVideo SamplerLCMUpscale TripoSplatSamplingPreview "
        "USOStyleReference VOIDSampler WanAnimate2Cache WanContextWindowsManual WanInfiniteTalkToVideo WanUni3CControlnetApply "
        "ZImageFunControlnet wanBlockSwap",
        "no promise",
    ),
}
MERGES = "model/merging/model specific"


def names(text):
    return re.findall(r"\w+", text.split(" and every")[0])


def known():
    elsewhere = [name for text, _ in ELSEWHERE.values() for name in names(text)]
    return (
        {name.split(" (")[0] for name in ACTING}
        | IDLE.keys()
        | FAILING.keys()
        | {*SAMPLERS, *CFG_PP, *RUNNING, *SCHEDULES, *elsewhere}
    )


def test_no_node_is_unknown(comfy):
    def types(node):
        inputs = node.INPUT_TYPES()
        return [value[0] for kind in ("required", "optional") for value in inputs.get(kind, {}).values()]

    found = set()
    for name, node in comfy.NODE_CLASS_MAPPINGS.items():
        gives = node.RETURN_TYPES
        ours = node.__module__.startswith("custom_nodes") or "kleinkit" in name.lower()
        if ours or getattr(node, "CATEGORY", "") == MERGES or "model_specific" in node.__module__:
            continue
        runs = any(kind in types(node) for kind in ("MODEL", "GUIDER")) and "LATENT" in gives and name != "AddNoise"
        if (
            runs
            or ("MODEL" in gives and "MODEL" in types(node))
            or any(kind in gives for kind in ("GUIDER", "SAMPLER", "SIGMAS"))
        ):
            found.add(name)
    assert len(found) > 80
    assert found - known() == set(), "Nodes of this ComfyUI that this test does not know: decide what they do beside ours."


def sentence(node):
    """What the table says of a node."""
    said = "both act, in either order the same" if node.same else "both act; the later one acts on what the earlier made"
    if node.refused:
        said = "before ours: our nodes refuse the model with an error"
    parts = [said, *([node.note] if node.note else [])]
    for warning in dict.fromkeys(node.warns.values()):
        where = [key for key, value in node.warns.items() if value == warning]
        stacks, wirings = (tuple(dict.fromkeys(part)) for part in zip(*where))
        place = "" if len(wirings) == len(WIRINGS) else f"{wirings[0]}"
        owner = "" if len(stacks) == len(STACKS) else f"with {stacks[0]}"
        parts.append(f"{' '.join(filter(None, (place, owner)))}: one warning, “… {warning.replace('*', chr(92) + '*')} …”")
    return "; ".join(parts)


def table():
    """The table of docs/reliability.md."""
    rows = {name: (sentence(node), "") for name, node in ACTING.items()}
    for name, node in IDLE.items():
        rows[name] = f"changes nothing{f': {node.note}' if node.note else ' on FLUX.2, and nothing of ours'}", ""
    failing = ", ".join(f"`{name}`" for name in FAILING)
    lines = ["| node of ComfyUI | beside our nodes |", "|---|---|"]
    lines += [f"| `{name}` | {said} |" for name, (said, _) in sorted(rows.items(), key=lambda row: row[0].lower())]
    lines.append(f"| {failing} | ComfyUI itself fails with them on FLUX.2 |")
    lines.append(f"| {', '.join(f'`{name}`' for name in SAMPLERS)} | both act; the log counts what ran |")
    lines.append(
        f"| {', '.join(f'`{name}`' for name in CFG_PP)} | both act; with an interval: one warning, “… {BOTH_PASSES} …” |"
    )
    lines.append(f"| {', '.join(f'`{name}`' for name in RUNNING)} | both act |")
    shifted = " and ".join(f"`{name}`" for name in SHIFTED)
    lines.append(
        f"| {', '.join(f'`{name}`' for name in SCHEDULES)} | both act; Klein Dynamic Shift shifts what {shifted} make, and "
        "leaves the others' sigmas as they are |"
    )
    for where, (text, said) in ELSEWHERE.items():
        more = " and every" + text.split(" and every")[1] if " and every" in text else ""
        lines.append(f"| {', '.join(f'`{name}`' for name in names(text))}{more} | {said} ({where}) |")
    return "\n".join(lines) + "\n"


def test_the_page_holds_the_table():
    start, end = MARKS
    assert PAGE.read_text(encoding="utf-8").split(start)[1].split(end)[0] == table()


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=2)


@pytest.fixture(scope="module")
def other(comfy):
    return small_klein(seed=5, double_blocks=1, single_blocks=2)


@pytest.fixture
def apply(comfy, run_node, other):
    """`(name, inputs) → (model → model)`, or None where this ComfyUI has no such node or input."""

    def patch(name, inputs):
        name = name.split(" (")[0]
        node = comfy.NODE_CLASS_MAPPINGS.get(name)
        more = {}
        if name == "PerpNeg":
            more["empty_conditioning"] = conditioning(embeddings(192, 3))
        if name == "LatentApplyOperationCFG":
            (more["operation"],) = run_node("LatentOperationTonemapReinhard", multiplier=1.5)
        if node is None or not inputs.keys() <= {key for kind in node.INPUT_TYPES().values() for key in kind}:
            return None
        if name == "ModelMergeSimple":
            return lambda model: run_node(name, model1=model, model2=other, **inputs)[0]
        return lambda model: run_node(name, model=model, **inputs, **more)[0]

    return patch


@pytest.fixture
def run(klein, caplog):
    """`model → latent`; what the log counts is what the model saw. `run.said` holds the warnings."""
    caplog.set_level("INFO")

    def sample(model, sampler="euler", pixels=64, sigmas=SIGMAS):
        caplog.clear()
        rows, prompts = [], (conditioning(embeddings(192, seed)) for seed in (1, 2))
        hook = klein.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
        try:
            done = comfy_run(model, sigmas, latent_noise(pixels, pixels), *prompts, 4.0, sampler)
        finally:
            hook.remove()
        sample.said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        for passes in re.findall(r"KleinKit: \d+ steps, (\d+) passes", caplog.text):
            assert int(passes) == sum(rows)
        return done

    return sample


@pytest.fixture(scope="module")
def interval(klein, run_node):
    """The latent with our interval and skip-layer guidance alone."""
    prompts = (conditioning(embeddings(192, seed)) for seed in (1, 2))
    return comfy_run(with_nodes(run_node, klein, *STACKS[INTERVAL]), SIGMAS, latent_noise(64, 64), *prompts, 4.0)


def wired(run_node, klein, theirs, nodes, wiring):
    return theirs(with_nodes(run_node, klein, *nodes)) if wiring is BEHIND else with_nodes(run_node, theirs(klein), *nodes)


@pytest.mark.parametrize("name", ACTING)
def test_both_act(klein, run_node, apply, run, interval, name):
    node = ACTING[name]
    theirs = apply(name, node.inputs)
    if theirs is None:
        return  # An older ComfyUI.
    alone, differences = run(theirs(klein)), []
    for stack, nodes in STACKS.items():
        made = {}
        for wiring in WIRINGS:
            if node.refused and wiring is BEFORE:
                with pytest.raises(
                    ValueError, match="whose sampling a node before this one, such as ModelSamplingDiscrete, has"
                ):
                    wired(run_node, klein, theirs, nodes, wiring)
                continue
            made[wiring] = done = run(wired(run_node, klein, theirs, nodes, wiring))
            assert torch.isfinite(done).all() and "comfy_extras" not in " ".join(run.said)
            expected = node.warns.get((stack, wiring))
            assert [expected in said for said in run.said] == [True] if expected else not run.said, run.said
            if stack is INTERVAL:
                assert (done - alone).abs().max() > 1e-2 and (done - interval).abs().max() > 1e-4
                if node.reference:
                    reference = run(wired(run_node, klein, theirs, (LATE, COMFYUI_SKIP), wiring))
                    assert (done - reference).abs().max() <= 1e-5 * reference.abs().max()
        if len(made) == len(WIRINGS):
            differences.append((made[BEHIND] - made[BEFORE]).abs().max())
    if differences:
        assert max(differences) <= 1e-4 if node.same else max(differences) > 1e-3


@pytest.mark.parametrize("name", IDLE)
def test_a_node_that_does_nothing_changes_nothing_of_ours(klein, run_node, apply, run, interval, name):
    theirs = apply(name, IDLE[name].inputs)
    if theirs is None:
        return  # An older ComfyUI.
    check_that_it_does_nothing(klein, run_node, theirs, run, interval)


def check_that_it_does_nothing(klein, run_node, theirs, run, interval):
    for wiring in WIRINGS:
        assert (run(wired(run_node, klein, theirs, STACKS[INTERVAL], wiring)) - interval).abs().max() <= 2e-5
        assert not run.said


@pytest.mark.parametrize("name", FAILING)
def test_a_node_that_fails_without_ours(klein, run_node, apply, run, interval, name):
    from comfy.ldm.flux import layers

    theirs = apply(name, FAILING[name])
    if theirs is None:
        return  # An older ComfyUI.
    if name == "HyperTile" and may_lack("0.20", '"attn1_patch"' in inspect.getsource(layers)):
        # The blocks of an older ComfyUI do not ask it.
        check_that_it_does_nothing(klein, run_node, theirs, run, interval)
        return
    with pytest.raises((AttributeError, KeyError, TypeError)):
        run(theirs(klein), pixels=128, sigmas=SIGMAS[2:4])


def defaults(node, **given):
    """The inputs of a node: those of a type that is given, and defaults."""
    inputs, types = {}, node.INPUT_TYPES()
    for kind in ("required", "optional"):
        for key, (of, *options) in types.get(kind, {}).items():
            options = options[0] if options and isinstance(options[0], dict) else {}
            choices = of if isinstance(of, list) else options.get("options")
            if kind == "required" or isinstance(of, list) or "default" in options:
                named = of if isinstance(of, str) else ""
                inputs[key] = given[named] if named in given else options.get("default", choices[0] if choices else False)
    return inputs


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigmas(klein, run_node, comfy, run, caplog, name):
    node = comfy.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        return  # An older ComfyUI.
    shift = ("KleinKitDynamicShift", {"shift": {"shift": "flux2"}})
    given = GIVEN.get(name, {"steps": 4} if "steps" in node.INPUT_TYPES()["required"] else {})

    def sigmas_of(model):
        # Flipped they end below 1, from where ComfyUI divides by 0.
        return run_node(name, **defaults(node, MODEL=model, SIGMAS=SIGMAS[1:]) | given)[0]

    sigmas = sigmas_of(klein)
    ours, theirs = (run(with_nodes(run_node, klein, LATE, skip), sigmas=sigmas) for skip in (SKIP, COMFYUI_SKIP))
    assert torch.isfinite(ours).all() and not run.said
    # Above sigma 1, which FLUX.2 does not know, ComfyUI's node does nothing.
    assert sigmas.max() > 1.0 or (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    # Klein Dynamic Shift shifts what it says it shifts.
    shifted = with_nodes(run_node, klein, shift)
    changed = (run(shifted, sigmas=sigmas_of(shifted)) - run(klein, sigmas=sigmas)).abs().max() > 1e-4
    assert bool(changed) == (name in SHIFTED)
    run(shifted, sigmas=sigmas_of(shifted))
    assert ("Klein Dynamic Shift: mu" in caplog.text) == bool(changed)


@pytest.mark.parametrize("name", RUNNING)
def test_nodes_that_run_a_sampler(klein, run_node, name):
    def sampled(*nodes):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        model = with_nodes(run_node, klein, *nodes)
        positive, negative = (conditioning(embeddings(192, seed)) for seed in (1, 2))
        both, latent = dict(positive=positive, negative=negative, cfg=4.0), {"samples": torch.zeros(1, 128, 4, 4)}
        stock = dict(model=model, steps=4, sampler_name="euler", scheduler="simple", latent_image=latent) | both
        custom = dict(sampler=run_node("KSamplerSelect", sampler_name="euler")[0], sigmas=SIGMAS, latent_image=latent)
        inputs = {
            "KSampler": stock | dict(seed=1, denoise=1.0),
            "KSamplerAdvanced": stock
            | dict(add_noise="enable", noise_seed=1, start_at_step=0, end_at_step=3, return_with_leftover_noise="disable"),
            "SamplerCustom": custom | both | dict(model=model, add_noise=True, noise_seed=1),
            "SamplerCustomAdvanced": custom
            | dict(noise=Noise_RandomNoise(1), guider=run_node("CFGGuider", model=model, **both)[0]),
        }
        return run_node(name, **inputs[name])[0]["samples"]

    ours, theirs = sampled(LATE, SKIP), sampled(LATE, COMFYUI_SKIP)
    assert (ours - sampled(LATE)).abs().max() > 1e-2
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", SAMPLERS + CFG_PP)
def test_samplers(klein, run_node, comfy, run, name):
    node = comfy.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        return  # An older ComfyUI.
    (sampler,) = run_node(name, **defaults(node, MODEL=klein))
    ours, theirs = (run(with_nodes(run_node, klein, LATE, skip), sampler) for skip in (SKIP, COMFYUI_SKIP))
    assert torch.isfinite(ours).all()
    assert [BOTH_PASSES in said for said in run.said] == [True] * (name in CFG_PP)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
