"""Starting ComfyUI with the pack, and what it answers to a prompt that it refuses."""

import re
from urllib.parse import quote

from kleinkit.harness import server as api
from kleinkit.harness.workflow import WORKFLOWS, read
from PIL import Image

# What ComfyUI says of every pack that it loads, and of the models that it finds.
USUAL = (
    r"(\[INFO\] *)?(Import times for custom nodes:| *\d+\.\d seconds: .*(KleinKit|tiny_text_encoder)|Assets scan.*|"
    # The pack's own word, in a ComfyUI newer than those it was tested with.
    r"KleinKit was tested with ComfyUI up to .*)?"
)


def start_log(server):
    """The lines that a server logged until it listened, without what differs from start to start."""
    log = api.read_log(server.log).partition("To see the GUI go to")[0]
    return {line.replace(str(server.base), "BASE") for line in log.splitlines()}


def test_a_start_with_the_pack_says_nothing_more_than_one_without(server, bare_server):
    usual = start_log(bare_server)
    assert [line for line in start_log(server) - usual if not re.fullmatch(USUAL, line)] == []


def test_every_workflow_is_in_the_template_browser_with_its_thumbnail(server):
    listed = api.get(server, "/workflow_templates")["KleinKit"]
    assert sorted(listed) == sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    for name in listed:
        assert api.get(server, f"/api/workflow_templates/KleinKit/{quote(name)}.json") == read(name)
        with Image.open(WORKFLOWS / f"{name}.jpg") as thumbnail:
            assert thumbnail.format == "JPEG"


def test_readme_lists_every_node(server):
    listed = re.findall(r"^\| `(KleinKit\w+)`", (WORKFLOWS.parent / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(name for name in api.get(server, "/object_info") if name.startswith("KleinKit"))


def test_a_prompt_that_comfyui_refuses_says_why(server):
    outcome = api.queue(
        server,
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 64, "batch_size": 1, "color": 0}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "never"}},
        },
    )
    assert api.sentences(outcome.error) == ["EmptyImage: Value 0 smaller than min of 1: width"]
    assert outcome.outputs == {} and not list(server.base.glob("output/never*"))
