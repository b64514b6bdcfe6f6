"""Draw the pictures that the workflows begin with: `COMFYUI_PATH=… python tasks.py run docs.example_pictures` in `.venv`."""

import numpy as np
from PIL import Image

from ..harness.workflow import EXAMPLES
from ..nano.world import CELLS, COLOURS, INSIDE, PLACES, SIZES

SIDE = 512
# Points to a pixel's side, for smooth edges.
FINE = 4


def draw(colour: str, shape: str, place: str, background: str) -> Image.Image:
    """A large shape of nano's world, smooth where nano draws cells."""
    (x, y), radius = PLACES[place], SIZES["large"]
    points = (np.arange(SIDE * FINE) + 0.5) * CELLS / (SIDE * FINE) - CELLS / 2
    inside = INSIDE[shape]((points - x)[None, :] / radius, (points - y)[:, None] / radius)
    covered = inside.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))[..., None]
    ground, paint = np.array(COLOURS[background]), np.array(COLOURS[colour])
    return Image.fromarray(np.rint(ground + covered * (paint - ground)).astype(np.uint8))


def masked(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A picture whose alpha channel is the mask of Load Image: transparent, which is white there, in a box."""
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, box)
    whole = picture.copy()
    whole.putalpha(alpha)
    return whole


def main(arguments: list[str]) -> int:
    EXAMPLES.mkdir(exist_ok=True)
    circle = draw("red", "circle", "on the left", "blue")
    pictures = {
        "kleinkit-circle": circle,
        "kleinkit-star": draw("yellow", "star", "in the middle", "green"),
        # The circle's left, top, right and bottom are 0, 128, 256 and 384.
        "kleinkit-circle-masked": masked(circle, (0, 112, 272, 400)),
    }
    for name, picture in pictures.items():
        picture.save(EXAMPLES / f"{name}.png", optimize=True)
    return 0
