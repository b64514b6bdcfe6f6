"""The metrics of the nano world: what true pictures, noise and wrong pictures score."""

import numpy as np
import pytest
from kleinkit.nano import metrics, world

COUNT = 256
NOISE = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


@pytest.fixture(scope="module")
def rng():
    return np.random.RandomState(1)


@pytest.fixture(scope="module")
def scenes(rng):
    return np.concatenate(world.scenes())[rng.choice(1500, COUNT, replace=False)]


@pytest.fixture(scope="module")
def true(scenes, rng):
    return metrics.from_signed(world.draw(scenes, rng))


@pytest.fixture(scope="module")
def noisy(true, rng):
    noise = rng.standard_normal(true.shape)
    return [np.clip(true + amount * noise, 0, 1) for amount in NOISE]


def test_every_true_picture_is_right():
    scenes = np.concatenate(world.scenes())
    shares = metrics.adherence(metrics.from_signed(world.draw(scenes, np.random.RandomState(2))), scenes)
    assert min(shares.values()) >= 0.99


@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_noise_is_not(noise, scenes, rng):
    pictures = rng.uniform(0, 1, (COUNT, 16, 16, 3)) if noise == "uniform" else rng.normal(0.5, 0.5, (COUNT, 16, 16, 3))
    assert metrics.adherence(np.clip(pictures, 0, 1), scenes)["all"] <= 0.25


def test_adherence_falls_with_noise(noisy, scenes):
    shares = [metrics.adherence(pictures, scenes)["all"] for pictures in noisy]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] <= 0.25


def test_distance_grows_with_noise(noisy, true):
    real, *worse = (np.sort(metrics.projections(pictures), axis=0) for pictures in (true, *noisy))
    distances = [metrics.apart(some, real) for some in worse]
    assert distances[0] == 0
    assert distances == sorted(distances)


@pytest.mark.parametrize("attribute", metrics.SCORED)
def test_a_wrong_attribute_is_wrong_and_the_others_stay_right(attribute, scenes, rng):
    column, size = list(world.ATTRIBUTES).index(attribute), len(world.ATTRIBUTES[attribute])
    drawn = scenes.copy()
    # Never to the other colour of the picture, which could not be seen.
    for scene in drawn:
        scene[column] = next(
            value
            for step in range(1, size)
            if (value := (scene[column] + step) % size) not in scene[[1, 4]] or attribute not in ("colour", "background")
        )
    shares = metrics.adherence(metrics.from_signed(world.draw(drawn, rng)), scenes)
    assert shares.pop(attribute) == 0
    shares.pop("all")
    assert min(shares.values()) >= 0.99


def test_pixels_are_read_by_their_cells(true):
    pixels = true.repeat(world.CELL, 1).repeat(world.CELL, 2)
    assert np.allclose(metrics.cells(pixels), true)


def test_held_out_scenes_are_a_fifth_and_no_training_scene():
    known, unknown = (set(map(tuple, scenes[:, 1:])) for scenes in world.scenes())
    assert not known & unknown
    assert len(unknown) == world.HELD_OUT * len(known | unknown)
