"""Plots of the help pages: how they look, and where they go."""

from pathlib import Path

import matplotlib.pyplot as plt

PAGES = Path(__file__).resolve().parent.parent / "web" / "docs"


def save(plots):
    """Write plots to web/docs.

    Args:
        plots: `{file name without .png: function that returns a figure}`.
    """
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.size": 10, "savefig.dpi": 140, "savefig.bbox": "tight"})
    for name, plot in plots.items():
        # No version of matplotlib in the file: the same picture is the same file.
        plot().savefig(PAGES / f"{name}.png", metadata={"Software": None})
