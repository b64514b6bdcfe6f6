"""A sweep that Ray splits over several ComfyUI servers, one of which ends in the middle, loses nothing."""

import contextlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api
from kleinkit.remote.ray_sweep import main
from kleinkit.remote.slot import waiting
from PIL import Image

VALUES = "1:5, 20, 50"
LABELS = [*map(str, range(1, 6)), "20", "50"]
NOWHERE = "http://127.0.0.1:1"


def of_type(prompt, kind):
    """The one node of a type."""
    [node] = [node for node in prompt.values() if node["class_type"] == kind]
    return node


@pytest.fixture
def study():
    """The guidance study as a prompt of small pictures and one step."""
    study = prompts.of_workflow("15 Klein Guidance Study", steps=1, width=64, height=64, values=VALUES)
    # What saves the pictures one by one: the command does that by itself.
    del study["10"]
    return study


@contextlib.contextmanager
def busy(server):
    """Inside, the server is at work on another prompt, until that is interrupted."""
    at_work = threading.Event()
    with ThreadPoolExecutor(1) as other:
        run = other.submit(api.queue, server, prompts.WAIT, lambda kind, data: kind == "executing" and at_work.set())
        assert at_work.wait(60)
        try:
            yield
        finally:
            prompts.interrupt(server)
        assert api.sentences(run.result().error) == ["KleinKitTestWait: interrupted"]


def test_a_sweep_survives_a_server_that_ends(lab, study, family, tmp_path, comfyui, capsys):
    wanted = prompts.run(lab, study)
    file, out = tmp_path / "study.json", tmp_path / "out"
    file.write_text(json.dumps(study), "utf-8")
    with contextlib.ExitStack() as second, busy(lab), ThreadPoolExecutor(1) as killer:
        base = family("doomed", prompts.FAULT_PACK)
        doomed, over = second.enter_context(api.running(comfyui, base)), threading.Event()
        held = second.enter_context(contextlib.ExitStack())
        held.enter_context(busy(doomed))

        def until(so):
            while not over.is_set() and not so():
                time.sleep(0.02)

        def end_it():
            # In the middle: it has made a picture, and has work to do, however slow the machine is. It is held until it has
            # two prompts of the sweep, numbers 1 and 2, and does not come to the second one.
            try:
                until(lambda: waiting(doomed.url) >= 3)
                prompts.put_between(doomed, 1.5, prompts.WAIT)
                held.close()
                until(lambda: api.read_log(doomed.log).count("Prompt executed") >= 2)
            finally:
                second.close()
                prompts.interrupt(lab)

        end = killer.submit(end_it)
        try:
            assert not main([str(file), "--servers", NOWHERE, doomed.url, lab.url, "--out", str(out)])
        finally:
            over.set()
        end.result()
    lines = re.findall(r"^(\d+) of 7: (\d+) from (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == [*range(1, len(LABELS) + 1)]
    assert sorted(label for _, label, _ in lines) == sorted(LABELS)
    # It took prompts that another server has finished, beside the two that held it.
    assert [url for _, _, url in lines].count(doomed.url) < api.read_log(doomed.log).count("got prompt") - 2
    assert {path.name for path in out.iterdir()} == {*(f"{label}-0.png" for label in LABELS), "sheet.png"}
    # A picture that was read from a file may differ by one from one that was not.
    assert np.abs(np.asarray(Image.open(out / "sheet.png")).astype(int) - wanted).max() <= 1


@pytest.fixture
def refused(tmp_path, capsys):
    """Run the command on a prompt that it must refuse; what it says. Nothing may run, and nothing be written."""

    def refused(prompt, *servers):
        file, out = tmp_path / "study.json", tmp_path / "out"
        file.write_text(json.dumps(prompt), "utf-8")
        with pytest.raises(SystemExit) as ended:
            main([str(file), "--servers", *servers, "--out", str(out)])
        assert not out.exists()
        return str(ended.value)

    return refused


def test_two_sheets_and_a_value_that_comes_twice(server, study, tmp_path, capsys):
    """One sheet shows the pictures and one their negatives; each value is there as often as it was written."""
    of_type(study, "KleinKitSweep")["inputs"]["values"] = "4, 1, 4"
    sheet = next(number for number, node in study.items() if node["class_type"] == "KleinKitContactSheet")
    negative = {"class_type": "ImageInvert", "inputs": {"image": study[sheet]["inputs"]["images"]}}
    # The second sheet has no labels.
    second = {"class_type": "KleinKitContactSheet", "inputs": dict(images=["negative", 0], columns=1, title="")}
    shown = {"class_type": "PreviewImage", "inputs": dict(images=["second", 0])}
    study |= {"negative": negative, "second": second, "shown": shown}
    outcome = api.queue(server, study)
    wanted = {path.parent.name: np.asarray(Image.open(path)) for path in api.pictures(server, outcome)}
    file, out = tmp_path / "study.json", tmp_path / "out"
    file.write_text(json.dumps(study), "utf-8")
    assert not main([str(file), "--servers", server.url, "--out", str(out)])
    names = ["4", "1", "4 (2)"]
    sheets = {f"sheet-{sheet}.png": wanted["output"], "sheet-second.png": wanted["temp"]}
    assert {path.name for path in out.iterdir()} == {f"{name}-{i}.png" for name in names for i in (0, 1)} | sheets.keys()
    for file, pixels in sheets.items():
        assert np.abs(np.asarray(Image.open(out / file)).astype(int) - pixels).max() <= 1
    assert (out / "4-0.png").read_bytes() != (out / "1-0.png").read_bytes()


def test_a_server_without_a_node_is_named_before_anything_runs(server, study, refused):
    study["other"] = {"class_type": "NodeOfAnotherPack", "inputs": {}}
    before = api.read_log(server.log).count("got prompt")
    assert refused(study, server.url) == (
        f"{server.url} does not have the node NodeOfAnotherPack: install its pack there, or leave the server out."
    )
    assert api.read_log(server.log).count("got prompt") == before


def test_a_node_without_an_input_is_named_before_anything_runs(server, study, refused):
    del of_type(study, "VAEDecode")["inputs"]["vae"]
    before = api.read_log(server.log).count("got prompt")
    sentence = refused(study, server.url)
    assert sentence.startswith("VAEDecode (") and sentence.endswith(") lacks `vae`: connect it, or type it in.")
    assert api.read_log(server.log).count("got prompt") == before


def test_a_workflow_that_saves_nothing_is_refused(server, study, refused):
    kept = {k: node for k, node in study.items() if node["class_type"] not in ("SaveImage", "KleinKitContactSheet")}
    assert refused(kept, server.url).startswith("No node of the workflow saves or shows a picture")


def test_servers_that_do_not_answer(study, refused):
    assert refused(study, NOWHERE) == f"None of the servers answers: {NOWHERE}."
