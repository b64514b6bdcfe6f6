"""`tasks.py bench gpu --small` runs whole on a CPU, so that it works on the day a GPU is there."""

import inspect
import json
import math
import os
import subprocess
import sys
import time

import kleinkit_tasks as tasks
import pytest
import torch
from host_reads import host_reads

KLEIN_AT_CFG_4 = "a small Klein, 64×64, cfg 4"
GROUPS = {
    "a small Qwen3, 512 tokens": 2,
    KLEIN_AT_CFG_4: 18,
    "a small Klein, 64×64, cfg 1": 6,
    "a small Klein, 64×64, runs of 4 steps": 6,
    "a small Klein, 64×64, with a reference picture": 2,
    "a small Klein, 64×64, with a second model": 2,
    "a small Klein, 128×128, cfg 4": 4,
    "a small Klein, 128×128, cfg 1": 3,
    "FLUX 3 Klein's stand-in, 64×64, cfg 4": 4,
    "a small Klein, 64×64, torch.compile (eager)": 5,
}


@pytest.fixture(scope="module")
def done(comfyui):
    """What the command printed, and what it wrote."""
    command = [sys.executable, str(tasks.ROOT / "tasks.py"), "bench", "gpu", "--small", "--comfyui", str(comfyui)]
    ran = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, json.loads((tasks.REPORTS / "gpu-small.json").read_text("utf-8"))


def test_every_group_is_measured_whole(done):
    said, record = done
    rows = {}
    for line in record["rows"]:
        rows.setdefault(line["group"], set()).add(line["row"])
    assert {group: len(names) for group, names in rows.items()} == GROUPS and record["left_out"] == {}
    for line in record["rows"]:
        assert math.isfinite(line["ms"]) and line["ms"] > 0 and len(line["samples"]) > 0, line["row"]
        assert line["group"] in said and f"  {line['row']}" in said


def test_the_record_says_on_what(done):
    _, record = done
    assert record["card"] == "none, a CPU" and record["torch"] == torch.__version__ and record["small"]
    assert {"system", "python", "comfyui", "kleinkit", "attention", "matrix_peak", "missing"} <= record.keys()


def test_ratios_are_of_the_medians_in_the_record(done):
    _, record = done
    ms = {(line["group"], line["row"]): line["ms"] for line in record["rows"]}
    beside = [line for line in record["rows"] if "of" in line]
    assert len(beside) > len(GROUPS)
    for line in beside:
        assert line["ratio"] == pytest.approx(line["ms"] / ms[line["group"], line["of"]])


def test_waits_are_counted(done):
    """ComfyUI's skip-layer asks for sigma in each step. Of ours, only what decides during the run waits."""
    _, record = done
    counted = [line for line in record["rows"] if line["waits_a_step"] is not None]
    assert {"Klein NAG", "Klein Image CFG, three passes", "Klein Base Uncond, a second model"} <= {
        line["row"] for line in counted
    }
    assert {line["row"]: line["waits_a_step"] for line in counted if line["waits_a_step"]} == {
        "Klein Adaptive Guidance": 1,
        "ComfyUI's SkipLayerGuidanceDiT": 1,
    }


def test_every_guidance_node_is_measured(pack):
    from kleinkit.benchmarks import gpu_rows

    source = inspect.getsource(gpu_rows)
    assert [node.__name__ for node in pack("nodes.guidance").NODES if f'"{node.__name__}"' not in source] == []


def test_the_goal_of_a_schedule_is_the_share_of_its_passes(done):
    """In the first step there is no guidance yet to be reused: 7 of 8 passes."""
    _, record = done
    goals = {line["row"]: line["goal"] for line in record["rows"] if line["unit"] == "run" and line.get("goal")}
    shares = {
        "the first of 4 steps is zero": 6 / 8,
        "half of the steps guided": 6 / 8,
        "half of the steps reuse guidance": 7 / 8,
        "half of the steps extrapolate guidance": 6 / 8,
    }
    assert goals == {row: pytest.approx(1.03 * share) for row, share in shares.items()}


def test_the_goal_of_skip_layer_is_the_share_of_its_blocks(done):
    """Klein 4B's are 0.82 for 60 of 74 and 0.73 for 35 of 49; the small one runs 6 of 8, and 3 of 5."""
    _, record = done
    goals = {line["goal"] for line in record["rows"] if line.get("of") == "ComfyUI's SkipLayerGuidanceDiT"} - {None}
    assert sorted(goals) == pytest.approx([0.73 * 49 / 35 * 3 / 5, 0.82 * 74 / 60 * 6 / 8])


