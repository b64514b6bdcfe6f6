"""Starting ComfyUI with the pack, and what it answers to a prompt that it refuses."""

import re

from kleinkit.nano import server as api

# What ComfyUI says of every pack that it loads.
USUAL = r"(\[INFO\] *)?(Import times for custom nodes:| *\d+\.\d seconds: .*KleinKit)?"


def start_log(server):
    """The lines that a server logged until it listened, without what differs from start to start."""
    log = api.read_log(server.log).partition("To see the GUI go to")[0]
    return {line.replace(str(server.base), "BASE") for line in log.splitlines()}


def test_a_start_with_the_pack_says_nothing_more_than_one_without(server, tmp_path, comfyui):
    with api.running(comfyui, tmp_path, pack=False) as without:
        usual = start_log(without)
    assert [line for line in start_log(server) - usual if not re.fullmatch(USUAL, line)] == []


def test_a_prompt_that_comfyui_refuses_says_why(server):
    outcome = api.queue(server, {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "never"}},
    })
    assert api.sentences(outcome.error) == ["EmptyImage: Value 0 smaller than min of 1: width"]
    assert outcome.outputs == {} and not list(server.base.glob("output/never*"))
