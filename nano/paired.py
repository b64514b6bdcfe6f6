"""Settings compared over the same prompts and noise, in ComfyUI's own sampling: `python tasks.py nano --study`.

The pictures of each row are kept in `.nano/rows`, a file for every block of prompts, so a run that was stopped goes on there.
The results are kept in `nano/results`, with the pictures of the rows that others are compared with, so a new row runs alone.
"""

import functools
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from scipy.stats import bootstrap
from tqdm import tqdm

from . import metrics, world
from .build import digest
from .in_comfyui import PADDING, sampled, thinned
from .prompts import encode
from .train import CHANNELS, STATE, TOKENS, pictures, sigmas_of

RESULTS = Path(__file__).resolve().parent / "results"
# Pictures of rows that others are compared with, at the study's whole size: a new row runs without them.
SHEETS, WHOLE, COLUMNS = RESULTS / "pictures", (256, 3), 32
APART, TOGETHER = "seeds (rows columns) h w c", "(seeds rows h) (columns w) c"
SEED, BLOCK, AT_ONCE = 0, 64, 16
RESAMPLES = 999
# Of a normal distribution, 95% lie within so many standard errors.
NORMAL = 1.96
STRONG = 8
SECOND = {"double_layers": "", "single_layers": "2", "start": 0.0}
# What “as good” means: at most so many points fewer right, and so many times the distance to true pictures.
POINTS, RATIO = 1.0, 1.02

Node = tuple[str, dict[str, Any]]


class Row(NamedTuple):
    """A model, the nodes between the loader and the sampler, the sampler's cfg, and its sigmas.

    `shift`: `dynamic` (KleinKit's) or `static` (ComfyUI's scheduler `simple`).
    """

    nodes: tuple[Node, ...] = ()
    cfg: float = 4
    role: str = "base"
    steps: int = 20
    shift: str = "dynamic"


def klein_cfg(unguided: str, schedule: str = "constant", **inputs: Any) -> Node:
    return "KleinKitCFG", {"schedule": {"schedule": schedule, **inputs}, "unguided": unguided}


def scheduled(schedule: str, unguided: str = "conditional", cfg: float = 4, **inputs: Any) -> Row:
    return Row((klein_cfg(unguided, schedule, **inputs),), cfg)


def skip(mode: str, ratio: float, unguided: str = "conditional", cfg: float = 4) -> Row:
    return scheduled("skip", unguided, cfg, mode=mode, guided_ratio=ratio)


def every(steps: int, unguided: str, **schedule: Any) -> Row:
    ends = "KleinKitAdaptiveGuidance", {"threshold": -1.0, "every": steps}
    return Row((klein_cfg(unguided, **schedule), ends))


def rule(node: str, cfg: float = STRONG, **inputs: Any) -> Row:
    return Row(((node, inputs),), cfg, steps=10)


def apg(space: str) -> Row:
    # The limit of the paper for a latent of nano's size.
    return rule("KleinKitAPG", eta=0.0, norm_threshold=5.0, momentum=-0.5, space=space, start=0.0, scale=0.0)


def nag(scale: float) -> Row:
    return rule("KleinKitNAG", 1, scale=scale, tau=2.5, alpha=0.25, start=0.0, end=1.0)


def without_negative(cfg: float) -> dict[str, Row]:
    """The rules that also act at cfg 1."""
    skip_layer = {"scale": 3.0, **SECOND, "end": 0.5, "rescale": 0.0}
    return {
        "skip-layer, single 2": rule("KleinKitSkipLayerGuidance", cfg, mode="block", **skip_layer),
        "PAG, single 2": rule("KleinKitSkipLayerGuidance", cfg, mode="attention", **skip_layer),
        "SEG, single 2": rule("KleinKitSEG", cfg, scale=3.0, **SECOND, end=0.5, blur_sigma=10000.0),
        "AutoGuidance, single 2": rule("KleinKitAutoGuidance", cfg, scale=2.0, **SECOND, prompt="positive", end=1.0),
        "Momentum Guidance": rule("KleinKitMomentum", cfg, alpha=0.5, beta=0.6, start=0.0, end=1.0),
    }


def distilled(**rows: Row) -> dict[str, Row]:
    return {title: row._replace(role="distilled", steps=4) for title, row in rows.items()}


