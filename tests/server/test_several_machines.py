"""More than one ComfyUI: all state is in the prompt, so every server gives the same pixels."""

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api
from kleinkit.harness.workflow import names
from PIL import Image


def run(server, prompt):
    """The pixels of what a prompt saves; not of reports, which show the time."""
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    kept = {
        number: output
        for number, output in outcome.outputs.items()
        if prompt[prompt[number]["inputs"].get("images", [number])[0]]["class_type"] != "KleinKitReport"
    }
    found = [np.asarray(Image.open(path)) for path in api.pictures(server, outcome._replace(outputs=kept))]
    assert found
    return found


@pytest.mark.parametrize("name", names())
def test_two_servers_give_the_same_pixels(server, lab, name):
    prompt = prompts.of_workflow(name, steps=2, values="1, 4")
    for one, other in zip(run(server, prompt), run(lab, prompt), strict=True):
        assert np.array_equal(one, other)