def test_a_row_that_fails_takes_no_other_with_it():
    from kleinkit.benchmarks.device import Device
    from kleinkit.benchmarks.gpu_rows import Beside, Group, Row
    from kleinkit.benchmarks.gpu_table import measure

    calls = []

    def works(steps, mark):
        for _ in range(steps + 1):
            mark()

    def is_too_large(steps, mark):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def breaks_later(steps, mark):
        calls.append(steps)
        if len(calls) > 2:
            raise ValueError("first line\nsecond line")
        works(steps, mark)

    rows = [
        Row("plain", works),
        Row("too large", is_too_large, (Beside("plain"),)),
        Row("breaks later", breaks_later, (Beside("plain"),)),
        Row("last", works, (Beside("too large"), Beside("plain"))),
    ]
    ending = Device(), 1.0, time.monotonic() + 60.0
    lines, failed = measure(Group("a group", lambda: rows), *ending)
    assert [(line["row"], line.get("of")) for line in lines] == [("plain", None), ("last", "plain")]
    assert failed == {"too large": "the memory of this card is too small", "breaks later": "ValueError: first line"}
    assert measure(Group("a group", lambda: 1 // 0), *ending)[1].keys() == {"every row"}
    lines, failed = measure(Group("a group", lambda: rows), Device(), 1.0, time.monotonic() - 1.0)
    assert lines == [] and failed == {"every row": "the time was up"}


def test_what_was_measured_stays_when_the_run_is_ended(comfy, monkeypatch, tmp_path):
    from kleinkit.benchmarks import gpu
    from kleinkit.benchmarks.gpu_rows import Group, Row

    def works(steps, mark):
        for _ in range(steps + 1):
            mark()

    def is_stopped():
        raise KeyboardInterrupt

    planned = [(None, Group("first", lambda: [Row("a row", works)]), 0), (None, Group("second", is_stopped), 0)]
    monkeypatch.setattr(gpu, "plan", lambda *_: planned)
    monkeypatch.setattr(gpu, "REPORTS", tmp_path)
    # This process is in ComfyUI already.
    for name in ("enter", "attention_as_on_a_gpu"):
        monkeypatch.setattr(gpu, name, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(gpu.parse(["--small"]))
    record = json.loads((tmp_path / "gpu-small.json").read_text("utf-8"))
    assert [line["row"] for line in record["rows"]] == ["a row"]


def test_rules_do_not_make_torch_compile_again(done):
    _, record = done
    graphs = {line["row"]: line["graphs"] for line in record["rows"] if "graphs" in line}
    assert graphs["compiled, plain CFG, cfg 4"] > 0 == graphs["compiled, six rules together"]
    for line in record["rows"]:
        assert line.get("graph_breaks", 0) == line.get("graphs_later", 0) == 0, line["row"]


@pytest.mark.parametrize("mode", (torch.inference_mode, torch.enable_grad))
def test_what_waits_is_counted_in_every_mode(mode):
    with mode():
        number = torch.ones(3)
        assert host_reads(lambda: (number.tolist(), number[0].item(), float(number[1]), bool(number[2] > 0))) == 4
        assert host_reads(lambda: number * 2) == 0


def test_without_a_gpu_it_says_so(monkeypatch):
    from kleinkit.benchmarks import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^torch finds no CUDA GPU here"):
        gpu.main([])


def test_real_files_are_measured_as_they_are(comfy, models, tmp_path):
    from kleinkit.benchmarks import gpu

    [subject] = gpu.from_files([models["base"]])
    assert (subject.name, subject.layer) == (models["base"].stem, "2")
    [row, *_] = gpu.gpu_rows.at_cfg_4(subject, 4, whole=False, rules=False)
    marks = []
    row.work(2, lambda *_: marks.append(1))
    assert len(marks) == 3
    with pytest.raises(SystemExit, match="but there is no"):
        gpu.from_files([tmp_path / "none.safetensors"])


@pytest.mark.parametrize("more", (["sigmas", "--small"], ["gpu", "sigmas"], ["--small"]))
def test_gpu_stands_alone(more):
    with pytest.raises(SystemExit, match="^gpu stands alone"):
        tasks.main(["bench", *more])
