"""The pictures of the help pages that the nano family draws, in the real ComfyUI: a row a setting, the same prompts and seed.

`COMFYUI_PATH=… python tasks.py run docs.nano_pictures` in `.venv` writes them to web/docs.
"""

import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..harness import server as api
from ..harness.demo import with_comfyui
from ..harness.editor import chromium, open_editor
from ..harness.pictures import run
from ..harness.workflow import NANO, NANO_LAYER, NANO_PIXELS, for_nano, read
from ..nano import world
from ..nano.metrics import cells, from_signed
from .figure import WIDTH, save

# Scenes that were held out of the family's training.
PROMPTS = (
    "a large yellow star in the middle, on a purple background",
    "a large red ring in the middle, on a green background",
    "a large red triangle at the top, on a blue background",
)
# Other ones of them, whose shape or colour nano-base gets wrong without guidance, and right at its best cfg.
STARS = (
    "a large yellow star in the middle, on a purple background",
    "a large blue star on the right, on a yellow background",
    "a large yellow star at the top, on a white background",
)
SOURCE = "a large white circle at the bottom, on a green background"
# Pictures to edit, and what is asked of them.
EDITS = (
    (("a large red circle on the left, on a green background",), "make the circle yellow"),
    (("a large blue star at the top, on a white background",), "move the star to the right"),
    (
        ("a large green ring at the bottom, on a purple background", "a large yellow star in the middle, on a blue background"),
        "put the shape of the second picture on the first background",
    ),
)
# As large as all of these.
AGAINST = "a large red circle in the middle, on a purple background"
# What is drawn in a part of `SOURCE`: left, top, right and bottom of its mask, in pixels.
INPAINTED, MASKED = "a large red triangle in the middle, on a green background", (72, 8, 120, 56)
SEED, SOURCE_SEED, STEPS = 3, 4, 20
# At which nano-base draws best; at 4 it begins to burn.
BEST = 2.0
DISTILLED, BASE = NANO.values()
# Of a cell, of a gap, of a label and its letters, in pixels: twice what the editor's panel has room for.
CELL, GAP, LABEL, FONT = 11, 16, 40, 27
PROBED = "16 Klein Probe and Report"
# A plot of six panels needs more room than others.
REPORT_WIDTH = 900
PAPER, INK = "#ffffff", "#222222"

Node = tuple[str, dict[str, Any]]


class Row(NamedTuple):
    """Pictures of one setting.

    Attributes:
        label: above the row; `{passes}` is what ComfyUI's log says of the runs.
        nodes: `(type, inputs)` of the nodes between the loader and the sampler.
        cfg, steps: of the sampler.
        loader, scheduler: inputs of Klein Loader and Klein Scheduler other than their defaults.
        static: the sigmas are those of ComfyUI's scheduler `simple`.
        source: the run begins in the picture of `SOURCE`.
        prompts, seed, negative: of the pictures.
    """

    label: str
    nodes: tuple[Node, ...] = ()
    cfg: float = 4.0
    steps: int = STEPS
    loader: dict = {}
    scheduler: dict = {}
    static: bool = False
    source: bool = False
    prompts: tuple[str, ...] = PROMPTS
    seed: int = SEED
    negative: str = ""


def klein_cfg(schedule: str, **inputs: Any) -> Node:
    return "KleinKitCFG", {
        "schedule": schedule,
        "unguided": "conditional",
        **{f"schedule.{name}": value for name, value in inputs.items()},
    }


def renorm(mode: str) -> Node:
    return "KleinKitRenorm", {"mode": mode, "strength": 1.0, "shrink_only": True}


def adaptive(start: float) -> Node:
    return "KleinKitAdaptiveGuidance", {"threshold": 0.99, "start": start, "every": 0}


def nag(alpha: float) -> Node:
    return "KleinKitNAG", {"scale": 5.0, "tau": 2.5, "alpha": alpha, "start": 0.0, "end": 1.0}


