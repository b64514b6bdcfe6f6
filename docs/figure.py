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
MOST_BYTES, COLOURS = 40_000, (256, 64, 32, 16)


def save(picture: Image.Image, name: str):
    """Write a picture to web/docs as a PNG of as many colours as `MOST_BYTES` allow."""
    path = PAGES / f"{name}.png"
    for colours in COLOURS:
        picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
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
        save(picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS), name)
