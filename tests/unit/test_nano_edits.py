"""Edits of the nano world: what they ask for, what they keep, and what reads that from pictures."""

import numpy as np
import pytest
from kleinkit.nano import edit_study, edits, metrics, paired, world

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


@pytest.fixture(scope="module")
def bench(some):
    return edit_study.Bench(some, *edits.drawn(some, np.random.RandomState(0)), texts={}, empty=None)


def test_an_outcome_says_of_each_edit_what_the_metric_says(bench, some):
    found = edit_study.outcome(bench, metrics.from_signed(bench.source))
    asked, kept = metrics.as_asked(metrics.from_signed(bench.source), some)
    assert [digit == "1" for digit in found["asked"]] == list(asked)
    assert [int(digit) / 4 for digit in found["kept"]] == list(kept)
    assert edit_study.outcome(bench, metrics.from_signed(bench.target))["pixels"] == 0


def outcomes(*asked, kept="4444"):
    return [{"asked": one, "kept": kept, "pixels": 0.25, "passes": 40.0} for one in asked]


def test_rows_of_edits_are_compared_edit_by_edit():
    pair = np.array([True, False, True, False])
    found = edit_study.compare(outcomes("1110", "1100", kept="4420"), outcomes("1000", "1000"), pair)
    assert (found["asked"], found["kept"], found["pixels"], found["passes"]) == (0.625, 0.625, 0.25, 40)
    assert found["asked_points"][0] == 37.5 and found["kept_points"][0] == -37.5
    assert found["pair"] == 0.75 and found["pair_points"][0] == 25
    same = edit_study.compare(outcomes("1010"), outcomes("1010"), pair)
    assert same["asked_points"] == same["pair_points"] == [0, 0, 0]


def test_seeds_of_one_edit_do_not_count_as_several():
    rng = np.random.RandomState(0)
    ours, theirs = ("".join(map(str, rng.randint(2, size=COUNT))) for _ in range(2))
    kept, pair = "4" * COUNT, np.arange(COUNT) < COUNT // 2
    once = edit_study.compare(outcomes(ours, kept=kept), outcomes(theirs, kept=kept), pair)
    twice = edit_study.compare(outcomes(ours, ours, kept=kept), outcomes(theirs, theirs, kept=kept), pair)
    assert twice["asked_points"] == pytest.approx(once["asked_points"])
    apart = np.array([100 * (int(a) - int(b)) for a, b in zip(ours, theirs, strict=True)])
    for name, these in (("asked_points", apart), ("pair_points", apart[pair])):
        _, low, high = once[name]
        assert high - low == pytest.approx(2 * paired.NORMAL * these.std() / len(these) ** 0.5, rel=0.1)


def test_an_outcome_that_is_known_is_not_drawn_again(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    row, known = edit_study.Row(), outcomes("1")[0]
    paired.write(edit_study.OUTCOMES, paired.file_name(row, COUNT), {"0": known})

    def load(role):
        raise RuntimeError(role)

    assert edit_study.outcome_of(bench, row, 0, load) == known
    with pytest.raises(RuntimeError, match="base"):
        edit_study.outcome_of(bench, row, 1, load)
    with pytest.raises(RuntimeError, match="base"):
        edit_study.outcome_of(bench, row._replace(cfg=3), 0, load)