def apg(space: str) -> Node:
    # The limit of the paper for a latent of nano's size.
    return "KleinKitAPG", {"eta": 0.0, "norm_threshold": 5.0, "momentum": -0.5, "space": space, "start": 0.0, "scale": 0.0}


def auto(layers: str, **others: Any) -> Node:
    inputs = {"scale": 2.0, "double_layers": "", "single_layers": layers, "prompt": "positive", "start": 0.0, "end": 1.0}
    return "KleinKitAutoGuidance", inputs | others


def momentum(alpha: float) -> Node:
    return "KleinKitMomentum", {"alpha": alpha, "beta": 0.6, "start": 0.0, "end": 1.0}


def preset(name: str) -> Node:
    return "KleinKitGuidance", {"preset": name}


SKIP_LAYER = (
    "KleinKitSkipLayerGuidance",
    {
        "scale": 3.0,
        "double_layers": "",
        "single_layers": NANO_LAYER,
        "start": 0.0,
        "end": 0.5,
        "mode": "block",
        "rescale": 0.0,
    },
)
SEG = (
    "KleinKitSEG",
    {"scale": 3.0, "double_layers": "", "single_layers": NANO_LAYER, "start": 0.0, "end": 0.5, "blur_sigma": 10000.0},
)
ZERO_STAR = "KleinKitCFGZeroStar", {"optimized_scale": True, "zero_init_steps": 1}
GUARDED = {"diffusion_model": DISTILLED}
UNGUARDED = {**GUARDED, "distilled_cfg": "allow"}


def image_cfg(scale: float) -> Node:
    return "KleinKitImageCFG", {"image_scale": scale}


def half(mode: str) -> dict[str, Any]:
    return {"denoise": 0.5, "denoise_mode": mode}


