"""What `bench gpu` measures: groups of runs that are measured in turn, so that each is beside what it is compared with."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..guidance.plan import plan
from ..tests.helpers.files import klein, qwen3
from ..tests.helpers.flux3 import SIZE, TRUE_SIZE, stand_in
from ..tests.helpers.sampling import short
from .guidance import TEXT_TOKENS, runner
from .loader import MOST_OF_THE_LAYERS
from .nag import PROMISED as NAG
from .weights import klein_of, text_encoder_of

RULE, PASS = 1.01, 1.03
# The third pass has no picture beside it: by the count of operations 188 for 153 of two with a picture.
IMAGE = 1.23 * PASS
# Of ComfyUI's node at cfg 4 and 1: 0.82 and 0.73 on Klein 4B, where 60 blocks run for 74 and 35 for 49.
SKIP = {4.0: 0.82 * 74 / 60, 1.0: 0.73 * 49 / 35}
PLAIN, PLAIN_1 = "plain CFG, cfg 4", "one pass, cfg 1"
COMFYUI_SKIP, COMFYUI_NAG = "ComfyUI's SkipLayerGuidanceDiT", "ComfyUI's NAGuidance"
RULES = {
    "Klein CFG, constant": ("KleinKitCFG", dict(schedule={"schedule": "constant"}, unguided="conditional")),
    "Klein CFG-Zero*": ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0)),
    "Klein TCFG": ("KleinKitTCFG", {}),
    "Klein Slerp CFG": ("KleinKitSlerpCFG", {}),
    "Klein APG": (
        "KleinKitAPG",
        dict(eta=0.0, norm_threshold=5.0, momentum=-0.5, space="velocity", start=0.0, scale=0.0),
    ),
    "Klein MAMBO-G": ("KleinKitMAMBOG", dict(alpha=8.0)),
    "Klein FDG": ("KleinKitFDG", dict(shares="1, 0.5, 0.2")),
    "Klein Momentum": ("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0)),
    **{
        f"Klein Renorm, {mode}": ("KleinKitRenorm", dict(mode=mode, strength=1.0, shrink_only=True))
        for mode in ("global", "token", "channel")
    },
    "Klein Adaptive Guidance": ("KleinKitAdaptiveGuidance", dict(threshold=1.0)),
}
# Of those that combine the predictions, one.
TOGETHER = ("Klein CFG, constant", "Klein CFG-Zero*", "Klein TCFG", "Klein APG", "Klein Momentum", "Klein Renorm, token")
STEPS_OF_A_RUN = 4
COMPILED, COMPILED_RULES = f"compiled, {PLAIN}", "compiled, six rules together"
# By what the table calls them: backends of torch.compile, their options, and the seconds that are kept for them. ComfyUI's
# node offers the first two on a GPU. The third is what torch calls the mode reduce-overhead.
ON_GPU = {
    "inductor": ("inductor", {}, 60),
    "cudagraphs": ("cudagraphs", {}, 30),
    "inductor and CUDA graphs": ("inductor", {"triton.cudagraphs": True}, 0),
}
# It finds the graphs and runs them as they are: inductor takes a compiler of C++, and long.
ON_CPU = {"eager": ("eager", {}, 0)}
WHOLE_ENCODER = "whole, as CLIPLoader loads it"


@dataclass(frozen=True)
class Beside:
    """What a row is compared with.

    Attributes:
        name: another row of its group.
        most: the goal: its time may be so much of the other's; None where there is none.
    """

    name: str
    most: float | None = None


@dataclass(frozen=True)
class Row:
    """One thing that is measured.

    Attributes:
        name: in plain words.
        work: `(steps, mark)`: does it, and marks its begin and the end of each step.
        beside: what it is compared with.
        passes: of the model in a step, where its tokens and operations a second are of interest; else 0.
        lean: whether the goal of its memory is two latents beyond the first it is compared with.
        memory: bytes of the weights it holds, where that is what is of interest.
    """

    name: str
    work: Callable[[int, Callable], object]
    beside: tuple[Beside, ...] = ()
    passes: int = 0
    lean: bool = False
    memory: int | None = None


@dataclass(frozen=True)
class Group:
    """Rows that are measured in turn.

    Attributes:
        title: of the table.
        rows: makes them, in the order of the table.
        unit: of the times: a step, a run of several, a prompt.
        steps: of each run.
        side: of the picture in tokens, 0 where there is none.
        waits: whether to count how often the host waits, which does not depend on the size.
        graphs: whether to count the graphs that are compiled.
    """

    title: str
    rows: Callable[[], list[Row]]
    unit: str = "step"
    steps: int = 2
    side: int = 0
    waits: bool = False
    graphs: bool = False

    @property
    def tokens(self):
        """Of the picture and of the text."""
        return self.side**2 + TEXT_TOKENS

    @property
    def latent(self):
        """Bytes of a latent, in float32."""
        return 4 * 128 * self.side**2


class Start:
    """A wrapper around a sampler that marks where sampling begins. It stands before KleinKit's own."""

    mark = staticmethod(lambda: None)

    def __call__(self, executor, *args, **kwargs):
        self.mark()
        return executor(*args, **kwargs)


