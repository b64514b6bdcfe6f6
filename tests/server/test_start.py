"""Starting ComfyUI with the pack."""

from kleinkit.nano import server as api


def test_a_prompt_that_comfyui_refuses_says_why(server):
    outcome = api.queue(server, {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "never"}},
    })
    assert api.sentences(outcome.error) == ["EmptyImage: Value 0 smaller than min of 1: width"]
    assert outcome.outputs == {} and not list(server.base.glob("output/never*"))