TABLES = {
    "cfg": {
        **{f"nano-base, 20 steps, cfg {cfg:g}": Row(cfg=cfg) for cfg in (4, 2, 1, 1.5, 3, 6, 8)},
        **distilled(**{"nano-distilled, 4 steps, cfg 1": Row(cfg=1)}),
    },
    "steps": {
        title: Row(steps=steps, shift=shift)
        for steps in (20, 10, 4)
        for title, shift in ((f"{steps} steps", "dynamic"), (f"{steps} steps: static shift", "static"))
    },
    "fewer_passes": {
        "every step": Row(),
        "every step, cfg 4 to 1": scheduled("curve", scales="4, 1"),
        "every 4, reuse, cfg 4 to 1": every(4, "reuse", schedule="curve", scales="4, 1"),
        "every 4, reuse, diminishing 0.3": every(4, "reuse", schedule="diminishing", cutoff=0.3),
        "every 4, reuse": every(4, "reuse"),
        "every 4, extrapolate": every(4, "extrapolate"),
        "interval 0 to 0.5": scheduled("interval", start=0.0, end=0.5),
        "interval 0.2 to 0.8": scheduled("interval", start=0.2, end=0.8),
        "alternate 0.5": skip("alternate", 0.5),
        "adaptive 0.99": Row((("KleinKitAdaptiveGuidance", {"threshold": 0.99}),)),
        "middle 0.2": skip("middle", 0.2),
        "middle 0.2, reuse, cfg 2.5": skip("middle", 0.2, "reuse", 2.5),
        "late 0.2": skip("late", 0.2),
    },
    # At a cfg that is too high for plain CFG.
    "guiders": {
        "CFG": Row(cfg=STRONG, steps=10),
        "CFG-Zero*": rule("KleinKitCFGZeroStar", optimized_scale=True, zero_init_steps=0),
        "TCFG": rule("KleinKitTCFG"),
        **{f"APG, {space}": apg(space) for space in ("denoised", "velocity")},
        "MAMBO-G": rule("KleinKitMAMBOG", alpha=8.0),
        "FDG": rule("KleinKitFDG", shares="1, 0.44"),
        "slerp": rule("KleinKitSlerpCFG"),
        "slerp, cap 20": rule("KleinKitSlerpCFG", cap=20.0),
        "renorm, global": rule("KleinKitRenorm", mode="global", strength=1.0, shrink_only=True),
        **without_negative(STRONG),
    },
    # The rules that need a negative do nothing here: the model runs at cfg 1.
    "distilled": distilled(
        **{
            "cfg 1": Row(cfg=1),
            "cfg 5, not guarded": Row(cfg=5),
            "NAG": nag(5.0),
            "NAG, scale 2": nag(2.0),
            **without_negative(1),
            "Momentum Guidance, alpha 0.1": rule("KleinKitMomentum", 1, alpha=0.1, beta=0.6, start=0.0, end=1.0),
        }
    ),
}


def beside(rows, title):
    """The title of the row that one is compared with: `X: …` with `X`, others with the first of their table."""
    other = title.rpartition(": ")[0]
    return other if other in rows else next(iter(rows))


def scenes_of(count):
    """Held-out scenes [count, 5] in one order for all tables, and again from the first when there are no more."""
    unknown = world.scenes()[1]
    order = np.random.RandomState(SEED).permutation(len(unknown))
    return unknown[order[np.arange(count) % len(unknown)]]


def random_of(seed, block):
    """Noise and true pictures of a block of prompts, from a generator of their own."""
    return np.random.RandomState([SEED, seed, block])


def noise_of(seed, block, count):
    made = random_of(seed, block).standard_normal((count, CHANNELS, TOKENS, TOKENS))
    return torch.from_numpy(made.astype(np.float32))


def true_of(seed, block, scenes):
    return metrics.from_signed(world.draw(scenes, random_of(seed, block)))


def with_nodes(model, wired):
    """A model behind nodes, in the order in which they are wired; with little padding, but for Klein NAG, which joins texts."""
    if all(node != "KleinKitNAG" for node, _ in wired):
        model = thinned(model)
    nodes = importlib.import_module("..nodes.guidance", __package__)
    for node, inputs in wired:
        model = getattr(nodes, node).execute(model, **inputs)[0]
    return model


def file_name(row, *size):
    """The name of the files of a row's pictures."""
    return hashlib.sha1(json.dumps([digest(row.role), PADDING, row, *size]).encode()).hexdigest()[:16]


def in_bytes(cells):
    return np.rint(255 * cells).astype(np.uint8)