PICTURES = {
    "KleinKitLoader": (
        Row("distilled, cfg 5, ignore: {passes} passes", cfg=5, steps=4, loader=GUARDED),
        Row("distilled, cfg 5, allow: 8 passes", cfg=5, steps=4, loader=UNGUARDED),
    ),
    "KleinKitScheduler": (
        Row("the picture to begin with", cfg=BEST, prompts=(SOURCE,), seed=SOURCE_SEED),
        Row("denoise 0.5, ksampler", cfg=BEST, scheduler=half("ksampler"), source=True),
        Row("denoise 0.5, sigma", cfg=BEST, scheduler=half("sigma"), source=True),
    ),
    "KleinKitDynamicShift": (
        Row("6 steps, ComfyUI: 2.02", cfg=BEST, steps=6, static=True),
        Row("6 steps, flux2: mu 1.93", (("KleinKitDynamicShift", {"shift": "flux2"}),), BEST, 6, static=True),
    ),
    "KleinKitCFG": (
        Row("constant, cfg 2: 40 passes", cfg=BEST, prompts=STARS),
        Row("interval 0 to 0.5: {passes} passes", (klein_cfg("interval", start=0.0, end=0.5),), BEST, prompts=STARS),
        Row("skip early 0.5: {passes} passes", (klein_cfg("skip", mode="early", guided_ratio=0.5),), BEST, prompts=STARS),
        Row("cfg 1: 20 passes", cfg=1, prompts=STARS),
    ),
    "KleinKitCFGZeroStar": (
        Row("cfg 8: 40 passes", cfg=8),
        Row("cfg 8, CFG-Zero*: {passes} passes", (ZERO_STAR,), cfg=8),
    ),
    "KleinKitSkipLayerGuidance": (
        Row("cfg 1", cfg=1),
        Row("cfg 1, skip-layer", (SKIP_LAYER,), cfg=1),
        Row("cfg 8", cfg=8),
        Row("cfg 8, skip-layer", (SKIP_LAYER,), cfg=8),
    ),
    "KleinKitSEG": (
        Row("cfg 1: 20 passes", cfg=1),
        Row("cfg 1, SEG: {passes} passes", (SEG,), cfg=1),
        Row("cfg 8", cfg=8),
        Row("cfg 8, SEG", (SEG,), cfg=8),
    ),
    "KleinKitRenorm": (
        Row("cfg 6", cfg=6),
        Row("cfg 6, Renorm global", (renorm("global"),), cfg=6),
        Row("cfg 6, Renorm token", (renorm("token"),), cfg=6),
    ),
    "KleinKitSlerpCFG": (
        Row("cfg 8", cfg=8),
        Row("cfg 8, Slerp", (("KleinKitSlerpCFG", {}),), cfg=8),
        Row("cfg 20, Slerp", (("KleinKitSlerpCFG", {}),), cfg=20),
        Row("cfg 20, Slerp, cap 20", (("KleinKitSlerpCFG", {"cap": 20.0}),), cfg=20),
    ),
    "KleinKitBaseUncond": (
        Row("distilled, cfg 3", cfg=3, steps=4, loader=UNGUARDED),
        Row(
            "distilled, cfg 3, Base Uncond",
            (("KleinKitBaseUncond", {"base_model": ["base", 0]}),),
            cfg=3,
            steps=4,
            loader=UNGUARDED,
        ),
    ),
    "KleinKitAutoGuidance": (
        Row("cfg 1: 20 passes", cfg=1),
        Row("cfg 1, without block 2: {passes} passes", (auto(NANO_LAYER, end=0.5),), cfg=1),
        Row("distilled, cfg 1: 4 passes", cfg=1, steps=4, loader=UNGUARDED),
        Row("distilled, weak base: {passes} passes", (auto("", scale=1.2, weak_model=["weak", 0]),), 1, 4, UNGUARDED),
    ),
    "KleinKitMomentum": (
        Row("cfg 1: 20 passes", cfg=1),
        Row("cfg 1, alpha 0.5: {passes} passes", (momentum(0.5),), cfg=1),
        Row("cfg 1, alpha 1.5", (momentum(1.5),), cfg=1),
        Row("distilled, cfg 1: 4 passes", cfg=1, steps=4, loader=GUARDED),
        Row("distilled, alpha 0.5: {passes} passes", (momentum(0.5),), cfg=1, steps=4, loader=GUARDED),
    ),
    "KleinKitNAG": (
        Row("distilled, cfg 1: 4 passes", cfg=1, steps=4, loader=GUARDED, negative=AGAINST),
        Row("distilled, NAG: {passes} passes", (nag(0.25),), cfg=1, steps=4, loader=GUARDED, negative=AGAINST),
        Row("distilled, NAG, alpha 0.5", (nag(0.5),), cfg=1, steps=4, loader=GUARDED, negative=AGAINST),
    ),
    "KleinKitAPG": (
        Row("cfg 10", cfg=10),
        Row("cfg 10, APG denoised", (apg("denoised"),), cfg=10),
        Row("cfg 10, APG velocity", (apg("velocity"),), cfg=10),
    ),
    "KleinKitMAMBOG": (
        Row("cfg 10", cfg=10),
        Row("cfg 10, MAMBO-G alpha 8", (("KleinKitMAMBOG", {"alpha": 8.0}),), cfg=10),
        Row("cfg 20, MAMBO-G alpha 8", (("KleinKitMAMBOG", {"alpha": 8.0}),), cfg=20),
    ),
    "KleinKitFDG": (
        Row("cfg 10", cfg=10),
        Row("cfg 10, FDG 1, 0.44", (("KleinKitFDG", {"shares": "1, 0.44"}),), cfg=10),
        Row("cfg 10, FDG 0.44, 1", (("KleinKitFDG", {"shares": "0.44, 1"}),), cfg=10),
    ),
    "KleinKitTCFG": (
        Row("cfg 8", cfg=8),
        Row("cfg 8, TCFG", (("KleinKitTCFG", {}),), cfg=8),
    ),
    "KleinKitGuidance": (
        Row("off, cfg 4: 40 passes"),
        Row("faster: {passes} passes", (preset("faster"),)),
        Row("off, cfg 6", cfg=6),
        Row("high_cfg, cfg 6", (preset("high_cfg"),), cfg=6),
    ),
    "KleinKitAdaptiveGuidance": (
        Row("cfg 2: 40 passes", cfg=BEST, prompts=STARS),
        Row("threshold 0.99: {passes} passes", (adaptive(0.0),), BEST, prompts=STARS),
        Row("0.99, start 0.7: {passes} passes", (adaptive(0.7),), BEST, prompts=STARS),
    ),
}


