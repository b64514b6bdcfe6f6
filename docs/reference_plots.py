"""The picture of Klein References' help page, by the functions that the node runs.

`python tasks.py run docs.reference_plots` in `.venv` writes it to web/docs.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..pictures.reference import GRID, most_pixels, prepared_size, scaled_size
from .figure import save_plots

# So small that a token can be seen.
PHOTO, MEGAPIXELS = (350, 230), 0.05


def frame(axes: Axes, size: tuple[int, int], at: tuple[float, float], text: str, **look: object):
    """A picture with its size below."""
    width, height = size
    axes.add_patch(plt.Rectangle(at, width, height, **look))
    axes.text(at[0] + width / 2, at[1] - 14, f"{text}\n{width} × {height}", ha="center", va="top")


def plot_preparation() -> Figure:
    """A photo, scaled down, and cropped to whole tokens."""
    most = most_pixels("megapixels", {"megapixels": MEGAPIXELS})
    scaled, prepared = scaled_size(*PHOTO, most), prepared_size(*PHOTO, most)
    figure, axes = plt.subplots(figsize=(3.4, 1.9))
    gap, top = 50, PHOTO[1]
    frame(axes, PHOTO, (0, 0), "photo", facecolor="#c6dbef", edgecolor="#1f77b4")
    left = PHOTO[0] + gap
    frame(axes, scaled, (left, top - scaled[1]), f"size {MEGAPIXELS:g}", facecolor="#c6dbef", edgecolor="#1f77b4")
    left += scaled[0] + gap
    at = left, top - prepared[1]
    columns, rows = prepared[0] // GRID, prepared[1] // GRID
    frame(axes, prepared, at, f"{columns * rows} tokens", facecolor="#c6dbef", edgecolor="#1f77b4")
    for column in range(1, columns):
        axes.plot([at[0] + column * GRID] * 2, [at[1], top], color="white", linewidth=0.7)
    for row in range(1, rows):
        axes.plot([at[0], at[0] + prepared[0]], [at[1] + row * GRID] * 2, color="white", linewidth=0.7)
    margins = [(one - other) // 2 for one, other in zip(scaled, prepared)]
    middle = PHOTO[0] + gap + margins[0], top - scaled[1] + margins[1]
    axes.add_patch(plt.Rectangle(middle, *prepared, fill=False, edgecolor="#d62728", linestyle="--"))
    axes.set(xlim=(-4, left + prepared[0] + 4), ylim=(-80, top + 4), aspect="equal")
    axes.axis("off")
    return figure


def main(arguments: list[str]) -> int:
    save_plots({"KleinKitReferences": plot_preparation})
    return 0
