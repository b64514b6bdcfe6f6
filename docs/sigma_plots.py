"""The plots and the table of mu of the sampling nodes' help pages, from the functions that the nodes run.

`python tasks.py run docs.sigma_plots` in `.venv` writes the plots to web/docs and prints the table.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..scheduler.mu import SHIFTS, STATIC_MU
from ..scheduler.schedule import picture_tokens
from ..scheduler.shift import time_shift
from .figure import save_plots

SIZES = ((512, 512), (1024, 1024), (1088, 1024), (1536, 1536), (2048, 2048))
STEPS = (4, 8, 20, 50)


def plot_mu() -> Figure:
    """mu over the size of the picture: the jump of flux2, and flux2_continuous without it."""
    figure, axes = plt.subplots(figsize=(3.4, 2.4))
    tokens = np.arange(256, 9400, 4)
    for steps, color in ((4, "#1f77b4"), (20, "#2ca02c"), (50, "#d62728")):
        for shift, style, label in (("flux2", "-", f"flux2, {steps} steps"), ("flux2_continuous", ":", None)):
            axes.plot(tokens, [SHIFTS[shift](count, steps) for count in tokens], style, color=color, label=label)
    axes.plot([], [], ":", color="#222", label="flux2_continuous")
    axes.plot(tokens, [SHIFTS["flux1"](count, 20) for count in tokens], color="#777", label="flux1")
    axes.set(xlim=(0, 9400), ylim=(0, 2.6), ylabel="mu", xlabel="tokens (1024×1024 has 4096)", xticks=(0, 4096, 8192))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_dynamic_shift() -> Figure:
    """The scheduler simple with ComfyUI's shift, and with mu at two sizes."""
    figure, axes = plt.subplots(figsize=(3.4, 2.4))
    steps = 20
    even = np.linspace(1.0, 0.0, steps + 1)
    shifts = {f"ComfyUI, every size: {STATIC_MU}": STATIC_MU}
    for width, height in ((1088, 1024), (2048, 2048)):
        mu = SHIFTS["flux2"](picture_tokens(width, height), steps)
        shifts[f"flux2, {width}×{height}: {mu:.2f}"] = mu
    for (label, mu), color in zip(shifts.items(), ("#777", "#1f77b4", "#d62728")):
        axes.plot(np.arange(steps + 1), time_shift(even, mu), color=color, marker=".", linewidth=1.2, label=label)
    axes.set(xlim=(0, steps), ylim=(0, 1.02), xlabel=f"step of {steps}", ylabel="sigma", xticks=range(0, steps + 1, 5))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def table() -> str:
    """mu of `flux2` by size, at each of `STEPS`, as the page lists it."""
    rows = []
    for width, height in SIZES:
        mus = [f"{SHIFTS['flux2'](picture_tokens(width, height), steps):.3f}" for steps in STEPS]
        rows.append(f"- {width}×{height}: {', '.join(mus)}")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    save_plots({"KleinKitScheduler-mu": plot_mu, "KleinKitDynamicShift-sigmas": plot_dynamic_shift})
    print(table())
    return 0
