"""The guidance nodes: each adds one rule to the model."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..checks import brought, names_itself, no_choice
from ..engine.base_pass import with_base, with_other, without_other
from ..engine.both_texts import check_model
from ..engine.extra_pass import block_counts
from ..engine.sampling import with_rule
from ..guidance import presets
from ..guidance.adaptive import Adaptive
from ..guidance.apg import APG, SPACES
from ..guidance.auto import PROMPTS, WEAK, AutoGuidance
from ..guidance.base_uncond import BaseUncond
from ..guidance.cfg import CFG, SCHEDULES, SKIP_MODES, choose_schedule
from ..guidance.fdg import FDG, parse_shares
from ..guidance.image import ImageCFG
from ..guidance.mambo_g import MamboG
from ..guidance.momentum import Momentum
from ..guidance.nag import NAG
from ..guidance.renorm import MODES as RENORM_MODES
from ..guidance.renorm import Renorm
from ..guidance.rule import UNGUIDED, Rule
from ..guidance.seg import SEG
from ..guidance.skip_layer import MODES as SKIP_LAYER_MODES
from ..guidance.skip_layer import SkipLayer, parse_layers
from ..guidance.slerp import Slerp
from ..guidance.tcfg import TCFG
from ..guidance.zero_star import CFGZeroStar


def schema(*, node_id: str, display_name: str, description: str, search_aliases: list[str], inputs: list) -> io.Schema:
    """The schema of a node that adds a rule to a model."""
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="KleinKit/guidance",
        description=description,
        search_aliases=[*search_aliases, "flux2 klein"],
        inputs=[io.Model.Input("model", tooltip="The model to guide. Guidance nodes can be chained in any order."), *inputs],
        outputs=[io.Model.Output(tooltip="The model with this guidance.")],
    )


def share(name: str, default: float, tooltip: str, optional: bool = False) -> io.Float.Input:
    """An input that is a share of the run's steps."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, optional=optional)


def span(end: float) -> list:
    """The inputs `start` and `end` of a rule that acts in a part of the run."""
    return [
        share("start", 0.0, "Begins at this share of the run's steps."),
        share("end", end, "Ends before this share of the run's steps."),
    ]


