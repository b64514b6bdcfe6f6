"""What `study` measured, as tables in the README files and as plots."""

import csv
import math
import re
from pathlib import Path

from matplotlib.figure import Figure

from . import edit_study, paired
from .metrics import SCORED
from .train import STAGES, STATE

ROOT = Path(__file__).resolve().parent.parent
SHIFTS = ("dynamic", "static")


def publish(results, count):
    """Write tables and plots of a study into the README files, between their marks.

    Args:
        results: of `study`.
        count: how many prompts each setting was measured with.
    """
    tables = tables_of(results, count)
    for path in (ROOT / "nano" / "README.md", ROOT / "README.md"):
        path.write_text(filled(path.read_text("utf-8"), tables), "utf-8")
    plot(results).savefig(ROOT / "assets" / "nano-study.png", dpi=110, metadata={"Software": None})


def publish_losses():
    """Draw the losses of the stages that were trained here."""
    losses().savefig(ROOT / "nano" / "loss.png", dpi=90, metadata={"Software": None})


def publish_paired():
    """Write the tables of `paired` into nano's README file, each with the most pictures that it has."""
    path = ROOT / "nano" / "README.md"
    path.write_text(filled(path.read_text("utf-8"), {name: paired_table(name) for name in paired.TABLES}), "utf-8")


def paired_table(name):
    """Markdown of a table of `paired`, and a sentence with the number of its pictures."""
    results = paired.results_of(name)

    def size(key):
        prompts, seeds = map(int, key.split(" × "))
        return prompts * seeds

    rows, role = [], paired.TABLES[name].role

    def worth(key, row):
        return paired.is_of(results[key][row], role), size(key)

    for row in paired.TABLES[name].rows:
        keys = [key for key in results if row in results[key]]
        if keys:
            # A row of more pictures takes the place of its screening, and one of today's weights that of earlier ones.
            best = max(keys, key=lambda key, row=row: worth(key, row))
            found = results[best][row]
            rows.append(
                (
                    named(row, found, role),
                    best,
                    f"{100 * found['right']:.1f}",
                    "{:+.1f} ({:+.1f} to {:+.1f})".format(*found["points"]),
                    "{:.3f} ({:.3f} to {:.3f})".format(*found["ratio"]),
                    f"{found['passes']:.4g}",
                    paired.verdict(found),
                )
            )
    return table(rows, "", "prompts × seeds", "right, %", "points", "distance, ratio", "passes", "as good")


def named(row, found, role):
    """A row's name in a table; it says where a result is of weights that nano had before."""
    return row if paired.is_of(found, role) else f"{row} (earlier weights)"


def publish_edits():
    """Write the tables of `edit_study` into nano's README file, and its plot."""
    path = ROOT / "nano" / "README.md"
    known = paired.results_of(edit_study.RESULTS)
    if {"cfg", "image_cfg"} <= known.keys():
        plot_edits(known).savefig(ROOT / "assets" / "nano-edits.png", dpi=110, metadata={"Software": None})
    path.write_text(
        filled(path.read_text("utf-8"), {f"edits {name}": edit_table(name, known[name]) for name in known}), "utf-8"
    )


