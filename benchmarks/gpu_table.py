"""What rows of `bench gpu` say: measured in turn, put beside each other, and written in plain words."""

import functools
import statistics
import time

from torch._dynamo.utils import counters

from .device import operations

ROUNDS = 5
HEADER = ("", "ms a {unit}", "ratio", "of", "goal", "more ms", "more MB", "waits")


def nothing(*_):
    """A mark that is not made."""


def measure(group, device, seconds, rounds=ROUNDS):
    """Measure the rows of a group in turn, so that what disturbs the machine disturbs all alike.

    Args:
        group: of `gpu_rows`.
        device: a `Device`.
        seconds: after these no further round begins; one is always run.
        rounds: at most.
    Returns:
        `[{…}]`, one for each row and each other that it is beside: what the JSON holds.
    """
    rows = group.rows()
    found = {row.name: {"samples": []} for row in rows}
    for row in rows:
        one, graphs = found[row.name], counters["stats"]["unique_graphs"]
        # Once for nothing: models are loaded, kernels are chosen, graphs are compiled.
        row.work(1, nothing)
        one["graphs"] = counters["stats"]["unique_graphs"] - graphs if group.graphs else None
        one["peak"] = device.peak(functools.partial(row.work, group.steps, nothing))
        if group.waits:
            first, more = (device.waits(functools.partial(row.work, steps, nothing)) for steps in (1, 2))
            one["waits"] = more - first
        if row.passes:
            one["operations"] = operations(functools.partial(row.work, 1, nothing))
    begin = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - begin > seconds:
            break
        for row in rows:
            times = device.times(functools.partial(row.work, group.steps))
            found[row.name]["samples"] += [sum(times)] if group.unit == "run" else times
    for one in found.values():
        one["ms"] = statistics.median(one["samples"])
    return [line_of(row, beside, group, found) for row in rows for beside in row.beside or (None,)]


def line_of(row, beside, group, found):
    """What one row says, alone or beside another."""
    own = found[row.name]
    line = {
        "group": group.title,
        "row": row.name,
        "unit": group.unit,
        "ms": own["ms"],
        "samples": own["samples"],
        "peak_bytes": own["peak"],
        "weights_bytes": row.memory,
        "waits_a_step": own.get("waits"),
        "graphs": own["graphs"],
    }
    if row.passes:
        line["tokens_a_second"] = 1e3 * row.passes * group.tokens / own["ms"]
        line["operations_a_second"] = own["operations"] and 1e3 * own["operations"] / own["ms"]
    if beside:
        other = found[beside.name]
        ratio = own["ms"] / other["ms"]
        more = None if own["peak"] is None else own["peak"] - other["peak"]
        met = (beside.most is None or ratio <= beside.most) and (more is None or not row.lean or more <= 2 * group.latent)
        line |= {
            "of": beside.name,
            "ratio": ratio,
            "more_ms": own["ms"] - other["ms"],
            "more_bytes": more,
            "goal": beside.most,
            "goal_bytes": 2 * group.latent if row.lean else None,
            "met": met,
        }
    return line


def as_text(lines, peak, judged=True):
    """The table of a group, line by line.

    Args:
        lines: of `measure`.
        peak: operations a second of the device at best.
        judged: whether to say what met its goal, and what the device gave: small sizes tell nothing of that.
    """
    cells = [[title.format(unit=lines[0]["unit"]) for title in HEADER]]
    for line in lines:
        goal, more, waits = line.get("goal"), line.get("more_bytes"), line["waits_a_step"]
        met = (", met" if line["met"] else ", missed") if judged and goal is not None else ""
        cells.append(
            [
                line["row"],
                f"{line['ms']:.2f}",
                f"{line['ratio']:.3f}" if "ratio" in line else "",
                line.get("of", ""),
                "" if goal is None else f"{goal:.3g}{met}",
                f"{line['more_ms']:+.2f}" if "more_ms" in line else "",
                "" if more is None else f"{more / 1e6:+.1f}",
                "" if waits is None else f"{waits:g}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells)]
    yield lines[0]["group"]
    for row in cells:
        text = [f"{cell:{'<' if i in (0, 3, 4) else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths))]
        yield f"  {'  '.join(text)}".rstrip()
    for name, line in {line["row"]: line for line in lines}.items():
        if "tokens_a_second" in line and judged:
            rate = line["operations_a_second"]
            share = f", {100 * rate / peak:.0f}% of the matrix peak" if rate else ""
            yield f"  {name}: {line['tokens_a_second']:,.0f} tokens a second{share}."
        if line["weights_bytes"]:
            yield f"  {name}: {line['weights_bytes'] / 1e9:.3f} GB of weights."
        if line["graphs"] is not None:
            yield f"  {name}: {line['graphs']} graphs compiled in its first run."
