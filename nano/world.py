"""The world that the nano family draws: one shape on a plain background, and the sentence that says which."""

import numpy as np

VERSION = 1
# A picture is 16×16 cells, which the nano VAE shows as 128×128 pixels.
CELLS = 16
CELL = 8
SIZES = {"small": 2.8, "large": 4.0}
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 80, 220),
    "yellow": (245, 210, 50),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "ring", "star")
PLACES = {
    "on the left": (-4, 0),
    "on the right": (4, 0),
    "at the top": (0, -4),
    "at the bottom": (0, 4),
    "in the middle": (0, 0),
}
# In the order in which they are named.
ATTRIBUTES = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "place": tuple(PLACES),
    "background": tuple(COLOURS),
}
# How many names each has: the shape of a table of all scenes.
COUNTS = tuple(map(len, ATTRIBUTES.values()))
HELD_OUT = 0.2
# How far a picture's centre (in cells) and radius (as a share) are from what its words mean.
SHIFT, STRETCH = 0.1, 0.05
FINE = 8


def prompt(scene):
    """The sentence for a scene, as “a small red circle on the left, on a blue background”.

    Args:
        scene: five indices, one into each of `ATTRIBUTES`.
    """
    words = [names[i] for names, i in zip(ATTRIBUTES.values(), scene, strict=True)]
    return "a {} {} {} {}, on a {} background".format(*words)


def scenes():
    """All scenes whose colour is not their background's: those to train on, and those held out, [N, 5] each."""
    everything = np.array([scene for scene in np.ndindex(*COUNTS) if scene[1] != scene[4]])
    # Both sizes of a scene are held out together.
    kinds, kind = np.unique(everything[:, 1:], axis=0, return_inverse=True)
    held_out = np.random.RandomState(0).permutation(len(kinds)) < HELD_OUT * len(kinds)
    return everything[~held_out[kind]], everything[held_out[kind]]


def among(chosen):
    """For each combination of attributes, whether it is one of scenes [N, 5]: boolean of shape `COUNTS`."""
    found = np.zeros(COUNTS, bool)
    found[tuple(np.asarray(chosen).T)] = True
    return found


def draw(chosen, rng=None):
    """Pictures of scenes.

    Args:
        chosen: [N, 5].
        rng: `RandomState` that moves and stretches each shape a little; None draws them as they are meant.
    Returns:
        float32 [N, 16, 16, 3], colours from −1 to 1.
    """
    chosen = np.asarray(chosen)
    noise = np.zeros((3, len(chosen))) if rng is None else rng.uniform(-1, 1, (3, len(chosen)))
    centres = CELLS / 2 + np.array(list(PLACES.values()))[chosen[:, 3]].T + SHIFT * noise[:2]
    radii = np.array(list(SIZES.values()))[chosen[:, 0]] * (1 + STRETCH * noise[2])
    covered = masks(chosen[:, 2], *centres, radii)[..., None]
    palette = np.array(list(COLOURS.values())) / 127.5 - 1
    colour, background = (palette[chosen[:, i]][:, None, None] for i in (1, 4))
    return (background + covered * (colour - background)).astype(np.float32)


def masks(shapes, x, y, radii):
    """How much of each cell shapes cover.

    Args:
        shapes: [N], indices into `SHAPES`.
        x, y, radii: [N], in cells.
    Returns:
        float [N, 16, 16], 0 to 1.
    """
    grid = (np.arange(CELLS * FINE) + 0.5) / FINE
    x = (grid - x[:, None])[:, None, :] / radii[:, None, None]
    y = (grid - y[:, None])[:, :, None] / radii[:, None, None]
    inside = np.zeros(np.broadcast(x, y).shape, bool)
    for i, shape in enumerate(SHAPES):
        these = np.flatnonzero(shapes == i)
        inside[these] = INSIDE[shape](x[these], y[these])
    return inside.reshape(len(inside), CELLS, FINE, CELLS, FINE).mean((2, 4))


def _star(x, y):
    tip, notch, fifth = 1.08, 0.45, np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth) % (2 * fifth) - fifth)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    return (notch * np.cos(fifth) - tip) * across > notch * np.sin(fifth) * (along - tip)


# Of points in units of the radius, y downwards.
INSIDE = {
    "circle": lambda x, y: np.hypot(x, y) < 1,
    "square": lambda x, y: (np.abs(x) < 0.88) & (np.abs(y) < 0.88),
    "triangle": lambda x, y: (y < 0.85) & (y > 1.85 * np.abs(x) - 1),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.78) < 0.27,
    "star": _star,
}
