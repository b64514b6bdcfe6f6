"""Klein at its true size on a GPU, of random weights, beside plain CFG and ComfyUI's own nodes: times, memory and waits."""

import argparse
import functools
import gc
import importlib
import importlib.util
import json
import re
import sys
import time
from pathlib import Path

import torch

from ..checkpoint.families import FLUX2_KLEIN
from ..harness.inside import enter
from . import gpu_rows
from .device import Device
from .gpu_table import ROUNDS, as_text, measure
from .guidance import attention_as_on_a_gpu

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".reports"
# After these no row begins, so that the whole takes no more than eight minutes.
SECONDS = 7 * 60
MOST_SECONDS_A_GROUP = 15
SIDES, SMALL_SIDES = (64, 128), (4, 8)
# What a card needs for models to stay where they run: Klein 9B twice, and what 2048×2048 takes beside it.
ROOM = 45e9
OPTIONAL = {
    "diffusers": "in version 0.42 or newer, FLUX 3's stand-in is not measured",
    "triton": "the rows of inductor are not measured",
    "xformers": "ComfyUI takes torch's own attention",
}


def from_files(files):
    """A `Subject` for each file of a FLUX.2 [klein], which is loaded when it is measured."""
    load = importlib.import_module("comfy.sd").load_diffusion_model
    family = importlib.import_module("..engine.family", __package__)

    def klein(file):
        model = load(str(file))
        if family.family_of_model(model.model) is not FLUX2_KLEIN:
            sys.exit(f"Expected the file of a FLUX.2 [klein], but {file} holds a {type(model.model).__name__}.")
        return model

    for file in files:
        if not file.is_file():
            sys.exit(f"Expected the file of a FLUX.2 [klein], but there is no {file}.")
    return [gpu_rows.Subject(file.stem, functools.partial(klein, file)) for file in files]


def missing():
    """Of the optional packages those that are not there, or are too old."""
    gone = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    try:
        importlib.import_module("diffusers").Flux3Transformer2DModel  # noqa: B018
    # Also where it is there and does not work: what is wrong with it is not of interest.
    except Exception:
        gone = [*dict.fromkeys([*gone, "diffusers"])]
    return gone


def facts_of(device):
    """Card, driver and versions."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    attention = importlib.import_module("comfy.ldm.flux.math").optimized_attention
    return {
        **device.facts(),
        "comfyui": importlib.import_module("comfyui_version").__version__,
        "kleinkit": version,
        "attention": attention.__name__,
        "missing": missing(),
    }


def plan(options, device, gone):
    """All that is to be measured: `[(subject or None, group, seconds that are kept for it)]`."""
    subjects, encoders = (gpu_rows.small_sizes if options.small else gpu_rows.true_sizes)(device)
    if options.model:
        subjects, encoders = from_files(options.model), {}
    sides = SMALL_SIDES if options.small else SIDES
    groups = [
        (None, gpu_rows.Group(f"{name}, {gpu_rows.TEXT_TOKENS} tokens", rows, unit="prompt"), 0)
        for name, rows in encoders.items()
    ]
    for subject in subjects:
        groups += [(subject, group, 0) for group in gpu_rows.groups_of(subject, sides, subject is subjects[0])]
    if "diffusers" not in gone and not options.model:
        flux3 = gpu_rows.flux3(device, options.small)
        groups.append((flux3, gpu_rows.beside_comfyui(flux3, sides[0]), 0))
    compiling = gpu_rows.compiling(subjects[0], sides[0], device.on_gpu)
    return [*groups, *((subjects[0], group, kept) for group, kept in compiling)]


def measure_all(planned, device, peak, small):
    """Measure group after group, and print each table as soon as it is there.

    Args:
        planned: of `plan`.
        device: a `Device`.
        peak: operations a second of the device at best.
        small: as of the options.
    Yields:
        Of each group `(lines, {what was left out: why})`.
    """
    end, before = time.monotonic() + SECONDS, None
    for number, (subject, group, _) in enumerate(planned):
        if before is not subject or subject is None:
            release(before, device)
        before, deadline = subject, end - sum(kept for *_, kept in planned[number + 1 :])
        seconds = min(MOST_SECONDS_A_GROUP, (deadline - time.monotonic()) / (len(planned) - number))
        lines, failed = measure(group, device, seconds, deadline, 1 if small else ROUNDS)
        print(group.title)
        if lines:
            print(*as_text(lines, peak, judged=not small), sep="\n")
        print(*(f"  {name}: not measured, {why}." for name, why in failed.items()), "", sep="\n", flush=True)
        yield lines, {f"{group.title}: {name}": why for name, why in failed.items()}


def release(subject, device):
    """Give back the memory of a model, and of what ComfyUI keeps."""
    if subject:
        subject.forget()
    importlib.import_module("comfy.model_management").unload_all_models()
    gc.collect()
    device.forget()


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tasks.py bench gpu", description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--model", type=Path, nargs="+", metavar="FILE")
    return parser.parse_args(arguments)


def run(options):
    begin, device = time.monotonic(), Device()
    if not device.on_gpu and not options.small:
        sys.exit("torch finds no CUDA GPU here, so there is nothing to measure. `--small` tries the benchmark on the CPU.")
    enter()
    if device.on_gpu and device.free() > ROOM:
        importlib.import_module("comfy.cli_args").args.highvram = True
    if not device.on_gpu:
        attention_as_on_a_gpu()
    facts = facts_of(device) | {"matrix_peak": device.matrix_peak()}
    plain = {name: value for name, value in facts.items() if name not in ("missing", "matrix_peak")}
    print(*(f"{name}: {value}" for name, value in plain.items()), sep="\n")
    print(f"matrix peak: {facts['matrix_peak'] / 1e12:.2f} TFLOP/s")
    print(*(f"Without {name}, {OPTIONAL[name]}." for name in facts["missing"]), "", sep="\n", flush=True)
    path = REPORTS / ("gpu-small.json" if options.small else "gpu.json")
    path.parent.mkdir(exist_ok=True)
    record = facts | {"small": options.small, "seconds": 0.0, "left_out": {}, "rows": []}
    with torch.inference_mode():
        planned = plan(options, device, facts["missing"])
        for lines, left_out in measure_all(planned, device, facts["matrix_peak"], options.small):
            record["rows"] += lines
            record["left_out"] |= left_out
            record["seconds"] = round(time.monotonic() - begin, 1)
            # After each group: whatever ends the run, what was measured stays.
            path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{len(record['rows'])} rows in {record['seconds']:.0f} s, also in {path}.")
    return 0


def main(arguments):
    try:
        return run(parse(arguments))
    except ModuleNotFoundError as error:
        sys.exit(f"{sys.executable} has no {error.name}: install the requirements.txt of ComfyUI and of KleinKit into it.")
