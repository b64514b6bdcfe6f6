"""What guidance does to edits whose truth is known: `python tasks.py nano --study --table edits`.

Each row runs the same held-out edits from the same noise, in the real ComfyUI. What became of each edit is kept in
`nano/results/edit_outcomes.json`, so a run that was stopped goes on and a new row runs alone; results are in `edits.json`.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..scheduler.schedule import Schedule, make
from . import edits, metrics, world
from .build import digest
from .in_comfyui import sampled
from .paired import Node, apg, beside, every, file_name, interval_of, noise_of, results_of, scheduled, with_nodes, write
from .prompts import encode
from .train import TOKENS, latents, pictures

# The names of the files of results, and of what became of each edit.
RESULTS, OUTCOMES = "edits", "edit_outcomes"
SEED, COUNT, AT_ONCE = 5, 256, 8
# Pictures of two edits have one or two references: those of a batch have as many.
SIDE = world.CELLS * world.CELL


class Row(NamedTuple):
    """One setting.

    `shown`: which prompts see the references, `both`, `positive` or `none`. `says`: what the prompt is, `edit` or `scene`, the
    whole result. `start`: from which share of noise the first picture's latent begins, and in which of Klein Scheduler's modes.
    `masked`: only the part that changes is drawn.
    """

    nodes: tuple[Node, ...] = ()
    cfg: float = 2
    role: str = "base"
    steps: int = 20
    shown: str = "both"
    says: str = "edit"
    start: tuple[str, float] = ("strength", 1.0)
    masked: bool = False


def image_cfg(scale, cfg):
    return Row((("KleinKitImageCFG", {"image_scale": scale}),), cfg)


IMAGE_SCALES, CFGS = (0.0, 1.5, 2.0, 4.0), (2, 1, 4)
REUSE = every(4, "reuse", schedule="diminishing", cutoff=0.3).nodes
TABLES = {
    "cfg": {
        **{f"base, cfg {cfg}": Row(cfg=cfg) for cfg in (2, 1.5, 4, 1)},
        "base, cfg 2: 10 steps": Row(steps=10),
        "distilled, 4 steps, cfg 1": Row(cfg=1, role="distilled", steps=4),
        **{f"base, cfg 4: image_scale {scale:g}": image_cfg(scale, 4) for scale in (1.5, 2)},
        "base, cfg 4: every 4, reuse, diminishing 0.3": Row(REUSE, 4),
    },
    "image_cfg": {
        **{f"cfg {cfg}": Row(cfg=cfg) for cfg in CFGS},
        **{f"cfg {cfg}: image_scale {scale:g}": image_cfg(scale, cfg) for cfg in CFGS for scale in IMAGE_SCALES},
        "distilled": Row(cfg=1, role="distilled", steps=4),
        **{f"distilled: image_scale {scale:g}": image_cfg(scale, 1)._replace(role="distilled", steps=4) for scale in (1.5, 2)},
    },
    "shown": {
        f"cfg {cfg}{shown}": Row(cfg=cfg, shown=where)
        for cfg in (2, 4)
        for shown, where in (("", "both"), (": references in the positive alone", "positive"))
    },
    "fewer_passes": {
        f"cfg {cfg}{name}": Row(nodes, cfg)
        for cfg in (4, 2)
        for name, nodes in (("", ()), (": every 4, reuse, diminishing 0.3", REUSE))
    },
    "rules": {
        "CFG, cfg 4": Row(cfg=4),
        "MAMBO-G, cfg 8": Row((("KleinKitMAMBOG", {"alpha": 8.0}),), 8),
        "TCFG, cfg 6": Row((("KleinKitTCFG", {}),), 6),
        "APG velocity, cfg 8": Row(apg("velocity").nodes, 8),
        "cfg 8 to 1": Row(scheduled("curve", scales="8, 1").nodes, 4),
    },
    "strength": {
        f"{mode} {value:g}": Row(cfg=4, shown="none", says="scene", start=(mode, value))
        for mode in ("strength", "sigma")
        for value in (1.0, 0.9, 0.8, 0.6, 0.4, 0.2)
        if (mode, value) != ("sigma", 1.0)
    },
    "masked": {
        "the whole picture": Row(),
        "the whole picture: only the masked part": Row(masked=True),
        "the whole picture: only the masked part, no reference": Row(cfg=4, shown="none", says="scene", masked=True),
        "distilled, the whole picture": Row(cfg=1, role="distilled", steps=4),
        "distilled, the whole picture: only the masked part": Row(cfg=1, role="distilled", steps=4, masked=True),
    },
}


class Bench(NamedTuple):
    """Edits of which the results were held out, and their pictures [N, 16, 16, 3]; `texts` by what a prompt says."""

    edits: edits.Edits
    source: np.ndarray
    second: np.ndarray
    target: np.ndarray
    texts: dict[str, torch.Tensor]
    empty: torch.Tensor


def prepare(count, text_encoder):
    """The first `count` of the edits, always the same ones."""
    rng = np.random.RandomState(SEED)
    some = edits.held_out(COUNT, rng)
    drawn = edits.drawn(some, rng)
    some = edits.Edits(*(part[:count] for part in some))
    said = {"edit": some.sentences(), "scene": [*map(world.prompt, some.target)]}
    *texts, empty = torch.cat(list(encode(text_encoder, [*said["edit"], *said["scene"], ""])))
    texts = dict(zip(said, torch.stack(texts).split(count), strict=True))
    return Bench(some, *(part[:count] for part in drawn), texts, empty)


def as_latents(cells):
    """Latents of pictures as ComfyUI has them: [N, 128, 8, 8]."""
    return latents(cells).transpose(1, 2).unflatten(2, (TOKENS, TOKENS))


def changing(bench):
    """Masks [N, 8, 8] of the tokens that differ between a picture and what is meant, and their neighbours."""
    differ = torch.from_numpy(np.abs(bench.source - bench.target).max(-1)).float()
    return torch.nn.functional.max_pool2d(torch.nn.functional.max_pool2d(differ[:, None], 2).gt(1e-6).float(), 3, 1, 1)[:, 0]


def draw(bench, row, model, seed):
    """Run a row.

    Args:
        seed: of the noise.
    Returns:
        `(pictures [N, 16, 16, 3], 0 to 1, model passes a picture)`.
    """
    model = with_nodes(model, row.nodes)
    mode, denoise = row.start
    schedule = Schedule(steps=row.steps, width=SIDE, height=SIDE, denoise=denoise, denoise_mode=mode)
    sigmas = torch.from_numpy(make(schedule, TOKENS**2)[0])
    source, second, mask = as_latents(bench.source), as_latents(bench.second), changing(bench)
    noise = noise_of(seed, 0, len(source))
    made, passes = np.empty_like(bench.target), 0
    pair = bench.edits.kind == edits.PAIR
    # Those with as many references share a batch.
    for these, shown in ((~pair, [source]), (pair, [source, second])):
        these = torch.from_numpy(np.flatnonzero(these))
        references = [latent[these] for latent in shown] if row.shown != "none" else []
        found, ran = sampled(
            model,
            noise[these],
            bench.texts[row.says][these],
            bench.empty,
            sigmas,
            row.cfg,
            AT_ONCE,
            references=references,
            in_both=row.shown == "both",
            start=source[these] if denoise < 1 or row.masked else None,
            masks=mask[these] if row.masked else None,
        )
        made[these.numpy()] = pictures(found.flatten(2).transpose(1, 2))
        passes += ran
    return metrics.from_signed(made), passes / len(made)


def outcome(bench, cells):
    """What became of each edit, a digit each: whether what was `asked` is right, and how many fourths of the rest were `kept`.

    `pixels`: how far all are from what is meant.
    """
    asked, kept = metrics.as_asked(cells, bench.edits)
    return {
        "asked": "".join(map(str, asked.astype(int))),
        "kept": "".join(map(str, np.rint(4 * kept).astype(int))),
        "pixels": float(np.abs(cells - metrics.from_signed(bench.target)).mean()),
    }


def outcome_of(bench, row, seed, load):
    """The `outcome` of a row and its `passes` a picture: as they are known, or drawn now."""
    key = file_name(row, len(bench.source))
    known = results_of(OUTCOMES).get(key, {}).get(str(seed))
    if known is None:
        cells, passes = draw(bench, row, load(row.role), seed)
        known = outcome(bench, cells) | {"passes": passes}
        write(OUTCOMES, key, {str(seed): known})
    return known


def compare(found, against, pair):
    """A row's outcomes beside another's: means, and the differences with their 95% intervals, in points.

    Args:
        found, against: an `outcome` of each seed.
        pair: boolean [N], which edits have two pictures: of these, `asked` is told alone too.
    """
    result = {name: float(np.mean([one[name] for one in found])) for name in ("pixels", "passes")}
    every = np.ones_like(pair)
    for name, kind, whole, these in (("asked", "asked", 1, every), ("pair", "asked", 1, pair), ("kept", "kept", 4, every)):
        ours, theirs = (np.array([[*map(int, one[kind])] for one in some])[:, these] / whole for some in (found, against))
        apart = 100 * (ours - theirs).mean(0)
        edits = np.arange(len(apart))[:, None]
        result[name] = float(ours.mean())
        result[f"{name}_points"] = interval_of(lambda chosen, apart=apart: float(apart[chosen].mean()), edits)
    return result


def run(names, load, text_encoder, count, seeds):
    """Draw and compare rows; each result is written at once.

    Args:
        names: of `TABLES`, or of rows.
        load: `role → model`.
        count: how many edits, at most 256.
        seeds: how often, each time from other noise.
    """
    bench, load = prepare(count, text_encoder), functools.cache(load)
    todo = [(table, title) for table, rows in TABLES.items() for title in rows if table in names or title in names]
    with tqdm(todo, unit="row") as progress:
        for table, title in progress:
            row, other = TABLES[table][title], TABLES[table][beside(TABLES[table], title)]
            both = [[outcome_of(bench, one, seed, load) for seed in range(seeds)] for one in (row, other)]
            result = compare(*both, bench.edits.kind == edits.PAIR) | {
                "edits": count,
                "seeds": seeds,
                "weights": digest(row.role),
            }
            write(RESULTS, table, {title: result})
            progress.write(
                f"{table}: {title}: asked {100 * result['asked']:.1f}%, with two pictures {100 * result['pair']:.1f}%, "
                f"kept {100 * result['kept']:.1f}%, pixels {result['pixels']:.4f}, {result['passes']:.4g} passes"
            )
