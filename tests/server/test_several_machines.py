"""More than one ComfyUI: all state is in the prompt, so every server gives the same pixels."""

import numpy as np
import pytest
from kleinkit.nano import server as api
from kleinkit.nano.workflow import as_prompt, for_nano, names, read
from PIL import Image


def small(name):
    """A workflow of the pack as a prompt of two steps."""
    prompt = as_prompt(for_nano(read(name)))
    for node in prompt.values():
        node["inputs"] |= {key: few for key, few in (("steps", 2), ("values", "1, 4")) if key in node["inputs"]}
    return prompt


def run(server, prompt):
    """The pixels of what a prompt saves; not of reports, which show the time."""
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    kept = {number: output for number, output in outcome.outputs.items()
            if prompt[prompt[number]["inputs"].get("images", [number])[0]]["class_type"] != "KleinKitReport"}
    found = [np.asarray(Image.open(path)) for path in api.pictures(server, outcome._replace(outputs=kept))]
    assert found
    return found


@pytest.mark.parametrize("name", names())
def test_two_servers_give_the_same_pixels(server, lab, name):
    prompt = small(name)
    for one, other in zip(run(server, prompt), run(lab, prompt), strict=True):
        assert np.array_equal(one, other)
