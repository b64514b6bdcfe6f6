"""The demo's workflow over the API queue."""

import numpy as np
import pytest
from kleinkit.harness import server as api
from kleinkit.harness.demo import first_picture
from kleinkit.harness.workflow import as_prompt
from PIL import Image

STEPS = 8


@pytest.fixture(scope="module")
def runs(server):
    """The workflow queued twice, each time with nothing left of what ran before: (picture, sampler's progress, log)."""
    runs = []
    for _ in range(2):
        prompt, progress = as_prompt(first_picture()), []
        [(sampler, node)] = [(key, node) for key, node in prompt.items() if node["class_type"] == "KSampler"]
        node["inputs"]["steps"] = STEPS

        def listen(kind, data, progress=progress):
            if kind == "progress":
                progress.append((data["node"], data["value"], data["max"]))

        api.forget(server)
        outcome = api.queue(server, prompt, listen)
        assert outcome.error is None, api.sentences(outcome.error)
        [picture] = api.pictures(server, outcome)
        steps = [(value, of) for node, value, of in progress if node == sampler]
        runs.append((np.asarray(Image.open(picture)), steps, outcome.log))
    return runs


def test_queued_twice_with_the_same_pixels(runs):
    (first, *_), (second, *_) = runs
    assert np.array_equal(first, second)


def test_both_times_the_sampler_ran(runs):
    for _, steps, log in runs:
        assert steps[-1] == (STEPS, STEPS)
        assert log.count(f"tokens and {STEPS} steps.") == 1


def test_picture_has_the_size_of_the_latent_and_is_not_flat(runs):
    picture = runs[0][0]
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 5