class Subject:
    """A model that is measured.

    Attributes:
        name: of it.
        model: a `ModelPatcher`, loaded when it is asked for.
        other: the same weights once more, as another model.
    """

    def __init__(self, name, load):
        self.name, self.load, self.start = name, load, Start()

    @functools.cached_property
    def model(self):
        model = self.load()
        model.add_wrapper_with_key("sampler_sample", "benchmark", self.start)
        return model

    @functools.cached_property
    def other(self):
        return self.load()

    def forget(self):
        """Let go of the models."""
        for name in ("model", "other"):
            self.__dict__.pop(name, None)

    @property
    def layer(self):
        """A single block to skip: 9, the default of the nodes, or one in the middle of a small model."""
        return str(min(9, len(self.model.model.diffusion_model.single_blocks) // 2))

    def skip_goal(self, cfg):
        """What skip-layer may take of ComfyUI's time: as the blocks that run, of a Klein; None of another model."""
        model = self.model.model.diffusion_model
        if not hasattr(model, "double_blocks"):
            return None
        before, singles, passes = len(model.double_blocks), len(model.single_blocks), 2 if cfg != 1.0 else 1
        blocks = before + singles
        ours, theirs = passes * blocks + singles - int(self.layer) - 1, (passes + 1) * blocks - 1
        return SKIP[cfg] * ours / theirs

    def row(self, name, model, cfg, side, beside=(), conditions=None, **more):
        """The row of a run of this model, as it is behind some nodes."""

        text_width = self.model.model.diffusion_model.txt_in.in_features

        def work(steps, mark):
            self.start.mark = mark
            runner(model, cfg, steps, side, text_width, **conditions or {})(callback=mark)

        return Row(name, work, beside, **more)


def node(name, model, **inputs):
    """The model behind a node of KleinKit."""
    return getattr(importlib.import_module("..nodes.guidance", __package__), name).execute(model, **inputs)[0]


def comfyui_skip(model, layer):
    theirs = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiT
    return theirs.execute(
        model, double_layers="", single_layers=layer, scale=3.0, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0
    )[0]


def klein_skip(model, layer):
    layers = dict(double_layers="", single_layers=layer, start=0.0, end=1.0)
    return node("KleinKitSkipLayerGuidance", model, scale=3.0, mode="block", rescale=0.0, **layers)


def together(model):
    """The model with several rules at once."""
    for name in TOGETHER:
        kind, inputs = RULES[name]
        model = node(kind, model, **inputs)
    return model


def at_cfg_4(subject, side, whole, rules):
    """Steps at cfg 4.

    Args:
        subject, side: of `Subject` and `Group`.
        whole: with what is measured at one size only.
        rules: with every rule that has no pass of its own. Their work does not depend on the model.
    """
    model, layer, plain = subject.model, subject.layer, (Beside(PLAIN),)
    rows = [subject.row(PLAIN, model, 4.0, side, passes=2)]
    goal = (Beside(PLAIN, RULE),)
    for name, (kind, inputs) in (RULES if rules else {}).items():
        rows.append(subject.row(name, node(kind, model, **inputs), 4.0, side, goal, lean=True))
    rows.append(subject.row("six rules together", together(model), 4.0, side, goal))
    skip = subject.row(
        "Klein Skip-Layer Guidance",
        klein_skip(model, layer),
        4.0,
        side,
        (Beside(COMFYUI_SKIP, subject.skip_goal(4.0)), Beside(PLAIN)),
    )
    rows += [skip, subject.row(COMFYUI_SKIP, comfyui_skip(model, layer), 4.0, side, plain)]
    if whole:
        layers = dict(scale=3.0, double_layers="", single_layers=layer, start=0.0, end=1.0)
        seg = node("KleinKitSEG", model, blur_sigma=10000.0, **layers)
        auto = node("KleinKitAutoGuidance", model, prompt="positive", **layers)
        rows += [subject.row("Klein SEG", seg, 4.0, side, plain), subject.row("Klein AutoGuidance", auto, 4.0, side, plain)]
    return rows


def base_uncond(subject, side):
    return [
        subject.row(PLAIN, subject.model, 4.0, side),
        subject.row(
            "Klein Base Uncond, a second model",
            node("KleinKitBaseUncond", subject.model, base_model=subject.other),
            4.0,
            side,
            (Beside(PLAIN),),
        ),
    ]


def at_cfg_1(subject, side, whole):
    """Steps of one pass at cfg 1. Arguments are those of `at_cfg_4`."""
    model, layer, plain = subject.model, subject.layer, (Beside(PLAIN_1),)
    nag = node("KleinKitNAG", model, scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0)
    theirs = importlib.import_module("comfy_extras.nodes_nag").NAGuidance.execute(model, 5.0, 0.25, 2.5)[0]
    rows = [
        subject.row(PLAIN_1, model, 1.0, side, passes=1),
        subject.row("Klein NAG", nag, 1.0, side, (Beside(COMFYUI_NAG), Beside(PLAIN_1, NAG))),
        subject.row(COMFYUI_NAG, theirs, 1.0, side, plain),
    ]
    if whole:
        kind, inputs = RULES["Klein Momentum"]
        momentum, skip = node(kind, model, **inputs), klein_skip(model, layer)
        rows += [
            subject.row("Klein Momentum", momentum, 1.0, side, (Beside(PLAIN_1, RULE),), lean=True),
            subject.row(
                "Klein Skip-Layer Guidance", skip, 1.0, side, (Beside(COMFYUI_SKIP, subject.skip_goal(1.0)), Beside(PLAIN_1))
            ),
            subject.row(COMFYUI_SKIP, comfyui_skip(model, layer), 1.0, side, plain),
        ]
    return rows


def with_a_reference(subject, side):
    reference = {"reference_latents": [torch.randn(1, 128, side, side, generator=torch.Generator().manual_seed(3))]}
    image = node("KleinKitImageCFG", subject.model, image_scale=2.0)
    return [
        subject.row(PLAIN, subject.model, 4.0, side, conditions=reference),
        subject.row("Klein Image CFG, three passes", image, 4.0, side, (Beside(PLAIN, IMAGE),), conditions=reference),
    ]


def schedules(subject, side):
    """Whole runs in which a part of the passes is left out: the goal is the share of the passes that run."""
    rules = importlib.import_module("..engine.sampling", __package__).RULES

    def share(model):
        steps = plan(model.model_options[rules], torch.linspace(1, 0, STEPS_OF_A_RUN + 1).tolist(), 4.0)
        return sum(len(step.passes) for step in steps) / (2 * STEPS_OF_A_RUN)

    def cfg(unguided, **schedule):
        return node(
            "KleinKitCFG", subject.model, schedule=dict(schedule="skip", guided_ratio=0.5, **schedule), unguided=unguided
        )

    rows = {
        "the first of 4 steps is zero": node("KleinKitCFGZeroStar", subject.model, optimized_scale=False, zero_init_steps=1),
        "half of the steps guided": cfg("conditional", mode="late"),
        "half of the steps reuse guidance": cfg("reuse", mode="alternate"),
        "half of the steps extrapolate guidance": cfg("extrapolate", mode="late"),
    }
    preset = node("KleinKitGuidance", subject.model, preset="faster")
    return [
        subject.row(PLAIN, subject.model, 4.0, side),
        *(subject.row(name, model, 4.0, side, (Beside(PLAIN, share(model) * PASS),)) for name, model in rows.items()),
        # Its plan is made in the run.
        subject.row("Klein Guidance, faster", preset, 4.0, side, (Beside(PLAIN),)),
    ]


def compiled(subject, side, backend, options):
    """The model behind ComfyUI's TorchCompileModel, alone and with guidance before it."""
    compile_all = importlib.import_module("comfy_extras.nodes_torch_compile")
    wrap = importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper
    # After some graphs of one model torch compiles no more of it.
    torch._dynamo.reset()

    def through(model):
        model = model.clone()
        # What the node does; its menu has no backend that is quick on a CPU, and no CUDA graphs beside inductor's kernels.
        wrap(model=model, backend=backend, options={"guard_filter_fn": compile_all.skip_torch_compile_dict, **options})
        return model

    model, layer = subject.model, subject.layer
    skip, theirs = "compiled, Klein Skip-Layer Guidance", f"compiled, {COMFYUI_SKIP}"
    return [
        subject.row(PLAIN, model, 4.0, side),
        subject.row(COMPILED, through(model), 4.0, side, (Beside(PLAIN),)),
        subject.row(COMPILED_RULES, through(together(model)), 4.0, side, (Beside(COMPILED, RULE),)),
        subject.row(skip, through(klein_skip(model, layer)), 4.0, side, (Beside(COMPILED), Beside(theirs))),
        subject.row(theirs, through(comfyui_skip(model, layer)), 4.0, side, (Beside(COMPILED),)),
    ]


def text_encoders(kind, shapes, config, device):
    """A prompt through a text encoder, as ComfyUI loads it whole and as Klein Loader loads it."""
    tokens, rows = {kind: [[(number, 1.0) for number in range(TEXT_TOKENS)]]}, []
    for name, trim, beside in (
        (WHOLE_ENCODER, False, ()),
        ("trimmed, as Klein Loader loads it", True, (Beside(WHOLE_ENCODER, MOST_OF_THE_LAYERS),)),
    ):
        clip = text_encoder_of(shapes, config, kind, trim, device.device, device.dtype)

        def work(steps, mark, clip=clip):
            mark()
            clip.encode_from_tokens(tokens)
            mark()

        rows.append(Row(name, work, beside, memory=clip.patcher.model_size()))
    return rows


def groups_of(subject, sides, rules):
    """The groups of a model.

    Args:
        subject: the model.
        sides: of the pictures in tokens; at the first all is measured, at others what shows whether the size matters.
        rules: of `at_cfg_4`.
    """
    groups = []
    for side in sides:
        first, title = side == sides[0], f"{subject.name}, {16 * side}×{16 * side}"
        # At a larger size a step takes long, and what a run begins with counts for little.
        common = dict(side=side, waits=first, steps=2 if first else 1)
        groups += [
            Group(f"{title}, cfg 4", functools.partial(at_cfg_4, subject, side, first, rules and first), **common),
            Group(f"{title}, cfg 1", functools.partial(at_cfg_1, subject, side, first), **common),
        ]
        if first:
            groups += [
                Group(
                    f"{title}, runs of {STEPS_OF_A_RUN} steps",
                    functools.partial(schedules, subject, side),
                    unit="run",
                    steps=STEPS_OF_A_RUN,
                    side=side,
                ),
                Group(f"{title}, with a reference picture", functools.partial(with_a_reference, subject, side), **common),
            ]
            # Last, since the second model stays where it is.
            second = Group(f"{title}, with a second model", functools.partial(base_uncond, subject, side), **common)
    return [*groups, second]


def beside_comfyui(subject, side):
    """The group of a model that shows least: what rules cost, and skip-layer beside ComfyUI's."""
    title = f"{subject.name}, {16 * side}×{16 * side}, cfg 4"
    return Group(title, functools.partial(at_cfg_4, subject, side, False, False), side=side)


def compiling(subject, side, on_gpu):
    """The groups of torch.compile, which takes long before it is fast: `[(group, seconds that are kept for it)]`."""
    title = f"{subject.name}, {16 * side}×{16 * side}, torch.compile"
    return [
        (Group(f"{title} ({name})", functools.partial(compiled, subject, side, *how), side=side, graphs=True), kept)
        for name, (*how, kept) in (ON_GPU if on_gpu else ON_CPU).items()
    ]


def true_sizes(device):
    """The published Kleins, smallest first, and the text encoders that go with them.

    Args:
        device: where they are made.
    Returns:
        `(subjects, {name: rows of a text encoder})`.
    """
    nine = dict(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288)
    kleins = {"Klein 4B": klein(), "Klein 9B": klein(**nine)}
    qwens = {"Qwen3-4B": ("qwen3_4b", qwen3(), {}), "Qwen3-8B": ("qwen3_8b", qwen3(hidden=4096, intermediate=12288), {})}
    return subjects_of(kleins, device), encoders_of(qwens, device)


def small_sizes(device):
    """As `true_sizes`, of a size that a CPU runs in milliseconds."""
    kleins = {"a small Klein": klein(hidden=128, double_blocks=1, single_blocks=2, text_width=192)}
    config = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
    qwens = {"a small Qwen3": ("qwen3_4b", qwen3(hidden=64, intermediate=128, heads=1, kv_heads=1), config)}
    return subjects_of(kleins, device, short), encoders_of(qwens, device)


def flux3(device, small):
    """FLUX 3 Klein (base) as diffusers' own transformer in ComfyUI's `BaseModel`, also for a ComfyUI without FLUX 3."""
    size = SIZE if small else TRUE_SIZE
    return Subject("FLUX 3 Klein's stand-in", lambda: stand_in(device=device.device, dtype=device.dtype, **size))


def subjects_of(kleins, device, finish=lambda model: model):
    def load(shapes):
        return finish(klein_of(shapes, device.device, device.dtype))

    return [Subject(name, functools.partial(load, shapes)) for name, shapes in kleins.items()]


def encoders_of(qwens, device):
    return {name: functools.partial(text_encoders, *qwen, device) for name, qwen in qwens.items()}
