"""Edits of the nano world: a picture, what is asked of it in words, and the picture that is meant."""

from typing import NamedTuple

import numpy as np

from .world import ATTRIBUTES, COLOURS, COUNTS, PLACES, SHAPES, SIZES, among, draw, scenes

ORDER = list(ATTRIBUTES)
# What an edit asks for: one attribute, or the second picture's shape on the first one's background.
KINDS = (*ORDER, "pair")
PAIR = KINDS.index("pair")
BACKGROUND = ORDER.index("background")
TOWARDS = {
    "on the left": "to the left",
    "on the right": "to the right",
    "at the top": "to the top",
    "at the bottom": "to the bottom",
    "in the middle": "to the middle",
}
# How often one of the attributes that an edit should keep is another one, where a batch has drift.
DRIFT = 0.35


class Edits(NamedTuple):
    """N edits: `kind` [N] into `KINDS`; `source`, `second` and `target`, scenes [N, 5]."""

    kind: np.ndarray
    source: np.ndarray
    second: np.ndarray
    target: np.ndarray

    def sentences(self):
        return [sentence(*edit) for edit in zip(*self, strict=True)]


def sentence(kind, source, second, target):
    """What one edit asks for, as “make the circle red”."""
    shape = SHAPES[source[ORDER.index("shape")]]
    if kind == PAIR:
        return "put the shape of the second picture on the first background"
    to = list(ATTRIBUTES[KINDS[kind]])[target[kind]]
    return {
        "size": f"make the {shape} {to}",
        "colour": f"make the {shape} {to}",
        "shape": f"turn the {shape} into a {to}",
        "place": f"move the {shape} {TOWARDS.get(to)}",
        "background": f"make the background {to}",
    }[KINDS[kind]]


def every_sentence():
    """All sentences that there are, in one order."""
    return [
        *(f"make the {shape} {to}" for shape in SHAPES for to in (*SIZES, *COLOURS)),
        *(f"turn the {shape} into a {to}" for shape in SHAPES for to in SHAPES if to != shape),
        *(f"move the {shape} {TOWARDS[to]}" for shape in SHAPES for to in PLACES),
        *(f"make the background {to}" for to in COLOURS),
        sentence(PAIR, (0,) * 5, None, None),
    ]


def invent(count, rng, sources, allowed, kinds=KINDS):
    """Random edits.

    Args:
        count: how many.
        rng: `RandomState`.
        sources: scenes [M, 5] to choose pictures from.
        allowed: boolean of shape `COUNTS`: which scenes may be the result.
        kinds: the names to choose from, all equally often.
    """
    found, missing = [], count
    kinds = np.array([KINDS.index(kind) for kind in kinds])
    while missing > 0:
        kind = kinds[rng.randint(len(kinds), size=4 * count)]
        source, second = (sources[rng.randint(len(sources), size=len(kind))] for _ in range(2))
        target = np.where((kind == PAIR)[:, None], second, source)
        target[kind == PAIR, BACKGROUND] = source[kind == PAIR, BACKGROUND]
        for i, number in enumerate(COUNTS):
            these = kind == i
            target[these, i] = (target[these, i] + rng.randint(1, number, size=these.sum())) % number
        good = allowed[tuple(target.T)] & (target != np.where((kind == PAIR)[:, None], second, source)).any(1)
        found.append([part[good] for part in (kind, source, second, target)])
        missing -= good.sum()
    return Edits(*(np.concatenate(parts)[:count] for parts in zip(*found, strict=True)))


def held_out(count, rng):
    """Edits of any picture, whose results were held out of training."""
    known, unknown = scenes()
    return invent(count, rng, np.concatenate([known, unknown]), among(unknown))


def drawn(edits, rng, target=None):
    """Pictures of edits.

    Args:
        edits: `Edits`.
        rng: `RandomState` that moves and stretches each shape a little. What an edit keeps is moved and stretched alike.
        target: scenes [N, 5] to draw instead of those that are meant.
    Returns:
        `(source, second, target)`, float32 [N, 16, 16, 3] each, colours from −1 to 1.
    """
    one, other = rng.randint(2**31, size=2)
    target = edits.target if target is None else target
    pair = (edits.kind == PAIR)[:, None, None, None]
    return (
        draw(edits.source, np.random.RandomState(one)),
        draw(edits.second, np.random.RandomState(other)),
        np.where(pair, draw(target, np.random.RandomState(other)), draw(target, np.random.RandomState(one))),
    )


def drift(edits, share, rng, allowed):
    """What careless pairs of pictures show: in a share of the edits, attributes that should stay change too.

    Returns:
        Targets [N, 5].
    """
    targets = edits.target.copy()
    for i in np.flatnonzero(rng.uniform(size=len(targets)) < share):
        changed = [rng.randint(n) if rng.uniform() < DRIFT else old for n, old in zip(COUNTS, targets[i], strict=True)]
        if edits.kind[i] != PAIR:
            changed[edits.kind[i]] = targets[i][edits.kind[i]]
        if allowed[tuple(changed)]:
            targets[i] = changed
    return targets
