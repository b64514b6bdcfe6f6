"""What rows of `bench gpu` say: measured in turn, put beside each other, and written in plain words."""

import functools
import statistics
import time

import torch
from torch._dynamo.utils import counters

from .device import operations

ROUNDS = 5
EVERY_ROW, TIME_UP = "every row", "the time was up"
HEADER = ("", "ms a {unit}", "ratio", "of", "goal", "more ms", "more MB", "waits")


def nothing(*_):
    """A mark that is not made."""


def measure(group, device, seconds, deadline, rounds=ROUNDS):
    """Measure the rows of a group in turn, so that what disturbs the machine disturbs all alike.

    Args:
        group: of `gpu_rows`.
        device: a `Device`.
        seconds: after these no further round begins; one is always run.
        deadline: of the monotonic clock: after it no row begins.
        rounds: at most.
    Returns:
        `(lines, failed)`: one line for each row and each other that it is beside, as the JSON holds it, and
        `{name of a row, or EVERY_ROW: why it was not measured}`.
    """
    found, failed = {}, {}

    def attempt(name, work, *args):
        """What work gives. A row that fails, as for want of memory, takes no other with it."""
        try:
            return work(*args)
        except Exception as error:
            failed[name] = reason(error)
        # What the error referred to is gone only here.
        device.forget()
        return None

    if time.monotonic() >= deadline:
        return [], {EVERY_ROW: TIME_UP}
    rows = attempt(EVERY_ROW, group.rows) or []
    for row in rows:
        if time.monotonic() >= deadline:
            failed[row.name] = TIME_UP
        elif one := attempt(row.name, prepared, row, group, device):
            found[row.name] = one
    begin = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - begin > seconds:
            break
        for row in rows:
            if one := found.get(row.name):
                before = graphs()
                times = attempt(row.name, device.times, functools.partial(row.work, group.steps))
                if times is None:
                    del found[row.name]
                    continue
                one["samples"] += [sum(times)] if group.unit == "run" else times
                one["graphs_later"] += graphs() - before
    for one in found.values():
        one["ms"] = statistics.median(one["samples"])
    lines = []
    for row in rows:
        if row.name in found:
            others = [other for other in row.beside if other.name in found]
            lines += [line_of(row, beside, group, found) for beside in others or (None,)]
    return lines, failed


def prepared(row, group, device):
    """What is known of a row before its times: memory, waits, operations and graphs."""
    before, breaks = graphs(), graph_breaks()
    # Once for nothing: models are loaded, kernels are chosen, graphs are compiled.
    row.work(group.steps if group.graphs else 1, nothing)
    after = graphs()
    one = {"samples": [], "graphs": after - before, "graph_breaks": graph_breaks() - breaks}

    def run():
        one["peak"] = device.peak(functools.partial(row.work, group.steps, nothing))

    if group.waits:
        once = device.waits(functools.partial(row.work, 1, nothing))
        one["waits"] = (device.waits(run) - once) / (group.steps - 1)
    else:
        run()
    one["graphs_later"] = graphs() - after
    if row.passes:
        one["operations"] = operations(functools.partial(row.work, 1, nothing))
    return one


def graphs():
    """How many graphs torch.compile has made so far."""
    return counters["stats"]["unique_graphs"]


def graph_breaks():
    """How often it had to end one, so far."""
    return sum(counters["graph_break"].values())


def reason(error):
    """Why a row was not measured, in one line."""
    said = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in said.lower():
        return "the memory of this card is too small"
    return f"{type(error).__name__}: {said}"


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
    }
    if group.graphs:
        line |= {name: own[name] for name in ("graphs", "graph_breaks", "graphs_later")}
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
        if "graphs" in line:
            yield (
                f"  {name}: {line['graphs']} graphs compiled in its first run with {line['graph_breaks']} breaks, "
                f"{line['graphs_later']} later."
            )
