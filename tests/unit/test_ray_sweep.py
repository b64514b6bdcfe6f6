"""The sweep command: what it makes of a workflow, and what it refuses before anything runs."""

import json

import pytest
from kleinkit.harness.workflow import WORKFLOWS
from kleinkit.remote.ray_sweep import check_sheets, contact_sheet, main, read_prompt, split
from PIL import Image

SWEEP = {"class_type": "KleinKitSweep", "inputs": {"values": "1, 2.5, 1, -0"}}
SAMPLER = {"class_type": "KSampler", "inputs": {"cfg": ["sweep", 0], "seed": 1}}
PICTURE = {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0]}}
SHEET = {
    "class_type": "KleinKitContactSheet",
    "inputs": {"images": ["picture", 0], "labels": ["sweep", 1], "columns": 2, "title": "cfg"},
}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["sheet", 0], "filename_prefix": "KleinKit"}}
STUDY = {"sweep": SWEEP, "sampler": SAMPLER, "picture": PICTURE, "sheet": SHEET, "save": SAVE}


def with_inputs(node, **inputs):
    return {**STUDY, node: {**STUDY[node], "inputs": STUDY[node]["inputs"] | inputs}}


def test_each_value_is_a_prompt_also_one_that_comes_again():
    prompts = split(STUDY)
    assert [(name, prompt["sweep"]["inputs"]) for name, prompt in prompts.items()] == [
        ("1", {"values": "1"}),
        ("2.5", {"values": "2.5"}),
        ("1 (2)", {"values": "1"}),
        ("0", {"values": "0"}),
    ]


def test_in_place_of_a_sheet_its_pictures_are_saved_and_nothing_is_made_of_the_sheet():
    scaled = {"class_type": "ImageScale", "inputs": {"image": ["sheet", 0]}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["scaled", 0]}}
    beside = {"class_type": "PreviewImage", "inputs": {"images": ["picture", 0], "other": {"__value__": ["sheet", 0]}}}
    prompt = STUDY | {"scaled": scaled, "shown": shown, "beside": beside}
    for made in split(prompt).values():
        assert made["sheet"]["class_type"] == "SaveImage" and made["sheet"]["inputs"]["images"] == ["picture", 0]
        assert made.keys() == {"sweep", "sampler", "picture", "sheet", "beside"}
        assert [made[key] for key in ("sampler", "picture", "beside")] == [SAMPLER, PICTURE, beside]


def test_the_sheet_shows_the_label_of_each_value_where_it_has_labels():
    pictures = [[Image.new("RGB", (100, 100))] for _ in range(4)]
    labelled = contact_sheet(STUDY, "sheet", pictures)
    inputs = {name: value for name, value in SHEET["inputs"].items() if name != "labels"}
    plain = contact_sheet({**STUDY, "sheet": {**SHEET, "inputs": inputs}}, "sheet", pictures)
    assert labelled.height > plain.height
    check_sheets({**STUDY, "sheet": {**SHEET, "inputs": inputs}})


def test_the_pictures_of_a_value_may_differ_in_size():
    """A list of pictures of several sizes runs in one prompt, and no shape of one tensor holds them."""
    pictures = [[Image.new("RGB", (100, 100)), Image.new("RGB", (64, 120))] for _ in range(4)]
    page = contact_sheet(STUDY, "sheet", pictures)
    # Two columns and four rows of cells.
    assert page.width > 2 * 100 and page.height > 4 * 120


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ({"save": SAVE}, "Expected a workflow with one Klein Sweep, but got 0."),
        ({**STUDY, "more": SWEEP}, "Expected a workflow with one Klein Sweep, but got 2."),
        (
            with_inputs("sweep", values=["text", 0]),
            "Klein Sweep: Expected `values` to be typed into the node, not connected, but got ['text', 0].",
        ),
        (with_inputs("sweep", values="1, two"), "Klein Sweep: Expected `values` to be finite numbers or ranges"),
        (
            with_inputs("sheet", columns=["sampler", 0]),
            "Klein Contact Sheet (sheet): Expected `columns` to be typed into the node, not connected",
        ),
        (
            with_inputs("sheet", columns=65),
            "Klein Contact Sheet (sheet): Expected `columns` to be a whole number between 1 and",
        ),
        (with_inputs("sheet", title="x" * 1001), "Klein Contact Sheet (sheet): Expected `title` to be at most 1000 characters"),
        (
            with_inputs("sheet", labels=["sampler", 0]),
            "Klein Contact Sheet (sheet): Expected `labels` to be connected to `label` of Klein Sweep, or to nothing, but got",
        ),
        (with_inputs("sheet", images="none"), "Klein Contact Sheet (sheet): Expected `images` to be connected to pictures"),
        (
            {**STUDY, "second": {**SHEET, "inputs": SHEET["inputs"] | {"images": ["sheet", 0]}}},
            "Klein Contact Sheet (second): Expected `images` to be connected to pictures, not to another sheet",
        ),
        (
            with_inputs("picture", samples=["gone", 0]),
            "`samples` of VAEDecode (picture) is linked to node gone, which is not there.",
        ),
        (
            with_inputs("sampler", steps=["sweep", 2]),
            "Klein Sweep: Expected `values` to be whole numbers for `steps` of KSampler (sampler), but got 2.5.",
        ),
        (with_inputs("sampler", cfg=4.0), "Nothing goes by Klein Sweep: connect `value` to cfg"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_said_before_a_server_is_asked(tmp_path, prompt, sentence):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(prompt), "utf-8")
    with pytest.raises(SystemExit) as ended:
        main([str(file), "--servers", "http://127.0.0.1:1", "--out", str(tmp_path / "out")])
    assert str(ended.value).startswith(sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_the_editors_own_format_is_refused_with_the_way_out(path):
    """Only the editor knows what muted and bypassed nodes, subgraphs, reroutes and primitives come to."""
    with pytest.raises(ValueError, match=r"is a workflow in the editor's format\. Open it in ComfyUI, choose File → Export"):
        read_prompt(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '"text"', '{"1": 2}', '{"1": {"class_type": "A"}}', '{"prompt": {}}'])
def test_a_file_that_is_no_prompt(tmp_path, text):
    file = tmp_path / "no.json"
    file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match="no.json (cannot be read as JSON|is not a workflow in API format)"):
        read_prompt(file)


def test_a_file_with_a_mark_of_utf_8(tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(STUDY), "utf-8-sig")
    assert read_prompt(file) == STUDY


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_prompt(tmp_path / "no.json")