def loader(**inputs: Any) -> dict[str, Any]:
    defaults = {
        "diffusion_model": BASE,
        "text_encoder": "auto",
        "vae": "auto",
        "variant": "auto",
        "weight_dtype": "default",
        "distilled_cfg": "ignore",
        "trim_text_encoder": True,
    }
    return {"class_type": "KleinKitLoader", "inputs": defaults | inputs}


def scheduler(steps: int, **inputs: Any) -> dict[str, Any]:
    defaults = {
        "steps": steps,
        "width": NANO_PIXELS,
        "height": NANO_PIXELS,
        "denoise": 1.0,
        "denoise_mode": "ksampler",
        "shift": "flux2",
        "spacing": "uniform",
        "terminal": 0.0,
    }
    return {"class_type": "KleinKitScheduler", "inputs": defaults | inputs}


def sampler(
    model: str, cfg: float, positive: str, sigmas: str, latent: str, seed: int, referring: str | None = None
) -> dict[str, Any]:
    """Args: referring: the node whose first two outputs are both prompts with references; None leaves them as they are."""
    return {
        "class_type": "SamplerCustom",
        "inputs": {
            "model": [model, 0],
            "add_noise": True,
            "noise_seed": seed,
            "cfg": cfg,
            "positive": [referring or positive, 0],
            "negative": [referring, 1] if referring else ["negative", 0],
            "sampler": ["euler", 0],
            "sigmas": [sigmas, 0],
            "latent_image": [latent, 0],
        },
    }


