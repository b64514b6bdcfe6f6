"""What a picture of the nano world shows, and how far pictures are from true ones: from the pixels alone."""

import functools
import itertools

import numpy as np

from .world import ATTRIBUTES, CELL, CELLS, COLOURS, PLACES, SHAPES, SIZES, masks

# Scored of prompts; the size is not, because a shape that is cut or blurred has none.
SCORED = ("shape", "colour", "background", "place")
NOTHING = -1
# Farther than this from every named colour (RGB from 0 to 1), a colour has no name.
COLOUR_REACH = 0.4
# A shape that explains less of a picture's variance than this is none.
EXPLAINED = 0.35
# How far from where it is meant a shape is looked for, in cells.
REACH = 0.5
DIRECTIONS = 256


def cells(pixels):
    """Pictures as the means of their cells.

    Args:
        pixels: [N, 128, 128, 3], 0 to 1.
    Returns:
        float [N, 16, 16, 3], 0 to 1.
    """
    return np.clip(pixels, 0, 1).reshape(-1, CELLS, CELL, CELLS, CELL, 3).mean((2, 4))


def from_signed(pictures):
    """Pictures of colours from −1 to 1 as those that are read here, 0 to 1."""
    return np.clip(np.asarray(pictures) / 2 + 0.5, 0, 1)


@functools.cache
def _candidates():
    """Every shape at every place that the world draws: masks without their mean, and what they are."""
    moves = np.linspace(-REACH, REACH, 3)
    rows = [
        (shape, place, radius, dx, dy)
        for shape, place, radius, dx, dy in itertools.product(
            range(len(SHAPES)), range(len(PLACES)), SIZES.values(), moves, moves
        )
    ]
    shape, place, radius, dx, dy = np.array(rows).T
    size = np.searchsorted(list(SIZES.values()), radius)
    centres = CELLS / 2 + np.array(list(PLACES.values()))[place.astype(int)].T
    covered = masks(shape.astype(int), centres[0] + dx, centres[1] + dy, radius).reshape(len(rows), -1)
    return covered, shape.astype(int), place.astype(int), size


def read(pictures):
    """The attributes that pictures show.

    The shape and the place are those of the mask that explains most of the picture as a mixture of two colours (least
    squares over all shapes, places and sizes); the colours are the named ones nearest to these two.

    Args:
        pictures: [N, 16, 16, 3] cells, 0 to 1.
    Returns:
        `{attribute: int [N]}` for each of `ATTRIBUTES`: the index into `ATTRIBUTES`, −1 where there is no such thing.
    """
    covered, shape, place, size = _candidates()
    flat = pictures.reshape(len(pictures), -1, 3).astype(np.float64)
    mean = flat.mean(1)
    centred = covered - covered.mean(1, keepdims=True)
    products = np.einsum("mp,npc->nmc", centred, flat, optimize=True)
    power = (centred**2).sum(1)
    explained = (products**2).sum(-1) / power
    best = explained.argmax(1)
    row = np.arange(len(flat))
    contrast = products[row, best] / power[best, None]
    background = mean - contrast * covered[best].mean(1)[:, None]
    total = ((flat - mean[:, None]) ** 2).sum((1, 2))
    good = explained[row, best] >= EXPLAINED * np.maximum(total, 1e-9)

    def named(colours):
        palette = np.array(list(COLOURS.values())) / 255
        distance = np.linalg.norm(colours[:, None] - palette, axis=-1)
        return np.where(distance.min(1) <= COLOUR_REACH, distance.argmin(1), NOTHING)

    return {
        "shape": np.where(good, shape[best], NOTHING),
        "colour": np.where(good, named(background + contrast), NOTHING),
        "background": named(np.where(good[:, None], background, np.median(flat, axis=1))),
        "place": np.where(good, place[best], NOTHING),
        "size": np.where(good, size[best], NOTHING),
    }


def adherence(pictures, scenes):
    """The share of the prompts' attributes that pictures show.

    Args:
        pictures: as for `read`.
        scenes: int [N, 5], what the prompts say.
    Returns:
        `{attribute: share}` for each of `SCORED`, and `"all"`, their mean; 0 to 1.
    """
    shares = dict(zip(SCORED, right(pictures, scenes).mean(0).tolist(), strict=True))
    return {**shares, "all": float(np.mean(list(shares.values())))}


def right(pictures, scenes, names=SCORED):
    """Which attributes of its prompt each picture shows: boolean [N, attributes in the order of `names`]."""
    seen, scenes, order = read(pictures), np.asarray(scenes), list(ATTRIBUTES)
    return np.stack([seen[name] == scenes[:, order.index(name)] for name in names], axis=1)


def projections(pictures, seed=0):
    """Pictures along random directions: [N, directions]."""
    directions = np.random.RandomState(seed).standard_normal((pictures[0].size, DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return pictures.reshape(len(pictures), -1) @ directions


def apart(one, other):
    """Sliced Wasserstein distance (Rabin et al. 2011) of two sets of pictures.

    Args:
        one, other: their `projections`, sorted along the pictures, of as many pictures each.
    Returns:
        The root of the mean squared difference, in units of one colour value of one cell.
    """
    return float(np.sqrt(np.mean((one - other) ** 2)))


def edited(pictures, targets, edits):
    """What became of edits.

    Args:
        pictures: as for `read`.
        targets: [N, 16, 16, 3], the pictures that are meant.
        edits: `nano.edits.Edits`.
    Returns:
        Shares, 0 to 1: of edits whose `asked` attributes are right, of attributes that were to be `kept` and are; and
        `pixels`, the mean absolute difference to what is meant.
    """
    asked, kept = as_asked(pictures, edits)
    return {
        "asked": float(asked.mean()),
        "kept": float(kept.mean()),
        "pixels": float(np.abs(pictures - targets).mean()),
    }


def as_asked(pictures, edits):
    """`(asked [N], kept [N])`: whether an edit did what it was asked for, and the share of the rest that it kept."""
    seen = right(pictures, edits.target, (*SCORED, "size"))
    of = np.array([list(ATTRIBUTES).index(name) for name in (*SCORED, "size")])
    mine = edits.kind[:, None] == of
    # Two pictures: asked for are the second one's attributes, kept is the first one's background.
    pair = ~mine.any(1)
    mine[pair] = np.array([name != "background" for name in (*SCORED, "size")])
    asked = (seen | ~mine).all(1)
    return asked, (seen & ~mine).sum(1) / (~mine).sum(1)
