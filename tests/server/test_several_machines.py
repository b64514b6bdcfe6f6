"""More than one ComfyUI: all state is in the prompt, so every server gives the same pixels."""

import numpy as np
import pytest
from kleinkit.harness import server as api
from kleinkit.harness.workflow import names
from PIL import Image


def pixels(server, prompt, outcome):
    """The pixels of what a prompt saved; not of reports, which show the time."""
    kept = {
        number: output
        for number, output in outcome.outputs.items()
        if prompt[prompt[number]["inputs"].get("images", [number])[0]]["class_type"] != "KleinKitReport"
    }
    found = [np.asarray(Image.open(path)) for path in api.pictures(server, outcome._replace(outputs=kept))]
    assert found
    return found


@pytest.mark.parametrize("name", names())
def test_two_servers_give_the_same_pixels(server, lab, ran, of_workflow, name):
    prompt = of_workflow(name)
    outcome = api.queue(lab, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    for one, other in zip(pixels(server, prompt, ran(name)), pixels(lab, prompt, outcome), strict=True):
        assert np.array_equal(one, other)
