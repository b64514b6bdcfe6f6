"""The plots and the table of mu of the sampling nodes' help pages, from the functions that the nodes run.

`python tasks.py run docs.sigma_plots` in `.venv` writes the plots to web/docs and prints the table.
"""

import matplotlib.pyplot as plt
import numpy as np

from ..scheduler.mu import SHIFTS, STATIC_MU
from ..scheduler.schedule import DENOISE_MODES, Schedule, choose_shift, make, picture_tokens
from ..scheduler.shift import time_shift
from ..scheduler.spacing import SPACINGS
from .figure import save

TOKENS = picture_tokens(1024, 1024)
SIZES = ((512, 512), (768, 768), (1024, 1024), (1088, 1024), (1280, 1280), (1536, 1536), (2048, 2048))
STEPS = (4, 8, 20, 50)


def draw(axes, title, curves, **settings):
    """Sigmas over the share of the run: `{label: sigmas}`, a point a step."""
    for label, sigmas in curves.items():
        axes.plot(np.linspace(0, 1, len(sigmas)), sigmas, marker=".", linewidth=1.2, label=label)
    axes.set(title=title, xlim=(0, 1), ylim=(0, 1.02), xlabel="share of the run", **settings)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def sigmas(**settings):
    return make(Schedule(**settings), TOKENS)[0]


def plot_scheduler():
    """What mu, the spacing and the mode of denoise do to the sigmas."""
    figure, (shift, spacing, denoise) = plt.subplots(1, 3, figsize=(11.0, 3.4), sharey=True)
    draw(
        shift,
        "mu, 10 steps",
        {f"mu {mu:g}": sigmas(steps=10, shift=choose_shift("fixed", mu=mu)) for mu in (0.0, 1.15, 2.26, 3.5)},
        ylabel="sigma",
    )
    draw(spacing, "spacing, 10 steps", {name: sigmas(steps=10, spacing=name) for name in SPACINGS})
    draw(denoise, "denoise 0.5, 10 steps", {mode: sigmas(steps=10, denoise=0.5, denoise_mode=mode) for mode in DENOISE_MODES})
    return figure


def plot_mu():
    """mu over the size of the picture: the jump of flux2, and flux2_continuous without it."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    tokens = np.arange(256, 9400, 4)
    for steps, color in ((4, "#1f77b4"), (20, "#2ca02c"), (50, "#d62728")):
        for shift, style in (("flux2", "-"), ("flux2_continuous", ":")):
            mu = [SHIFTS[shift](count, steps) for count in tokens]
            axes.plot(tokens, mu, style, color=color, label=f"{shift}, {steps} steps")
    axes.plot(tokens, [SHIFTS["flux1"](count, 20) for count in tokens], color="#777", label="flux1")
    axes.set(xlim=(0, 9400), ylim=(0, 2.6), ylabel="mu", xlabel="tokens (1024×1024: 4096)")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_dynamic_shift():
    """The scheduler simple on ComfyUI's model as it is, and with mu for the run."""
    figure, panels = plt.subplots(1, 3, figsize=(11.0, 3.4), sharey=True)
    for axes, (width, height), steps in zip(panels, ((1024, 1024), (1088, 1024), (2048, 2048)), (4, 20, 50)):
        even = np.linspace(1.0, 0.0, steps + 1)
        mu = SHIFTS["flux2"](picture_tokens(width, height), steps)
        draw(
            axes,
            f"{width}×{height}, {steps} steps",
            {
                f"ComfyUI, {STATIC_MU}": time_shift(even, STATIC_MU),
                f"flux2, {mu:.2f}": time_shift(even, mu),
            },
            ylabel="sigma" if axes is panels[0] else "",
        )
    return figure


def table():
    """mu of `flux2` by size and steps, in Markdown."""
    head = " | ".join(f"{steps} steps" for steps in STEPS)
    lines = [f"| Size | Tokens | {head} |", "| --- " * (len(STEPS) + 2) + "|"]
    for width, height in SIZES:
        tokens = picture_tokens(width, height)
        mus = " | ".join(f"{SHIFTS['flux2'](tokens, steps):.3f}" for steps in STEPS)
        lines.append(f"| {width}×{height} | {tokens} | {mus} |")
    return "\n".join(lines)


def main(arguments):
    save(
        {
            "KleinKitScheduler": plot_scheduler,
            "KleinKitScheduler-mu": plot_mu,
            "KleinKitDynamicShift": plot_dynamic_shift,
        }
    )
    print(table())
    return 0
