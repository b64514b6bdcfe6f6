"""Pictures of the help pages: how they look, and where they go."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

PAGES = Path(__file__).resolve().parent.parent / "web" / "docs"
# Twice what the editor's panel has room for, and few enough bytes to be there at once.
WIDTH, COLOURS = 560, 64


def save(picture: Image.Image, name: str, colours: int = COLOURS):
    """Write a picture to web/docs as a PNG of few colours."""
    picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(PAGES / f"{name}.png", optimize=True)


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