def prompt_of(row: Row, text: str, shown: Sequence[str] = ()) -> dict[str, Any]:
    """One picture of a row, in ComfyUI's API format; `shown` are names of pictures in the input folder, its references."""
    empty = {"width": NANO_PIXELS, "height": NANO_PIXELS, "batch_size": 1}
    prompt = {
        "loader": loader(**row.loader),
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": text}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": row.negative}},
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "empty": {"class_type": "EmptyFlux2LatentImage", "inputs": empty},
        "sigmas": scheduler(row.steps, **row.scheduler),
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["loader", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "help"}},
    }
    model = "loader"
    for number, (kind, inputs) in enumerate(row.nodes):
        prompt[f"rule{number}"] = {"class_type": kind, "inputs": {"model": [model, 0], **inputs}}
        model = f"rule{number}"
        if kind == "KleinKitBaseUncond":
            prompt["base"] = loader()
        if "weak_model" in inputs:
            prompt["weak"] = loader()
    if row.static:
        prompt["sigmas"] = {
            "class_type": "BasicScheduler",
            "inputs": {"model": [model, 0], "scheduler": "simple", "steps": row.steps, "denoise": 1.0},
        }
    latent = "empty"
    if row.source:
        prompt["other"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": SOURCE}}
        prompt["all"] = scheduler(STEPS)
        prompt["source"] = sampler("loader", row.cfg, "other", "all", "empty", SOURCE_SEED)
        latent = "source"
    if shown:
        loaded = {f"images.image_{number}": [f"shown{number}", 0] for number, _ in enumerate(shown, 1)}
        for number, name in enumerate(shown, 1):
            prompt[f"shown{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        both = {"positive": ["positive", 0], "negative": ["negative", 0], "vae": ["loader", 2]}
        choices = {"size": "keep", "latent_from": "first picture"}
        prompt["references"] = {"class_type": "KleinKitReferences", "inputs": both | loaded | choices}
    prompt["sample"] = sampler(model, row.cfg, "positive", "sigmas", latent, row.seed, "references" if shown else None)
    return prompt


def scene(sentence: str) -> Image.Image:
    """The true picture of a sentence of the world, as 16×16 cells."""
    [picture] = from_signed(world.draw([next(one for one in np.ndindex(world.COUNTS) if world.prompt(one) == sentence)]))
    return Image.fromarray(np.uint8(picture * 255 + 0.5))


def put(server: api.Server, sentence: str) -> str:
    """Put the true picture of a sentence into ComfyUI's input folder; its name there."""
    name = f"{sentence}.png"
    scene(sentence).resize((NANO_PIXELS, NANO_PIXELS), Image.Resampling.NEAREST).save(server.base / "input" / name)
    return name


def drawn(server: api.Server, row: Row, text: str, shown: Sequence[str] = ()) -> tuple[Image.Image, str | None]:
    """`(picture as 16×16 cells, passes)`; passes is None where the log names none."""
    outcome = api.queue(server, prompt_of(row, text, shown), timeout=None)
    if outcome.error:
        raise RuntimeError("\n".join(api.sentences(outcome.error)))
    [path] = api.pictures(server, outcome)
    [small] = cells(np.asarray(Image.open(path).convert("RGB"))[None] / 255)
    passes = re.findall(r"KleinKit: \d+ steps, (\d+) passes", outcome.log)
    return Image.fromarray(np.uint8(small * 255 + 0.5)), passes[-1] if passes else None


def strip(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """A sheet of rows `(label, pictures)`."""
    side = NANO_PIXELS // 8 * CELL
    columns = max(len(pictures) for _, pictures in rows)
    size = columns * (side + GAP) - GAP, len(rows) * (LABEL + side) + (len(rows) - 1) * GAP // 2
    sheet = Image.new("RGB", size, PAPER)
    longest = max(ImageFont.load_default(size=FONT).getlength(label) for label, _ in rows)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT * min(1, (size[0] - 20) / longest))
    y = 0
    for label, pictures in rows:
        pen.text((2, y + LABEL // 2), label, INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (column * (side + GAP), y + LABEL))
        y += LABEL + side + GAP // 2
    return sheet


def strip_of(server: api.Server, name: str) -> Image.Image:
    """The sheet of a name of `PICTURES`."""
    rows = []
    for row in PICTURES[name]:
        made = [drawn(server, row, text) for text in row.prompts]
        passes = ", ".join(dict.fromkeys(count for _, count in made if count))
        rows.append((row.label.format(passes=passes), [picture for picture, _ in made]))
        print(f"{name}: {rows[-1][0]} ({[count for _, count in made]})", flush=True)
    return strip(rows)


def last_of(server: api.Server, workflow: str, width: int) -> Image.Image:
    """The last picture of a workflow, no wider than `width`."""
    picture = run(server, workflow)[-1]
    picture.thumbnail((width, picture.height))
    return picture


def probe(server: api.Server) -> Image.Image:
    """Klein Probe in the editor after a run."""
    with chromium() as browser:
        page, _ = open_editor(browser, server, Comfy__VueNodes__Enabled=True)
        page.evaluate("graph => app.loadGraphData(graph)", for_nano(read(PROBED)))
        node = page.evaluate(
            """async () => {
            const node = app.graph.nodes.find((node) => node.type === "KleinKitProbe")
            app.canvas.ds.scale = 1.5
            app.canvas.centerOnNode(node)
            const ended = new Promise((resolve) => app.api.addEventListener("execution_success", resolve))
            await app.queuePrompt(0)
            await ended
            return node.id
        }"""
        )
        page.get_by_text("Job completed").wait_for(state="hidden")
        page.locator(".kleinkit-figure path.line").first.wait_for(state="attached")
        picture = page.locator(f'[data-node-id="{node}"]').screenshot()
    shown = Image.open(io.BytesIO(picture)).convert("RGB")
    return shown.resize((WIDTH, round(shown.height * WIDTH / shown.width)), Image.Resampling.LANCZOS)


def inpainted(server: api.Server) -> Image.Image:
    """A picture, the part around a mask, what is made of it, and the whole."""
    prompt = prompt_of(Row(""), INPAINTED)
    left, top, right, bottom = MASKED
    box = {"value": 1.0, "width": right - left, "height": bottom - top}
    inpaint = {
        "other": ("CLIPTextEncode", {"clip": ["loader", 1], "text": SOURCE}),
        "all": ("KleinKitScheduler", scheduler(STEPS)["inputs"]),
        "source": ("SamplerCustom", sampler("loader", BEST, "other", "all", "empty", SOURCE_SEED)["inputs"]),
        "picture": ("VAEDecode", {"samples": ["source", 0], "vae": ["loader", 2]}),
        "black": ("SolidMask", {"value": 0.0, "width": NANO_PIXELS, "height": NANO_PIXELS}),
        "white": ("SolidMask", box),
        "mask": (
            "MaskComposite",
            {"destination": ["black", 0], "source": ["white", 0], "x": left, "y": top, "operation": "add"},
        ),
        "crop": ("KleinKitInpaintCrop", {"image": ["picture", 0], "mask": ["mask", 0], "padding": 8}),
        "part": ("VAEEncode", {"pixels": ["crop", 0], "vae": ["loader", 2]}),
        "masked": ("SetLatentNoiseMask", {"samples": ["part", 0], "mask": ["crop", 1]}),
        "stitch": ("KleinKitInpaintStitch", {"image": ["decode", 0], "crop": ["crop", 2]}),
    }
    prompt |= {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in inpaint.items()}
    prompt["sample"] = sampler("loader", BEST, "positive", "sigmas", "masked", SEED)
    del prompt["save"]
    pictures = []
    for shown in ("picture", "crop", "decode", "stitch"):
        prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": [shown, 0], "filename_prefix": "help"}}
        outcome = api.queue(server, prompt, timeout=None)
        if outcome.error:
            raise RuntimeError("\n".join(api.sentences(outcome.error)))
        [path] = api.pictures(server, outcome)
        pictures.append(Image.open(path).convert("RGB"))
    ImageDraw.Draw(pictures[0]).rectangle((left, top, right - 1, bottom - 1), outline=PAPER)
    return strip([("the mask, the part", pictures[:2]), ("made anew, put back", pictures[2:])])


def edited(server: api.Server, *rows: Row, pictures: tuple[int, ...] = (1, 2)) -> Image.Image:
    """The edits with so many pictures: what is asked, the pictures, and the result of each row."""
    sheet = []
    for shown, ask in (edit for edit in EDITS if len(edit[0]) in pictures):
        made = [drawn(server, row, ask, [put(server, one) for one in shown])[0] for row in rows]
        sheet.append((ask, [*map(scene, shown), *made]))
    return strip(sheet)


# Of other things than strips.
OTHERS = {
    "KleinKitImageCFG-edits": lambda server: edited(
        server, *(Row("", (image_cfg(s),), BEST) for s in (1.0, 4.0, 0.0)), pictures=(1,)
    ),
    "KleinKitReferences-edits": lambda server: edited(server, Row("", cfg=1, steps=4, loader=GUARDED)),
    "KleinKitInpaintCrop": inpainted,
    "KleinKitContactSheet": lambda server: last_of(server, "15 Klein Guidance Study", WIDTH),
    # The first to run a workflow: what ComfyUI keeps is not drawn.
    "KleinKitProbe": probe,
    "KleinKitReport": lambda server: last_of(server, PROBED, REPORT_WIDTH),
}


def main(arguments: list[str]) -> int:
    """Args: names of pictures to make; all when there are none."""
    with (
        tempfile.TemporaryDirectory(prefix="kleinkit-", ignore_cleanup_errors=True) as base,
        with_comfyui(Path(base)) as server,
    ):
        for name in arguments or (*PICTURES, *OTHERS):
            save(OTHERS[name](server) if name in OTHERS else strip_of(server, name), name)
    return 0
