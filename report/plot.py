"""A plot of the records of runs."""

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PANELS = {
    "cfg": "cfg",
    "cosine": "cos($v_c$, $v_u$)",
    "alpha": "α",
    "cond_norm": "‖$v_c$‖ (solid), ‖$v_u$‖ (dashed)",
    "norm_ratio": "‖$v$‖ / ‖$v_c$‖",
    "milliseconds": "milliseconds",
}
DASHED = {"cond_norm": "uncond_norm"}
FROM_ZERO = ("cfg", "milliseconds")
# Less than this share of a value is no news, and would fill a panel with the noise of float32.
SMALLEST_SPAN = 0.005
PAPER, INK, GRID = "#f6f6f6", "#181818", "#d4d4d4"
MOST_NAMED = 12


def plot(runs):
    """What was measured in every model call of runs, a panel each, on a light background of its own.

    Args:
        runs: of `RunRecord`.
    Returns:
        [H, W, 3] uint8 array.
    """
    figure = Figure(figsize=(10.0, 6.0), dpi=120, facecolor=PAPER, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    colors = colormaps["viridis"](np.linspace(0.2, 0.85, len(runs)))
    panels = figure.subplots(2, 3, sharex=True)
    every = -(-len(runs) // MOST_NAMED)
    for axes, name in zip(panels.flat, PANELS):
        for i, (run, color) in enumerate(zip(runs, colors)):
            named = label(i + 1, run) if name == "milliseconds" and i % every == 0 else None
            for key, style in ((name, "-"), (DASHED.get(name), "--")):
                # A call without a value is a gap in the line; the dots show those that stand alone.
                heights = np.array([call[key] for call in run.calls] if key else [], dtype=float)
                if np.isfinite(heights).any():
                    axes.plot(
                        range(1, len(heights) + 1),
                        heights,
                        style,
                        color=color,
                        linewidth=1.4,
                        marker=".",
                        markersize=4,
                        label=named,
                    )
        look(axes, name)
    for axes in panels[1]:
        axes.set_xlabel("model call", fontsize=9, color=INK)
    figure.suptitle(heading(runs), color=INK, fontsize=11)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def look(axes, name):
    axes.set_title(PANELS[name], fontsize=10, color=INK)
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8, labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.03)
    if axes.lines:
        axes.ticklabel_format(axis="y", useOffset=False)
        low, high = axes.dataLim.y0, axes.dataLim.y1
        middle = (low + high) / 2
        half = max(high - low, SMALLEST_SPAN * abs(middle)) * 0.56
        axes.set_ylim(*((0.0, high * 1.12 or 1.0) if name in FROM_ZERO else (middle - half, middle + half)))
    else:
        axes.grid(False)
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", ha="center", color=INK, transform=axes.transAxes)


def label(number, run):
    scales = [call["cfg"] for call in run.calls if call["cfg"] is not None]
    return f"run {number}: cfg {max(scales, default=0.0):g}, {total([run], 'passes')} passes"


def heading(runs):
    """Steps, passes, blocks and seconds of all runs, and their guidance."""
    blocks = total(runs, "blocks")
    nodes = dict.fromkeys(node.removeprefix("KleinKit") for run in runs for node in run.guidance)
    return " · ".join(
        [
            f"{len(runs)} runs" if len(runs) > 1 else f"{len(runs[0].sigmas) - 1} steps",
            f"{total(runs, 'passes')} passes",
            *([f"{blocks} blocks"] if blocks is not None else []),
            f"{sum(call['milliseconds'] for run in runs for call in run.calls) / 1000.0:.3g} s",
            ", ".join(nodes) or "no guidance nodes",
        ]
    )


def total(runs, name):
    values = [call[name] for run in runs for call in run.calls]
    return None if None in values else sum(values)
