"""The plots of the guidance nodes' help pages, from the functions that the nodes run.

`python tasks.py run docs.guidance_plots` in `.venv` writes them to web/docs.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from ..guidance.cfg import CFG, SKIP_MODES, Constant, Curve, Diminishing, Interval, Skip
from ..guidance.plan import plan
from ..guidance.slerp import slerp_weights
from ..scheduler.schedule import Schedule, make
from .figure import save_plots

STEPS, SCALE = 20, 5.0
TOKENS = 4096  # of 1024×1024 pixels
SCHEDULES = {
    "constant": Constant(),
    "interval 0.2 to 0.8": Interval(0.2, 0.8),
    **{f"skip {mode} 0.5": Skip(mode, 0.5) for mode in SKIP_MODES},
    "diminishing 0.11": Diminishing(0.11),
    "curve 5, 3, 1": Curve((5.0, 3.0, 1.0)),
}


def plot_schedules() -> Figure:
    """Each schedule as a row of steps: dark where guidance is strong, empty where one pass runs."""
    sigmas, _ = make(Schedule(STEPS), TOKENS)
    figure, axes = plt.subplots(figsize=(2.6, 2.6))
    for row, schedule in enumerate(SCHEDULES.values()):
        steps = plan((CFG(schedule),), sigmas, SCALE)
        for step in steps:
            color = plt.cm.Blues(0.25 + 0.6 * step.cfg / SCALE) if len(step.passes) > 1 else "white"
            axes.add_patch(plt.Rectangle((step.index + 0.06, row + 0.1), 0.88, 0.8, facecolor=color, edgecolor="#777"))
        axes.text(STEPS + 0.5, row + 0.5, sum(len(step.passes) for step in steps), va="center")
    axes.text(STEPS + 0.5, -0.4, "passes", va="center")
    axes.set(
        xlim=(0, STEPS),
        ylim=(len(SCHEDULES), 0),
        xlabel=f"step of {STEPS}, cfg {SCALE:g}",
        xticks=np.arange(0, STEPS, 5) + 0.5,
        xticklabels=range(0, STEPS, 5),
        yticks=np.arange(len(SCHEDULES)) + 0.5,
        yticklabels=SCHEDULES,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def plot_slerp() -> Figure:
    """The weights of v_c and v_u over cfg, on the arc and on the line."""
    figure, axes = plt.subplots(figsize=(3.4, 2.6))
    scales = np.linspace(1.0, 12.0, 111)
    for cosine, color in ((0.98, "#1f77b4"), (0.9, "#d62728")):
        theta = torch.tensor(math.acos(cosine), dtype=torch.float64)
        cond, uncond = zip(*((c.item(), u.item()) for c, u in (slerp_weights(theta, scale) for scale in scales)))
        axes.plot(scales, cond, color=color, label=f"slerp, cos θ = {cosine}")
        axes.plot(scales, uncond, color=color, linestyle="--")
    axes.plot(scales, scales, color="#777", linewidth=1, label="plain CFG")
    axes.plot(scales, 1.0 - scales, color="#777", linewidth=1, linestyle="--")
    axes.axhline(0.0, color="#ccc", linewidth=0.8, zorder=0)
    axes.set(xlim=(1.0, 12.0), ylim=(-8.0, 8.0), xlabel="cfg", ylabel="weight of v_c (solid), v_u (dashed)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=1, frameon=False, columnspacing=1.0, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_image_cfg() -> Figure:
    """The three predictions of an edit, and which scale leads from one to the next."""
    figure, axes = plt.subplots(figsize=(3.4, 1.9))
    places = {"v(∅,∅)": (0.6, 0.4), "v(img,∅)": (4.6, 0.9), "v(img,txt)": (5.6, 3.2)}
    dots = list(places.values())
    for start, end, color, text, at in (
        (dots[0], dots[1], "#1f77b4", "× image_scale", (2.4, 1.05)),
        (dots[1], dots[2], "#d62728", "× cfg", (5.5, 1.9)),
    ):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkB": 4})
        axes.text(*at, text, color=color, ha="center" if color == "#1f77b4" else "left")
    for (name, (x, y)), (dx, dy, side) in zip(
        places.items(), ((0, -0.45, "left"), (0.25, -0.45, "left"), (-0.3, 0.1, "right"))
    ):
        axes.plot(x, y, "o", color="#222")
        axes.text(x + dx, y + dy, name, ha=side)
    axes.set(xlim=(0.3, 7.3), ylim=(-0.3, 3.5))
    axes.axis("off")
    return figure


def main(arguments: list[str]) -> int:
    save_plots(
        {
            "KleinKitCFG-schedules": plot_schedules,
            "KleinKitSlerpCFG-weights": plot_slerp,
            "KleinKitImageCFG": plot_image_cfg,
        }
    )
    return 0
