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
# After these no group begins, so that the whole takes no more than eight minutes.
SECONDS = 7 * 60
MOST_SECONDS_A_GROUP = 20
SECONDS_TO_COMPILE = 60
SIDES, SMALL_SIDES = (64, 128), (4, 8)
# What a card needs for models to be made and to stay where they run: both Kleins, and a second one.
ROOM = 60e9
OPTIONAL = {
    "diffusers": "in version 0.42 or newer, FLUX 3's stand-in is not measured",
    "triton": "torch.compile goes no further than its graphs",
    "xformers": "ComfyUI takes another attention",
    "sageattention": "ComfyUI takes another attention",
    "flash_attn": "ComfyUI takes another attention",
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
    if "diffusers" not in gone and not hasattr(importlib.import_module("diffusers"), "Flux3Transformer2DModel"):
        gone.append("diffusers")
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
    """All that is to be measured: `[(subject or None, group, seconds that it needs at least)]`."""
    subjects, encoders = (gpu_rows.small_sizes if options.small else gpu_rows.true_sizes)(device)
    if options.model:
        subjects, encoders = from_files(options.model), {}
    sides = SMALL_SIDES if options.small else SIDES
    groups = [
        (None, gpu_rows.Group(f"{name}, {gpu_rows.TEXT_TOKENS} tokens", rows, unit="prompt"), 0)
        for name, rows in encoders.items()
    ]
    groups += [(subject, group, 0) for subject in subjects for group in gpu_rows.groups_of(subject, sides)]
    if "diffusers" not in gone and not options.model:
        flux3 = gpu_rows.flux3(device, options.small)
        groups.append((flux3, gpu_rows.beside_comfyui(flux3, sides[0]), 0))
    compiler = "inductor" if device.on_gpu and "triton" not in gone else "eager"
    compiling = gpu_rows.compiling(subjects[0], sides[0], compiler)
    return [*groups, (subjects[0], compiling, 0 if options.small else SECONDS_TO_COMPILE)]


def try_to_measure(group, device, seconds, small):
    """`(lines, None)`, or `(None, why not)`."""
    try:
        return measure(group, device, seconds, 1 if small else ROUNDS), None
    except torch.OutOfMemoryError:
        return None, "the memory of this card is too small"


def measure_all(planned, device, peak, small):
    """Measure group after group, and print each table as soon as it is there.

    Args:
        planned: of `plan`.
        device: a `Device`.
        peak: operations a second of the device at best.
        small: as of the options.
    Returns:
        `(lines, {title of a group: why it was left out})`.
    """
    deadline, lines, left_out, before = time.monotonic() + SECONDS, [], {}, None
    for number, (subject, group, needed) in enumerate(planned):
        if before is not subject or subject is None:
            release(before, device)
        before, left = subject, deadline - time.monotonic()
        if left < needed or left < 0:
            found, why = None, "the time was up"
        else:
            seconds = min(MOST_SECONDS_A_GROUP, left / (len(planned) - number))
            found, why = try_to_measure(group, device, seconds, small)
        if found is None:
            left_out[group.title] = why
            print(f"{group.title}\n  Not measured: {why}.\n", flush=True)
        else:
            lines += found
            print(*as_text(found, peak, judged=not small), "", sep="\n", flush=True)
    return lines, left_out


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
    with torch.inference_mode():
        lines, left_out = measure_all(plan(options, device, facts["missing"]), device, facts["matrix_peak"], options.small)
    seconds = round(time.monotonic() - begin, 1)
    path = REPORTS / ("gpu-small.json" if options.small else "gpu.json")
    path.parent.mkdir(exist_ok=True)
    record = facts | {"small": options.small, "seconds": seconds, "left_out": left_out, "rows": lines}
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{len(lines)} rows in {seconds:.0f} s, also in {path}.")
    return 0


def main(arguments):
    try:
        return run(parse(arguments))
    except ModuleNotFoundError as error:
        sys.exit(f"{sys.executable} has no {error.name}: install the requirements.txt of ComfyUI and of KleinKit into it.")
