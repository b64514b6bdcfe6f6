"""A plot of the records of runs."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .record import RunRecord

# What each panel shows: in words, and with the symbols of the papers below.
PANELS = {
    "cfg": "Guidance scale\ncfg",
    "cosine": "Agreement of positive and negative\ncos($v_c$, $v_u$): 1 is the same direction",
    "alpha": "Best scale for the negative\nα of CFG-Zero*",
    "cond_norm": "Size of the predictions\npositive ‖$v_c$‖ solid, negative ‖$v_u$‖ dashed",
    "norm_ratio": "How much guidance enlarges\n‖$v$‖ / ‖$v_c$‖: 1 is not at all",
    "milliseconds": "Time of a model call\nmilliseconds",
}
DASHED = {"cond_norm": "uncond_norm"}
FROM_ZERO = ("cfg", "milliseconds")
# A panel spans at least this share of its values: less is the noise of float32.
SMALLEST_SPAN = 0.005
PAPER, INK, GRID = "#f6f6f6", "#181818", "#d4d4d4"
MOST_NAMED = 12


def plot(runs: list[RunRecord]) -> np.ndarray:
    """A picture of what was measured in every model call of runs.

    Args:
        runs: at least one.
    Returns:
        [H, W, 3] uint8 array.
    """
    canvas = FigureCanvasAgg(draw(runs))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(runs: list[RunRecord]) -> Figure:
    """The figure of `plot`: a panel for each measure, a line in it for each run, on a light background of its own."""
    figure = Figure(figsize=(10.0, 6.0), dpi=120, facecolor=PAPER, layout="constrained")
    colors = colormaps["viridis"](np.linspace(0.2, 0.85, len(runs)))
    panels = figure.subplots(2, 3, sharex=True)
    every = -(-len(runs) // MOST_NAMED)
    for axes, name in zip(panels.flat, PANELS):
        for i, (run, color) in enumerate(zip(runs, colors)):
            named = name_of(i + 1, run) if name == "milliseconds" and i % every == 0 else None
            for key, style in ((name, "-"), (DASHED.get(name), "--")):
                # A call without a value is a gap in the line. The dots show the calls that stand alone.
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
        finish_panel(axes, name)
    for axes in panels[1]:
        axes.set_xlabel("model call", fontsize=9, color=INK)
    figure.suptitle(heading(runs), color=INK, fontsize=11)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def finish_panel(axes: Axes, name: str) -> None:
    """Give a panel its title, its colours and the range of its values."""
    axes.set_title(PANELS[name], fontsize=9, color=INK)
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


def name_of(number: int, run: RunRecord) -> str:
    """What the legend calls a run: its number, its largest cfg and its passes."""
    scales = [call["cfg"] for call in run.calls if call["cfg"] is not None]
    return f"run {number}: cfg {max(scales, default=0.0):g}, {total([run], 'passes')} passes"


def heading(runs: list[RunRecord]) -> str:
    """Steps, passes, blocks and seconds of all runs together, and their guidance."""
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


def total(runs: list[RunRecord], name: str) -> float | None:
    """The sum of a number over all calls of runs, or None where a call has none."""
    values = [call[name] for run in runs for call in run.calls]
    return None if None in values else sum(values)
