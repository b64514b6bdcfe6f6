"""What `study` measured, as tables in the README files and as plots."""

import csv
import math
import re
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from . import edit_study, paired
from .metrics import SCORED
from .train import STAGES, STATE

ROOT = Path(__file__).resolve().parent.parent
SHIFTS = ("dynamic", "static")


def publish():
    """Write the tables of all results into the README files, between their marks, and draw the plots."""
    edits = paired.results_of(edit_study.RESULTS)
    tables = {
        **{name: paired_table(name) for name in paired.TABLES},
        "headline": headline(),
        **{f"edits {name}": edit_table(name, edits[name]) for name in edits},
    }
    for path in (ROOT / "nano" / "README.md", ROOT / "README.md"):
        path.write_text(filled(path.read_text("utf-8"), tables), "utf-8")
    figures = {"nano-study": plot(), "nano-edits": plot_edits(edits)}
    for name, figure in figures.items():
        figure.savefig(ROOT / "assets" / f"{name}.png", dpi=110, metadata={"Software": None})


def publish_losses():
    """Draw the losses of the stages that were trained here."""
    losses().savefig(ROOT / "nano" / "loss.png", dpi=90, metadata={"Software": None})


class Best(NamedTuple):
    """What is known of a row: its best result, and of how many `prompts × seeds`."""

    title: str
    row: paired.Row
    size: str
    found: dict


def best_of(name):
    """The `Best` of each row of a table of `paired`: of today's weights, then of the most pictures."""
    results = paired.results_of(name)

    def worth(one):
        prompts, seeds = map(int, one.size.split(" × "))
        return paired.is_of(one.found, one.row), prompts * seeds

    known = [
        [Best(title, row, size, found[title]) for size, found in results.items() if title in found]
        for title, row in paired.TABLES[name].items()
    ]
    return [max(of_row, key=worth) for of_row in known if of_row]


def paired_table(name):
    """Markdown of a table of `paired`."""
    rows = [
        (
            named(title, found, row),
            size,
            f"{100 * found['right']:.1f}",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*found["points"]),
            "{:.3f} ({:.3f} to {:.3f})".format(*found["ratio"]),
            f"{found['passes']:.4g}",
            paired.verdict(found),
        )
        for title, row, size, found in best_of(name)
    ]
    return table(rows, "", "prompts × seeds", "right, %", "points", "distance, ratio", "passes", "as good")


def headline():
    """Markdown of what both models draw."""
    rows = [
        (
            named(title, found, row),
            size,
            f"{100 * found['right']:.1f}",
            *(f"{100 * found['attributes'][name]:.1f}" for name in SCORED),
            f"{found['passes']:.4g}",
        )
        for title, row, size, found in best_of("cfg")
    ]
    return table(rows, "", "prompts × seeds", "right, %", *(f"{name}, %" for name in SCORED), "passes")


def named(title, found, row):
    """A row's name in a table; it says where a result is of weights that nano had before."""
    title = title.replace("*", "\\*")
    return title if paired.is_of(found, row) else f"{title} (earlier weights)"


def plot_edits(known):
    """A figure: what edits do and keep over cfg, and over the picture's own scale at each cfg."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_cfg, *over_scale = figure.subplots(1, 3, sharey=True)
    plain = {
        row.cfg: known["cfg"][title]
        for title, row in edit_study.TABLES["cfg"].items()
        if row == edit_study.Row(cfg=row.cfg) and title in known["cfg"]
    }
    for name in ("asked", "kept"):
        cfgs = sorted(plain)
        over_cfg.plot(cfgs, [100 * plain[cfg][name] for cfg in cfgs], "o-", label=name)
    over_cfg.set(xlabel="cfg", ylabel="%", title="plain CFG")
    over_cfg.legend()
    scaled = {}
    for title, row in edit_study.TABLES["image_cfg"].items():
        if row.role == "base" and title in known["image_cfg"]:
            scale = row.nodes[0][1]["image_scale"] if row.nodes else 1
            scaled.setdefault(row.cfg, {})[scale] = known["image_cfg"][title]
    for axes, name in zip(over_scale, ("asked", "kept"), strict=True):
        for cfg in sorted(scaled):
            scales = sorted(scaled[cfg])
            axes.plot(scales, [100 * scaled[cfg][scale][name] for scale in scales], "o-", label=f"cfg {cfg:g}")
        axes.set(xlabel="image_scale", title=named(f"{name}, Klein Image CFG", known["image_cfg"]["cfg 2"], edit_study.Row()))
        axes.legend()
    for axes in (over_cfg, *over_scale):
        axes.grid(alpha=0.3)
    return figure


def edit_table(name, results):
    """Markdown of a table of `edit_study`."""

    def beside(interval):
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval)

    rows = [
        (
            named(row, found, settings),
            f"{found['edits']} × {found['seeds']}",
            *(
                part
                for kind in ("asked", "pair", "kept")
                for part in (f"{100 * found[kind]:.1f}", beside(found[f"{kind}_points"]))
            ),
            f"{found['pixels']:.4f}",
            f"{found['passes']:.4g}",
        )
        for row, settings in edit_study.TABLES[name].items()
        if (found := results.get(row))
    ]
    return table(
        rows, "", "edits × seeds", "asked, %", "points", "of two pictures, %", "points", "kept, %", "points", "pixels", "passes"
    )


def filled(text, parts):
    """A text with parts put between `<!-- nano NAME -->` and `<!-- end -->`."""
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- nano {name} -->\n).*?(<!-- end -->)",
            lambda match, part=part: f"{match[1]}{part}\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


def table(rows, *heads):
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def plot():
    """A figure: what is right over cfg, and over steps with both shifts."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_cfg, over_steps = figure.subplots(1, 2, sharey=True)
    base = sorted((one for one in best_of("cfg") if one.row.role == "base"), key=lambda one: one.row.cfg)
    cfgs = [one.row.cfg for one in base]
    for name in SCORED:
        over_cfg.plot(cfgs, [100 * one.found["attributes"][name] for one in base], linewidth=1, label=name)
    over_cfg.plot(cfgs, [100 * one.found["right"] for one in base], "o-", color="black", linewidth=2.5, label="all")
    over_cfg.set(xlabel="cfg", ylabel="attributes right, %", ylim=(0, 102))
    for shift in SHIFTS:
        some = sorted((one for one in best_of("steps") if one.row.shift == shift), key=lambda one: one.row.steps)
        over_steps.plot(
            [one.row.steps for one in some], [100 * one.found["right"] for one in some], "o-", label=f"{shift} shift"
        )
    over_steps.set(xlabel="steps")
    for axes in (over_cfg, over_steps):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def losses():
    """A figure of the loss over the steps of each stage, in the order in which they are trained."""
    logs = [path for stage in (*STAGES, "distilled") if (path := STATE / f"{stage}.csv").exists()]
    rows = math.ceil(len(logs) / 4)
    figure = Figure(figsize=(9, 2.3 * rows), layout="constrained")
    places = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes in places[len(logs) :]:
        axes.set_axis_off()
    for axes, log in zip(places, logs, strict=False):
        with log.open(newline="") as stream:
            steps, loss = zip(*((int(row[0]), float(row[1])) for row in csv.reader(stream)), strict=True)
        axes.plot(steps, loss)
        axes.set(title=log.stem, xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
    return figure
