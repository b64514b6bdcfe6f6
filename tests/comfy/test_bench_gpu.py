"""`tasks.py bench gpu --small` runs whole on a CPU, so that it works on the day a GPU is there."""

import json
import math
import os
import subprocess
import sys

import kleinkit_tasks as tasks
import pytest
import torch
from host_reads import host_reads

KLEIN_AT_CFG_4 = "a small Klein, 64×64, cfg 4"
GROUPS = {
    "a small Qwen3, 512 tokens": 2,
    KLEIN_AT_CFG_4: 18,
    "a small Klein, 64×64, cfg 1": 6,
    "a small Klein, 64×64, runs of 4 steps": 5,
    "a small Klein, 64×64, with a reference picture": 2,
    "a small Klein, 64×64, with a second model": 2,
    "a small Klein, 128×128, cfg 4": 4,
    "a small Klein, 128×128, cfg 1": 3,
    "FLUX 3 Klein's stand-in, 64×64, cfg 4": 4,
    "a small Klein, 64×64, torch.compile (eager)": 4,
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
    waits = {line["row"]: line["waits_a_step"] for line in record["rows"] if line["group"] == KLEIN_AT_CFG_4}
    assert {row: count for row, count in waits.items() if count} == {
        "Klein Adaptive Guidance": 1,
        "ComfyUI's SkipLayerGuidanceDiT": 1,
    }


def test_rules_do_not_make_torch_compile_again(done):
    _, record = done
    graphs = {line["row"]: line["graphs"] for line in record["rows"] if line["graphs"] is not None}
    assert graphs["torch.compile, plain CFG, cfg 4"] > 0 == graphs["torch.compile, six rules together"]


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
    [row, *_] = gpu.gpu_rows.at_cfg_4(subject, 4, whole=False)
    marks = []
    row.work(2, lambda *_: marks.append(1))
    assert len(marks) == 3
    with pytest.raises(SystemExit, match="but there is no"):
        gpu.from_files([tmp_path / "none.safetensors"])


@pytest.mark.parametrize("more", (["sigmas", "--small"], ["gpu", "sigmas"], ["--small"]))
def test_gpu_stands_alone(more):
    with pytest.raises(SystemExit, match="^gpu stands alone"):
        tasks.main(["bench", *more])
