"""Rows of nano's study that are compared over the same prompts: their intervals, and what these say."""

import re
from pathlib import Path

import numpy as np
import pytest
from guidance_nodes import EVERY_NODE
from kleinkit.nano import build, edit_study, metrics, paired, publish, world

PAGES = Path(__file__).resolve().parents[2] / "web" / "docs"
PROMPTS, SEEDS = 64, 2
# They act at cfg 1, where a distilled model runs.
AT_CFG_1 = {
    "KleinKitImageCFG",
    "KleinKitSkipLayerGuidance",
    "KleinKitSEG",
    "KleinKitAutoGuidance",
    "KleinKitMomentum",
    "KleinKitNAG",
}


@pytest.fixture(scope="module")
def scenes():
    return paired.scenes_of(PROMPTS)


@pytest.fixture(scope="module")
def drawn(scenes):
    return pictures(scenes, 0)


@pytest.fixture(scope="module")
def true(scenes):
    return pictures(scenes, SEEDS)


def pictures(scenes, first):
    return np.stack([paired.true_of(first + seed, 0, scenes) for seed in range(SEEDS)])


def test_a_row_beside_itself_is_as_good(drawn, true, scenes):
    found = paired.compare(drawn, drawn, true, scenes)
    assert found["points"] == [0.0, 0.0, 0.0] and found["ratio"] == pytest.approx([1.0, 1.0, 1.0])
    assert found["right"] >= 0.99
    projected = (np.sort(metrics.projections(np.concatenate(some)), axis=0) for some in (drawn, true))
    assert found["distance"] == pytest.approx(metrics.apart(*projected))
    assert found["attributes"].keys() == set(metrics.SCORED)
    assert np.mean([*found["attributes"].values()]) == pytest.approx(found["right"])
    assert paired.verdict(found) == "yes"


def test_a_row_that_draws_other_shapes_is_not(drawn, true, scenes):
    other = scenes.copy()
    shape = list(world.ATTRIBUTES).index("shape")
    other[: PROMPTS // 2, shape] = (other[: PROMPTS // 2, shape] + 1) % len(world.SHAPES)
    found = paired.compare(pictures(other, 2 * SEEDS), drawn, true, scenes)
    # A quarter of the attributes of half of the prompts.
    assert found["points"][0] == pytest.approx(-12.5, abs=1) and found["points"][2] < -paired.POINTS
    assert paired.verdict(found) == "no"


def test_a_sheet_brings_the_pictures_back(drawn, tmp_path):
    seen = np.rint(255 * drawn).astype(np.uint8) / 255
    paired.to_sheet(drawn).save(tmp_path / "sheet.png")
    np.testing.assert_array_equal(paired.from_sheet(tmp_path / "sheet.png", SEEDS), seen)


def test_the_interval_is_that_of_a_mean(scenes):
    values = np.random.RandomState(1).standard_normal(PROMPTS)
    value, low, high = paired.interval_of(lambda chosen: float(values[chosen].mean()), scenes)
    assert value == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * paired.NORMAL * values.std() / PROMPTS**0.5, rel=0.1)


def test_pictures_of_one_prompt_do_not_count_as_several(scenes):
    values = np.random.RandomState(1).standard_normal(PROMPTS)
    many = np.tile(values, 2)
    once = paired.interval_of(lambda chosen: float(values[chosen].mean()), scenes)
    twice = paired.interval_of(lambda chosen: float(many[chosen].mean()), np.tile(scenes, (2, 1)))
    assert twice == pytest.approx(once)


@pytest.mark.parametrize(
    "points, ratio, says",
    [
        ([0.0, -0.9, 0.9], [1.0, 0.99, 1.01], "yes"),
        ([0.0, -1.1, 1.1], [1.0, 0.99, 1.01], "open"),
        ([0.0, -0.9, 0.9], [1.0, 0.97, 1.03], "open"),
        ([-2.0, -2.5, -1.5], [1.0, 0.99, 1.01], "no"),
        ([0.0, -0.9, 0.9], [1.1, 1.05, 1.15], "no"),
    ],
)
def test_a_verdict_needs_its_interval(points, ratio, says):
    assert paired.verdict({"points": points, "ratio": ratio}) == says


def test_more_prompts_begin_with_the_same_ones():
    few, many = paired.scenes_of(40), paired.scenes_of(700)
    assert (many[:40] == few).all()
    held_out = {tuple(scene) for scene in world.scenes()[1]}
    assert {tuple(scene) for scene in many} == held_out


def test_every_table_s_rows_differ():
    for rows in paired.TABLES.values():
        assert len({repr(row) for row in rows.values()}) == len(rows)


@pytest.mark.parametrize(
    "table, title, other",
    [
        (paired.TABLES["steps"], "10 steps: static shift", "10 steps"),
        (paired.TABLES["steps"], "10 steps", "20 steps"),
        (paired.TABLES["guiders"], "slerp, cap 20", "CFG"),
        (edit_study.TABLES["image_cfg"], "cfg 4: image_scale 0", "cfg 4"),
        (edit_study.TABLES["cfg"], "base, cfg 4: every 4, reuse, diminishing 0.3", "base, cfg 4"),
    ],
)
def test_what_a_row_is_compared_with(table, title, other):
    assert title in table and paired.beside(table, title) == other


# Presets are stacks of the other nodes; nano has no fine-tuned model beside its base.
WITHOUT_A_ROW = {"KleinKitGuidance", "KleinKitBaseUncond"}


@pytest.mark.parametrize("role, missing", [("base", {"KleinKitNAG"}), ("distilled", EVERY_NODE.keys() - AT_CFG_1)])
def test_every_rule_has_a_row(role, missing):
    tables = *paired.TABLES.values(), *edit_study.TABLES.values()
    measured = {node for rows in tables for row in rows.values() if row.role == role for node, _ in row.nodes}
    assert measured == EVERY_NODE.keys() - missing - WITHOUT_A_ROW


@pytest.fixture
def result(drawn, true, scenes):
    return paired.compare(drawn, drawn, true, scenes) | {"passes": 40.0}


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ({"64 × 1": "today", "512 × 3": "earlier"}, "| CFG | 64 × 1 |"),
        ({"64 × 1": "today", "256 × 1": "today"}, "| CFG | 256 × 1 |"),
        ({"64 × 1": "earlier", "256 × 1": "earlier"}, "| CFG (earlier weights) | 256 × 1 |"),
    ],
)
def test_a_table_shows_todays_weights_or_says_that_they_are_not(sizes, shown, result, monkeypatch):
    weights = {"today": build.digest("base"), "earlier": "another"}
    results = {size: {"CFG": result | {"weights": weights[of]}} for size, of in sizes.items()}
    monkeypatch.setattr(paired, "results_of", lambda name: results)
    assert shown in publish.paired_table("guiders")


def test_help_pages_say_what_was_measured():
    measured = {f"{100 * one.found['right']:.1f}" for name in paired.TABLES for one in publish.best_of(name)}
    pages = {page: set(re.findall(r"(\d+\.\d)%", page.read_text("utf-8"))) for page in PAGES.rglob("*.md")}
    assert {page.relative_to(PAGES): said - measured for page, said in pages.items() if said - measured} == {}
    assert sum(map(bool, pages.values())) >= 3 * 6
