"""Pictures of the help pages: how they look, and where they go."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

PAGES = Path(__file__).resolve().parent.parent / "web" / "docs"
# Twice what the editor's panel has room for.
WIDTH = 560
MOST_BYTES = 40_000
# Of a picture, and of a plot, which needs few.
COLOURS, PLOT_COLOURS, FEWER = 128, 32, (64, 32, 16)


def save(picture: Image.Image, name: str, most: int = COLOURS):
    """Write a picture to web/docs as a PNG of at most so many colours, and fewer where `MOST_BYTES` need it."""
    path = PAGES / f"{name}.png"
    for colours in (most, *(few for few in FEWER if few < most)):
        # By coverage and then by means: a small part keeps its colour, and a large noisy ground its own.
        reduced = picture.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
        reduced.save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return


def save_plots(plots: dict[str, Callable[[], Figure]]):
    """Write plots to web/docs.

    Args:
        plots: `{file name without .png: function that returns a figure}`.
    """
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.size": 9, "savefig.dpi": 200, "savefig.bbox": "tight", "savefig.pad_inches": 0.03})
    for name, plot in plots.items():
        drawn = io.BytesIO()
        plot().savefig(drawn)
        picture = Image.open(drawn).convert("RGB")
        save(
            picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS), name, PLOT_COLOURS
        )
