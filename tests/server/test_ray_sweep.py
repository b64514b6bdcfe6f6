"""A sweep that Ray splits over several ComfyUI servers, one of which ends in the middle, loses nothing."""

import contextlib
import json
import re
import threading
import time

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api
from kleinkit.harness.workflow import as_prompt, read
from kleinkit.nano.build import build
from kleinkit.remote.ray_sweep import main, split, waiting
from PIL import Image

VALUES = "1:10, 20, 50"
LABELS = [*map(str, range(1, 11)), "20", "50"]
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def study():
    """The guidance study as a prompt of two steps."""
    study = prompts.of_workflow("7 Klein Guidance Study", steps=2, values=VALUES)
    # What saves the pictures one by one: the command does that by itself.
    del study["10"]
    return study


def test_a_sweep_survives_a_server_that_ends(server, study, tmp_path, comfyui, capsys):
    wanted = prompts.run(server, study)
    file, out = tmp_path / "study.json", tmp_path / "out"
    file.write_text(json.dumps(study), "utf-8")
    build(tmp_path / "models", comfyui)
    with contextlib.ExitStack() as second:
        doomed = second.enter_context(api.running(comfyui, tmp_path))

        def end_it():
            # In the middle: it has made a picture, and has work to do.
            while api.read_log(doomed.log).count("Prompt executed") < 1 or not waiting(doomed.url):
                time.sleep(0.02)
            second.close()

        thread = threading.Thread(target=end_it)
        thread.start()
        assert not main([str(file), "--servers", NOWHERE, doomed.url, server.url, "--out", str(out)])
        thread.join()
    lines = re.findall(r"^(\d+) of 12: (\d+) from (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == [*range(1, 13)]
    assert sorted(label for _, label, _ in lines) == sorted(LABELS)
    # It took prompts that another server has finished.
    assert [url for _, _, url in lines].count(doomed.url) < api.read_log(doomed.log).count("got prompt")
    assert {path.name for path in out.iterdir()} == {*(f"{label}-0.png" for label in LABELS), "sheet.png"}
    # A picture that was read from a file may differ by one from one that was not.
    assert np.abs(np.asarray(Image.open(out / "sheet.png")).astype(int) - wanted).max() <= 1


def test_prompts_of_a_sweep(study):
    made = split(study)
    assert list(made) == LABELS
    for text, prompt in made.items():
        assert [node["inputs"] for node in prompt.values() if node["class_type"] == "KleinKitSweep"] == [{"values": text}]
        [save] = [node for node in prompt.values() if node["class_type"] == "SaveImage"]
        assert prompt[save["inputs"]["images"][0]]["class_type"] == "VAEDecode"


def test_a_workflow_without_a_sweep_is_refused():
    with pytest.raises(ValueError, match="^Expected a workflow with one KleinKitSweep, but got 0"):
        split(as_prompt(read("1 Klein First Picture")))
