"""Edits of the nano world: what they ask for, what they keep, and what reads that from pictures."""

import numpy as np
import pytest
from kleinkit.nano import edits, metrics, world

COUNT = 200


@pytest.fixture(scope="module")
def some():
    return edits.held_out(COUNT, np.random.RandomState(0))


def test_results_were_held_out_of_training(some):
    held_out = {tuple(scene) for scene in world.scenes()[1]}
    assert {tuple(scene) for scene in some.target} <= held_out
    assert set(some.kind) == set(range(len(edits.KINDS)))


def test_an_edit_changes_what_it_asks_for_and_nothing_else(some):
    for kind, source, second, target in zip(*some, strict=True):
        if kind == edits.PAIR:
            assert target[edits.BACKGROUND] == source[edits.BACKGROUND]
            assert list(np.delete(target, edits.BACKGROUND)) == list(np.delete(second, edits.BACKGROUND))
        else:
            assert [i for i in range(len(target)) if source[i] != target[i]] == [kind]


def test_every_sentence_is_known_once(some):
    known = edits.every_sentence()
    assert len(known) == len(set(known))
    assert set(some.sentences()) <= set(known)


def test_a_sentence_says_what_changes():
    source = np.array([0, 0, 0, 0, 1])  # a small red circle on the left, on a green background
    for kind, value, says in (
        ("size", 1, "make the circle large"),
        ("colour", 2, "make the circle blue"),
        ("shape", 4, "turn the circle into a star"),
        ("place", 1, "move the circle to the right"),
        ("background", 3, "make the background yellow"),
    ):
        target = source.copy()
        target[edits.ORDER.index(kind)] = value
        assert edits.sentence(edits.KINDS.index(kind), source, source, target) == says


def test_what_an_edit_keeps_stays_to_the_pixel(some):
    source, second, target = edits.drawn(some, np.random.RandomState(0))
    of = {name: some.kind == edits.KINDS.index(name) for name in edits.KINDS}
    corner = (slice(None), 0, 0)
    assert np.array_equal(source[of["colour"]][corner], target[of["colour"]][corner])
    # Covered alike: where one differs from its corner, so does the other.
    assert np.array_equal(*((part[of["background"]] != part[of["background"]][:, :1, :1]).any(-1) for part in (source, target)))
    assert np.array_equal(*((part[of["pair"]] != part[of["pair"]][:, :1, :1]).any(-1) for part in (second, target)))


def test_true_results_score_everything_and_sources_nothing(some):
    source, _, target = (metrics.from_signed(part) for part in edits.drawn(some, np.random.RandomState(0)))
    found = metrics.edited(target, target, some)
    assert found["asked"] >= 0.99 and found["kept"] >= 0.99 and found["pixels"] == 0
    one = some.kind != edits.PAIR
    unchanged = metrics.edited(source[one], target[one], edits.Edits(*(part[one] for part in some)))
    assert unchanged["asked"] <= 0.01 and unchanged["kept"] >= 0.99


def test_a_wrong_result_is_told_by_what_is_wrong(some):
    colour = edits.ORDER.index("colour")
    these = some.kind == edits.KINDS.index("place")
    place = edits.Edits(*(part[these] for part in some))
    wrong = place.target.copy()
    wrong[:, colour] = (wrong[:, colour] + 1) % len(world.COLOURS)
    visible = wrong[:, colour] != wrong[:, edits.BACKGROUND]
    found = metrics.edited(*[metrics.from_signed(world.draw(wrong[visible]))] * 2, edits.Edits(*(p[visible] for p in place)))
    assert found["asked"] >= 0.99
    # One of four.
    assert found["kept"] == pytest.approx(0.75, abs=0.01)


def test_drift_changes_what_should_stay_but_never_what_is_asked(some):
    allowed = np.ones(world.COUNTS, bool)
    drifted = edits.drift(some, 0.5, np.random.RandomState(0), allowed)
    changed = drifted != some.target
    assert 0.2 <= changed.any(1).mean() <= 0.5
    one = some.kind != edits.PAIR
    assert not changed[one][np.arange(one.sum()), some.kind[one]].any()
    assert np.array_equal(edits.drift(some, 0.0, np.random.RandomState(0), allowed), some.target)