def layers_in(model: ModelPatcher, double_layers: str, single_layers: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers that two texts name, of the double and of the single blocks.

    Raises:
        ValueError: a text is not of that form, or names layers that the model does not have.
    """
    counts = block_counts(model.model)
    return (
        parse_layers("double_layers", double_layers, counts["double_block"]),
        parse_layers("single_layers", single_layers, counts["single_block"]),
    )


@names_itself
class KleinKitCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitCFG",
            display_name="Klein CFG",
            description="Schedules the sampler's cfg over the steps of the run. A step without guidance costs one pass.",
            search_aliases=["cfg schedule", "guidance interval", "skip cfg", "cfg curve"],
            inputs=[
                io.DynamicCombo.Input(
                    "schedule",
                    tooltip="Which steps are guided, and how strongly.",
                    options=[
                        io.DynamicCombo.Option("constant", []),
                        io.DynamicCombo.Option(
                            "interval",
                            [
                                share("start", 0.0, "Guidance begins at this share of this run's steps."),
                                share("end", 1.0, "Guidance ends before this share of this run's steps."),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "skip",
                            [
                                io.Combo.Input(
                                    "mode", options=list(SKIP_MODES), default="late", tooltip="Which steps go without guidance."
                                ),
                                share("guided_ratio", 0.5, "The share of the steps that is guided."),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "diminishing",
                            [
                                io.Float.Input(
                                    "cutoff",
                                    default=0.11,
                                    min=0.01,
                                    max=1.0,
                                    step=0.01,
                                    tooltip="cfg falls in a straight line and is 1 from where 1 − sigma reaches this.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "curve",
                            [
                                io.String.Input(
                                    "scales",
                                    default="5, 3, 1",
                                    tooltip="cfg values, stretched over the steps. The sampler's cfg is not used.",
                                ),
                            ],
                        ),
                    ],
                ),
                io.Combo.Input(
                    "unguided",
                    options=list(UNGUIDED),
                    default="conditional",
                    tooltip="What a step without guidance does, in one pass: follow the positive prompt, or the negative "
                    "one; use the guidance of the last guided step again (reuse), or continue it from the last two "
                    "(extrapolate).",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: Any = None, schedule: Any = False) -> bool | str:
        # `model` is named because ComfyUI reports an answer only at inputs that arrive; a linked `schedule` arrives as None.
        return no_choice("schedule", SCHEDULES) if schedule is False else True

    @classmethod
    def execute(cls, model: ModelPatcher, schedule: dict, unguided: str) -> io.NodeOutput:
        inputs = brought("schedule", schedule)
        return io.NodeOutput(with_rule(model, CFG(choose_schedule(inputs.pop("schedule"), **inputs), unguided)))


@names_itself
class KleinKitCFGZeroStar(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitCFGZeroStar",
            display_name="Klein CFG-Zero*",
            description="CFG-Zero* as in its paper, in the space of velocities: scales the negative prediction, and can "
            "skip the first steps.",
            search_aliases=["cfg zero star", "zero init", "optimized scale"],
            inputs=[
                io.Boolean.Input(
                    "optimized_scale",
                    default=True,
                    tooltip="Scale the negative prediction to the part of the positive one that lies along it.",
                ),
                io.Int.Input(
                    "zero_init_steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="The first steps with zero velocity: they cost no pass and leave the latent as it is. "
                    "0 is none. With 4 steps, one is a quarter of the run.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, optimized_scale: bool, zero_init_steps: int) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, CFGZeroStar(optimized_scale, zero_init_steps)))


@names_itself
class KleinKitSkipLayerGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitSkipLayerGuidance",
            display_name="Klein Skip-Layer Guidance",
            description="Guides away from the prediction without some layers. Only the layers from the first skipped one on "
            "run again.",
            search_aliases=["slg", "skip layer guidance", "stg", "pag", "perturbed attention guidance"],
            inputs=[
                io.Float.Input("scale", default=3.0, min=0.0, max=100.0, step=0.1, tooltip="Strength; 0 is off."),
                io.String.Input(
                    "double_layers",
                    default="",
                    tooltip="Double blocks to skip, such as `2` or `1-3`. Klein 4B has 0 to 4, 9B 0 to 7, FLUX 3 none.",
                ),
                io.String.Input(
                    "single_layers",
                    default="9",
                    tooltip="Single blocks to skip, such as `9` or `7-9, 12`. Klein 4B has 0 to 19, 9B 0 to 23, FLUX 3 "
                    "0 to 27. "
                    "A reported comparison names 0 to 2 for related methods.",
                ),
                *span(0.5),
                io.Combo.Input(
                    "mode",
                    options=list(SKIP_LAYER_MODES),
                    default="block",
                    tooltip="Skip whole blocks, or only their attention, so that each place sees itself alone (PAG).",
                ),
                share("rescale", 0.0, "Brings the result's contrast back towards the positive prediction's."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        scale: float,
        double_layers: str,
        single_layers: str,
        start: float,
        end: float,
        mode: str,
        rescale: float,
    ) -> io.NodeOutput:
        double, single = layers_in(model, double_layers, single_layers)
        return io.NodeOutput(with_rule(model, SkipLayer(scale, double, single, start, end, mode, rescale)))


@names_itself
class KleinKitSEG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitSEG",
            display_name="Klein SEG",
            description="Smoothed Energy Guidance: guides away from the prediction with a blurred attention. Only the layers "
            "from the first blurred one on run again. For FLUX.2.",
            search_aliases=["smoothed energy guidance", "seg", "blur attention"],
            inputs=[
                io.Float.Input("scale", default=3.0, min=0.0, max=100.0, step=0.1, tooltip="Strength; 0 is off."),
                io.String.Input(
                    "double_layers",
                    default="",
                    tooltip="Double blocks to blur, such as `0` or `1-3`. Klein 4B has 0 to 4, 9B 0 to 7.",
                ),
                io.String.Input(
                    "single_layers",
                    default="2",
                    tooltip="Single blocks to blur, such as `2` or `7-9, 12`. Klein 4B has 0 to 19, 9B 0 to 23. "
                    "A comparison is reported to name 2 for Klein.",
                ),
                *span(0.5),
                io.Float.Input(
                    "blur_sigma",
                    default=10000.0,
                    min=0.01,
                    max=10000.0,
                    step=0.1,
                    tooltip="Width of the blur, in tokens of 16 pixels. Above 9999 all places ask the same.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        scale: float,
        double_layers: str,
        single_layers: str,
        start: float,
        end: float,
        blur_sigma: float,
    ) -> io.NodeOutput:
        check_model(model.model)
        double, single = layers_in(model, double_layers, single_layers)
        return io.NodeOutput(with_rule(model, SEG(scale, double, single, start, end, blur_sigma)))


@names_itself
class KleinKitRenorm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitRenorm",
            display_name="Klein Renorm",
            description="Keeps the guided prediction as large as the positive one: less burn at high cfg. Costs no pass.",
            search_aliases=["cfg renorm", "cfg rescale", "lumina renorm", "burn"],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(RENORM_MODES),
                    default="global",
                    tooltip="One norm for the picture, for each place, or for each latent channel.",
                ),
                share("strength", 1.0, "0 is off, 1 takes over the norm of the positive prediction."),
                io.Boolean.Input("shrink_only", default=True, tooltip="Never enlarge the prediction."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, mode: str, strength: float, shrink_only: bool) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, Renorm(mode, strength, shrink_only)))


@names_itself
class KleinKitSlerpCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitSlerpCFG",
            display_name="Klein Slerp CFG",
            description="Combines positive and negative along the arc between them instead of the line.",
            search_aliases=["slerp", "spherical cfg", "angle domain guidance", "adg"],
            inputs=[
                io.Float.Input(
                    "cap",
                    default=0.0,
                    min=0.0,
                    max=180.0,
                    step=1.0,
                    optional=True,
                    tooltip="The largest angle in degrees by which the positive prediction is turned; 0 is none, 60 is "
                    "Angle-Domain Guidance's.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, cap: float = 0.0) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, Slerp(cap)))


@names_itself
class KleinKitImageCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitImageCFG",
            display_name="Klein Image CFG",
            description="For edits: gives the reference image a guidance scale of its own. Above 1 the result stays closer to "
            "the reference. Costs one more pass; at 1 none.",
            search_aliases=[
                "image guidance",
                "flux klein edit",
                "edit",
                "reference",
                "instruct pix2pix",
                "画像編集",
                "图像编辑",
            ],
            inputs=[
                io.Float.Input(
                    "image_scale",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Scale of the reference image; 1 is plain CFG, any other costs a third pass. The negative prompt "
                    "needs the references too, as Klein References gives them.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, image_scale: float) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, ImageCFG(image_scale)))


@names_itself
class KleinKitBaseUncond(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitBaseUncond",
            display_name="Klein Base Uncond",
            description="Takes the negative prediction from another model: a fine-tuned model is guided better against the "
            "base it came from.",
            search_aliases=["unconditional prior", "base model"],
            inputs=[
                io.Model.Input(
                    "base_model",
                    tooltip="The model that predicts the negative, of the same architecture. Both are "
                    "in memory during the run.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, base_model: ModelPatcher) -> io.NodeOutput:
        return io.NodeOutput(with_base(with_rule(model, BaseUncond()), base_model))


@names_itself
class KleinKitAutoGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitAutoGuidance",
            display_name="Klein AutoGuidance",
            description="Guides away from a weaker version of the model: another model, or this one without some layers. Works "
            "at cfg 1, and beside cfg.",
            search_aliases=["autoguidance", "bad version of itself", "weak model"],
            inputs=[
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far away from the weaker version; 1 is off. The paper found the best around 2.",
                ),
                io.String.Input(
                    "double_layers",
                    default="",
                    tooltip="Double blocks that the weaker version lacks, such as `2` or `1-3`. Not used with `weak_model`.",
                ),
                io.String.Input(
                    "single_layers",
                    default="9",
                    tooltip="Single blocks that the weaker version lacks, such as `9` or `7-9, 12`. Not used with "
                    "`weak_model`.",
                ),
                io.Combo.Input(
                    "prompt",
                    options=list(PROMPTS),
                    default=PROMPTS[0],
                    tooltip="What the weaker version is asked: the positive prompt, as in the paper; the negative one, as in "
                    "diffusers; or both, each compared with itself.",
                ),
                *span(1.0),
                io.Model.Input(
                    "weak_model",
                    optional=True,
                    tooltip="A weaker model of the same architecture, from a loader of its own: without your LoRA, or less "
                    "trained. Both are in memory during the run.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        scale: float,
        double_layers: str,
        single_layers: str,
        prompt: str,
        start: float,
        end: float,
        weak_model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        if weak_model is not None:
            guided = with_rule(model, AutoGuidance(scale, (), (), prompt, start, end, weak_model=True))
            return io.NodeOutput(with_other(guided, weak_model, WEAK))
        double, single = layers_in(model, double_layers, single_layers)
        guided = with_rule(model, AutoGuidance(scale, double, single, prompt, start, end))
        return io.NodeOutput(without_other(guided, WEAK))


@names_itself
class KleinKitMomentum(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitMomentum",
            display_name="Klein Momentum Guidance",
            description="Guides away from the running mean of the steps before. Costs no pass, needs no negative prompt, and "
            "works at cfg 1.",
            search_aliases=["momentum guidance", "mg", "guidance without a pass"],
            inputs=[
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How far away from the mean of the steps before; 0 is off.",
                ),
                io.Float.Input(
                    "beta",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the mean stays from step to step; at 0 it is the step before alone.",
                ),
                *span(1.0),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, alpha: float, beta: float, start: float, end: float) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, Momentum(alpha, beta, start, end)))


@names_itself
class KleinKitAdaptiveGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitAdaptiveGuidance",
            display_name="Klein Adaptive Guidance",
            description="Stops guidance once positive and negative agree, and saves the negative pass from then on.",
            search_aliases=["adaptive guidance", "skip cfg", "speed", "faster", "高速化", "加速"],
            inputs=[
                io.Float.Input(
                    "threshold",
                    default=0.99,
                    min=-1.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Cosine between the two predictions from which on the steps are unguided.",
                ),
                # Prompts of before have neither.
                share("start", 0.0, "Guidance stays at least until this share of the run's steps.", optional=True),
                io.Int.Input(
                    "every",
                    optional=True,
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="After so many steps one is guided and measured again, and guidance can come back; 0 is never.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, threshold: float, start: float = 0.0, every: int = 0) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, Adaptive(threshold, start, every)))


@names_itself
class KleinKitNAG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitNAG",
            display_name="Klein NAG",
            description="The negative prompt works at cfg 1, on distilled models too: the image's attention is led away from "
            "it. One pass a step, as without.",
            search_aliases=[
                "normalized attention guidance",
                "negative prompt",
                "nag",
                "ネガティブプロンプト",
                "负面提示词",
                "反向提示词",
            ],
            inputs=[
                io.Float.Input(
                    "scale",
                    default=5.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far away from the negative prompt; 1 is off.",
                ),
                io.Float.Input(
                    "tau",
                    default=2.5,
                    min=1.0,
                    max=100.0,
                    step=0.05,
                    tooltip="How many times longer the guided attention may become than the positive's.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the guided attention is mixed in; 0 is off.",
                ),
                *span(1.0),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, scale: float, tau: float, alpha: float, start: float, end: float) -> io.NodeOutput:
        check_model(model.model)
        return io.NodeOutput(with_rule(model, NAG(scale, tau, alpha, start, end)))


@names_itself
class KleinKitAPG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitAPG",
            display_name="Klein APG",
            description="Adaptive Projected Guidance: a high cfg with less burn. Takes back the part of guidance that only "
            "adds contrast, and limits the rest. Costs no pass.",
            search_aliases=["adaptive projected guidance", "apg mix", "burn", "saturation"],
            inputs=[
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much stays of the part of guidance along the positive prediction; 1 is all, as in plain CFG.",
                ),
                io.Float.Input(
                    "norm_threshold",
                    default=15.0,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    tooltip="The longest that the difference of the two predictions may be; 0 is no limit. 15 is the paper's "
                    "for SDXL; in Klein's larger latent 42 is as much.",
                ),
                io.Float.Input(
                    "momentum",
                    default=-0.5,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much the steps before count; below 0 they are subtracted, as the paper advises. 0 is none.",
                ),
                io.Combo.Input(
                    "space",
                    options=list(SPACES),
                    default="denoised",
                    tooltip="Where it is done: in the picture without noise, as in the paper, or in the velocity, as in "
                    "diffusers, which also counts from the negative.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Plain CFG before this share of the run's steps. Steps before it count for momentum.",
                ),
                io.Float.Input(
                    "scale",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="cfg from `start` on, where cfg is not 1; 0 takes the sampler's.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, eta: float, norm_threshold: float, momentum: float, space: str, start: float, scale: float
    ) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, APG(eta, norm_threshold, momentum, space, start, scale)))


@names_itself
class KleinKitMAMBOG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitMAMBOG",
            display_name="Klein MAMBO-G",
            description="Lowers cfg in each step by how far positive and negative are apart, so that a high cfg does no harm "
            "in the first steps. Costs no pass.",
            search_aliases=["magnitude aware guidance", "mambo", "burn", "fewer steps"],
            inputs=[
                io.Float.Input(
                    "alpha",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How fast cfg falls where the two predictions are apart; 0 is off.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, alpha: float) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, MamboG(alpha)))


@names_itself
class KleinKitFDG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitFDG",
            display_name="Klein FDG",
            description="Frequency-Decoupled Guidance: guides fine detail more than the large shapes and colours, so that a "
            "high cfg burns less. Costs no pass.",
            search_aliases=["frequency decoupled guidance", "laplacian pyramid", "detail", "burn"],
            inputs=[
                io.String.Input(
                    "shares",
                    default="1, 0.44",
                    tooltip="How much of the guidance each band of frequencies gets, finest first: 1 is the sampler's cfg, "
                    "0 none. Each band is half as fine as the one before; the last has all the rest.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, shares: str) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, FDG(parse_shares(shares))))


@names_itself
class KleinKitTCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="KleinKitTCFG",
            display_name="Klein TCFG",
            description="Tangential damping: takes out of the negative prediction what it does not share with the positive. "
            "Costs no pass.",
            search_aliases=["tangential damping", "tangential cfg"],
            inputs=[],
        )

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        return io.NodeOutput(with_rule(model, TCFG()))


@names_itself
class KleinKitGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=presets.NODE,
            display_name=presets.TITLE,
            description="Guidance for a purpose, in one node: a preset is a stack of this pack's guidance nodes with values to "
            "start from. Shows which nodes and what they cost.",
            search_aliases=[
                "preset",
                "guidance preset",
                "easy",
                "faster",
                "speed up",
                "sharper",
                "negative prompt",
                "高速化",
                "速く",
                "シャープ",
                "ネガティブプロンプト",
                "加速",
                "更快",
                "更清晰",
                "负面提示词",
                "反向提示词",
            ],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(presets.PRESETS),
                    default="off",
                    tooltip="off: nothing. faster: guidance for three fifths of the passes, for base models. sharper: "
                    "skip-layer guidance, half a pass more in the first half. negative_prompt: the negative prompt works on "
                    "distilled models (NAG). high_cfg: a high cfg without burnt colours (renorm).",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, preset: str) -> io.NodeOutput:
        for rule in presets.preset(preset):
            check_fits(model, rule)
            model = with_rule(model, rule)
        return io.NodeOutput(model)


def check_fits(model: ModelPatcher, rule: Rule) -> None:
    """Check that a rule with values for FLUX.2 [klein] fits a model.

    Raises:
        ValueError: the model has no such layers, or an attention that is not known.
    """
    if isinstance(rule, NAG):
        check_model(model.model)
    if isinstance(rule, SkipLayer):
        layers_in(model, *(", ".join(map(str, layers)) for layers in (rule.double_layers, rule.single_layers)))


NODES = [
    KleinKitCFG,
    KleinKitCFGZeroStar,
    KleinKitSkipLayerGuidance,
    KleinKitSEG,
    KleinKitRenorm,
    KleinKitSlerpCFG,
    KleinKitImageCFG,
    KleinKitBaseUncond,
    KleinKitAutoGuidance,
    KleinKitMomentum,
    KleinKitAdaptiveGuidance,
    KleinKitNAG,
    KleinKitAPG,
    KleinKitMAMBOG,
    KleinKitFDG,
    KleinKitTCFG,
    KleinKitGuidance,
]
