"""The helper that empties ComfyUI's caches, on a machine that has other things to do."""

import pytest
from kleinkit.harness import server as api

PICTURE = {
    "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
}
BUSY = {"busy": {"class_type": "KleinKitTestBusy", "inputs": {"seconds": 2.0}}}


def cached(server, prompt):
    """The nodes of a prompt whose outputs ComfyUI took from its cache."""
    found = []
    outcome = api.queue(server, prompt, lambda kind, data: found.extend(data["nodes"] if kind == "execution_cached" else ()))
    assert outcome.error is None, api.sentences(outcome.error)
    return found


@pytest.mark.parametrize("meanwhile", [{}, BUSY], ids=["idle", "busy"])
def test_the_next_prompt_runs_all_its_nodes(lab, meanwhile):
    cached(lab, PICTURE)
    assert set(cached(lab, PICTURE | meanwhile)) == set(PICTURE)
    api.forget(lab)
    assert cached(lab, PICTURE) == []