def to_sheet(cells):
    """Pictures [seeds, prompts, 16, 16, 3], 0 to 1, in 32 columns; the prompts of each seed begin a line."""
    return Image.fromarray(in_bytes(rearrange(cells, f"{APART} -> {TOGETHER}", columns=COLUMNS)))


def from_sheet(path, seeds):
    """The pictures of `to_sheet`."""
    with Image.open(path) as image:
        return rearrange(np.asarray(image) / 255, f"{TOGETHER} -> {APART}", columns=COLUMNS, seeds=seeds, h=world.CELLS)


def keep(path, **arrays):
    """Write arrays to an .npz file, which appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


class Runner:
    """Draws rows, in the real ComfyUI.

    Args:
        load: `role → model` without nodes.
        text_encoder: path of the nano text encoder.
    """

    def __init__(self, load, text_encoder, prompts, seeds):
        self.load, self.text_encoder = functools.cache(load), text_encoder
        self.scenes, self.seeds, self.texts = scenes_of(prompts), seeds, {}
        self.blocks = range(0, prompts, BLOCK)

    def file(self, row, seed, start):
        return STATE / "rows" / file_name(row, len(self.scenes[start : start + BLOCK])) / f"{seed}-{start}.npz"

    def sheet(self, row):
        return SHEETS / f"{file_name(row, len(self.scenes), self.seeds)}.png"

    def missing(self, row):
        return [
            (seed, start) for seed in range(self.seeds) for start in self.blocks if not self.file(row, seed, start).exists()
        ]

    def text(self, start):
        if start not in self.texts:
            sentences = [*map(world.prompt, self.scenes[start : start + BLOCK]), ""]
            *texts, empty = torch.cat(list(encode(self.text_encoder, sentences)))
            self.texts[start] = torch.stack(texts), empty
        return self.texts[start]

    def sigmas(self, row):
        if row.shift == "dynamic":
            return sigmas_of(row.steps)
        sampling = self.load(row.role).get_model_object("model_sampling")
        return importlib.import_module("comfy.samplers").calculate_sigmas(sampling, "simple", row.steps)

    def draw(self, row, progress):
        """Draw what is missing of a row."""
        model = with_nodes(self.load(row.role), row.nodes)
        for seed, start in self.missing(row):
            texts, empty = self.text(start)
            noise = noise_of(seed, start, len(texts))
            latents, passes = sampled(model, noise, texts, empty, self.sigmas(row), row.cfg, AT_ONCE)
            progress.update(len(texts))
            cells = metrics.from_signed(pictures(latents.flatten(2).transpose(1, 2)))
            keep(self.file(row, seed, start), cells=in_bytes(cells), passes=passes)

    def drawn(self, row):
        """`(cells [seeds, prompts, 16, 16, 3], passes a picture)` of a row."""
        found = [[np.load(self.file(row, seed, start)) for start in self.blocks] for seed in range(self.seeds)]
        cells = np.stack([np.concatenate([one["cells"] for one in blocks]) for blocks in found]) / 255
        passes = sum(float(one["passes"]) for blocks in found for one in blocks)
        return cells, passes / (len(self.scenes) * self.seeds)

    def beside(self, row, progress):
        """The pictures of a row that others are compared with: of its sheet, or as `drawn`, which then become one."""
        path = self.sheet(row)
        if path.exists():
            return from_sheet(path, self.seeds)
        self.draw(row, progress)
        cells, _ = self.drawn(row)
        if (len(self.scenes), self.seeds) == WHOLE:
            path.parent.mkdir(exist_ok=True)
            to_sheet(cells).save(path)
        return cells

    @functools.cached_property
    def true(self):
        """True pictures of the same prompts, as `drawn`."""
        return np.stack(
            [
                np.concatenate([true_of(seed, start, self.scenes[start : start + BLOCK]) for start in self.blocks])
                for seed in range(self.seeds)
            ]
        )


def interval_of(statistic, scenes):
    """A statistic of pictures with its 95% interval, by bootstrap over the prompts: all pictures of one stay together.

    The interval lies around the value itself, as wide as the bootstrap's standard error says: a distance between sets grows
    with the doubles that a resample has, so its percentiles lie beside it.

    Args:
        statistic: `(indices of prompts) → float`.
        scenes: [N, 5], of each index.
    Returns:
        `[value, low, high]`.
    """
    _, of = np.unique(scenes, axis=0, return_inverse=True)
    of = of.ravel()
    groups = [np.flatnonzero(of == group) for group in range(of.max() + 1)]
    error = bootstrap(
        (np.arange(len(groups)),),
        lambda chosen: statistic(np.concatenate([groups[i] for i in chosen])),
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).standard_error
    value = float(statistic(np.arange(len(scenes))))
    return [value, value - NORMAL * float(error), value + NORMAL * float(error)]


def compare(cells, against, true, scenes):
    """What a row's pictures are beside another's.

    Args:
        cells, against, true: [seeds, prompts, 16, 16, 3].
        scenes: [prompts, 5].
    Returns:
        `right` (of each attribute in `attributes`) and `distance` of the row, and with intervals `points`, right more than the
        other's in percent, and `ratio`, its distance over the other's; `[value, low, high]`.
    """
    seeds = len(cells)
    seen = [np.stack([metrics.right(one, scenes) for one in both]) for both in (cells, against)]
    rights = [one.mean((0, 2)) for one in seen]  # [prompts]
    # [directions, seeds, prompts]: sorted along the last axis in one go.
    projected = [
        np.ascontiguousarray(metrics.projections(one.reshape(-1, *one.shape[2:])).T, np.float32).reshape(-1, seeds, len(scenes))
        for one in (cells, against, true)
    ]

    def ratio(chosen):
        ours, theirs, real = (np.sort(one[:, :, chosen].reshape(len(one), -1), axis=1) for one in projected)
        return metrics.apart(ours, real) / metrics.apart(theirs, real)

    ours, real = (np.sort(one.reshape(len(one), -1), axis=1) for one in (projected[0], projected[2]))
    return {
        "right": float(rights[0].mean()),
        "attributes": dict(zip(metrics.SCORED, seen[0].mean((0, 1)).tolist(), strict=True)),
        "distance": metrics.apart(ours, real),
        "points": interval_of(lambda chosen: 100 * float((rights[0] - rights[1])[chosen].mean()), scenes),
        "ratio": interval_of(ratio, scenes),
    }


def verdict(found):
    """Whether a row is as good as the one that it is compared with: `yes` and `no` where the intervals say so."""
    points, ratio = found["points"], found["ratio"]
    if points[1] >= -POINTS and ratio[2] <= RATIO:
        return "yes"
    return "no" if points[2] < -POINTS or ratio[1] > RATIO else "open"


def is_of(found, row):
    """Whether a result is of the weights that a row's model has today."""
    return found["weights"] == digest(row.role)