def plot_edits(known):
    """A figure: what edits do and keep over cfg, and over the picture's own scale at each cfg."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_cfg, *over_scale = figure.subplots(1, 3, sharey=True)
    plain = {float(row.split("cfg ")[1]): found for row, found in known["cfg"].items() if row.startswith("base, cfg")}
    for name in ("asked", "kept"):
        cfgs = sorted(plain)
        over_cfg.plot(cfgs, [100 * plain[cfg][name] for cfg in cfgs], "o-", label=name)
    over_cfg.set(xlabel="cfg", ylabel="%", title="plain CFG")
    over_cfg.legend()
    scaled = {}
    for row, found in known["image_cfg"].items():
        scale, cfg = re.fullmatch(r"(?:image_scale (\S+), )?cfg (\S+)", row).groups()
        scaled.setdefault(cfg, {})[float(scale or 1)] = found
    for axes, name in zip(over_scale, ("asked", "kept"), strict=True):
        for cfg in sorted(scaled, key=float):
            scales = sorted(scaled[cfg])
            axes.plot(scales, [100 * scaled[cfg][scale][name] for scale in scales], "o-", label=f"cfg {cfg}")
        axes.set(xlabel="image_scale", title=named(f"{name}, Klein Image CFG", known["image_cfg"]["cfg 2"], "base"))
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
            named(row, found, settings.role),
            f"{found['edits']}",
            *(part for kind in ("asked", "kept") for part in (f"{100 * found[kind]:.1f}", beside(found[f"{kind}_points"]))),
            f"{found['pixels']:.4f}",
            f"{found['passes']:.4g}",
        )
        for row, settings in edit_study.TABLES[name].items()
        if (found := results.get(row))
    ]
    return table(rows, "", "edits", "asked, %", "points", "kept, %", "points", "pixels", "passes")


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


def tables_of(results, count):
    """Markdown by name: `headline`, `cfg`, `steps`, `rules`, `passes`, `distilled`, and `count`, a sentence."""

    def share(found, name="all"):
        return f"{100 * found[name]:.1f}"

    def cost(found):
        return f"{found['distance']:.4f}", f"{found['passes']:.4g}"

    def one(name):
        rows = [(row.replace("*", "\\*"), share(found), *cost(found)) for row, found in results[name].items()]
        return table(rows, "", "right, %", "distance", "passes")

    every = (*SCORED, "all")
    by_steps = [
        (str(steps), *(share(found) for found in pair), *(cost(found)[0] for found in pair))
        for steps, pair in steps_of(results["steps"]).items()
    ]
    error = 196 * (0.09 / (len(SCORED) * count)) ** 0.5
    return {
        "cfg": table(
            [(row, *(share(found, name) for name in every), *cost(found)) for row, found in results["cfg"].items()],
            "cfg",
            *(f"{name}, %" for name in every),
            "distance",
            "passes",
        ),
        "steps": table(
            by_steps, "steps", *(f"right, {shift}, %" for shift in SHIFTS), *(f"distance, {shift}" for shift in SHIFTS)
        ),
        **{name: one(name) for name in ("headline", "rules", "passes", "distilled")},
        "count": f"Measured on {count} held-out prompts ({len(SCORED) * count} attributes; a share near 90% is known to about "
        f"±{error:.1f} points), one seed.",
    }


def table(rows, *heads):
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def steps_of(rows):
    """`{steps: (result of the dynamic shift, result of the static one)}`."""
    numbers = dict.fromkeys(int(row.split(",")[0]) for row in rows)
    return {steps: tuple(rows[f"{steps}, {shift}"] for shift in SHIFTS) for steps in numbers}


def plot(results):
    """A figure: what is right over cfg, and over steps with both shifts."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_cfg, over_steps = figure.subplots(1, 2, sharey=True)
    for name in SCORED:
        over_cfg.plot(
            [float(row) for row in results["cfg"]],
            [100 * found[name] for found in results["cfg"].values()],
            linewidth=1,
            label=name,
        )
    over_cfg.plot(
        [float(row) for row in results["cfg"]],
        [100 * found["all"] for found in results["cfg"].values()],
        color="black",
        linewidth=2.5,
        label="all",
    )
    over_cfg.set(xscale="symlog", xlabel="cfg", ylabel="attributes right, %", ylim=(0, 102))
    ticks = [0, 1, 2, 4, 8, 20, 50, 100]
    over_cfg.set_xticks(ticks, map(str, ticks))
    pairs = steps_of(results["steps"])
    for i, shift in enumerate(SHIFTS):
        over_steps.plot(list(pairs), [100 * pair[i]["all"] for pair in pairs.values()], "o-", label=f"{shift} shift")
    over_steps.set(xscale="log", xlabel="steps")
    over_steps.set_xticks(list(pairs), map(str, pairs))
    for axes in (over_cfg, over_steps):
        axes.minorticks_off()
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