def results_of(name):
    """What a file of results holds: `{"prompts × seeds": {row: result}}`, of edits `{table: {row: result}}`."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def run(tables, load, text_encoder, prompts, seeds, rows=()):
    """Draw and compare rows of tables; each result is written at once.

    Args:
        tables: names of `TABLES`.
        load: `role → model`.
        rows: their names; all when there are none.
    """
    size, runner = f"{prompts} × {seeds}", Runner(load, text_encoder, prompts, seeds)
    todo = []
    for name in tables:
        known = results_of(name).get(size, {})
        todo += [
            (name, title, TABLES[name][title], TABLES[name][beside(TABLES[name], title)])
            for title in TABLES[name]
            if (not rows or title in rows) and (title not in known or not is_of(known[title], TABLES[name][title]))
        ]
    wanted = [row for _, _, row, _ in todo] + [other for *_, other in todo if not runner.sheet(other).exists()]
    wanted = {repr(row): row for row in wanted}.values()
    blocks = sum(len(runner.missing(row)) for row in wanted)
    with tqdm(total=blocks * min(BLOCK, prompts), unit="picture") as progress:
        for name, title, row, other in todo:
            against = runner.beside(other, progress)
            runner.draw(row, progress)
            cells, passes = runner.drawn(row)
            found = compare(cells, against, runner.true, runner.scenes)
            write(name, size, {title: found | {"passes": passes, "row": row, "weights": digest(row.role)}})
            progress.write(
                f"{name}: {title}: {100 * found['right']:.1f}% right ({found['points'][0]:+.2f} points, "
                f"{found['points'][1]:+.2f} to {found['points'][2]:+.2f}), distance × {found['ratio'][0]:.3f} "
                f"({found['ratio'][1]:.3f} to {found['ratio'][2]:.3f}), {passes:.4g} passes: {verdict(found)}"
            )


def write(name, size, known):
    """Write rows of one size, or of one table of edits; what another process has written meanwhile stays."""
    RESULTS.mkdir(exist_ok=True)
    results = results_of(name)
    results[size] = {**results.get(size, {}), **known}
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
