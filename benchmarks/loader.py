"""What a text encoder costs, through KleinKitLoader and as CLIPLoader loads it; and a look at an 18 GB file."""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch

from ..checkpoint.inspection import inspect
from ..nano.build import build
from ..tests.helpers.files import klein, qwen3, write
from .timing import seconds, side_by_side

ROOT = Path(__file__).resolve().parent.parent
ENCODER = dict(hidden=1024, intermediate=3072, heads=16, kv_heads=8, dtype="F32")
CONFIG = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8}
NINE = dict(hidden=4096, double_blocks=8, single_blocks=24, text_width=12288)
EMBEDDINGS = "model.embed_tokens.weight"
TOKENS = 128
MOST_OF_THE_LAYERS = 0.78
MOST_MILLISECONDS = 10.0


def install(models):
    """Write a Klein, a Qwen3 of 36 layers of random float32 weights, and a VAE; the encoder's file."""
    build(models, Path(os.environ["COMFYUI_PATH"]))
    write(
        models / "diffusion_models/klein.safetensors",
        klein(hidden=128, double_blocks=1, single_blocks=1, text_width=3 * ENCODER["hidden"], dtype="F32"),
    )
    random = torch.Generator().manual_seed(0)
    shapes = qwen3(**ENCODER)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=random) / shape[1] ** 0.5
        for name, (_, shape) in shapes.items()
        if name != EMBEDDINGS
    }
    # Of the vocabulary only the words that are encoded are written. The rest is a hole: what is read are the layers.
    rows = {number: torch.randn(ENCODER["hidden"], generator=random) for number in range(TOKENS)}
    return write(
        models / "text_encoders/qwen.safetensors", {EMBEDDINGS: shapes[EMBEDDINGS], **tensors}, rows={EMBEDDINGS: rows}
    )


def loaders(file):
    """`(ours, theirs)`: what loads the text encoder of the file."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    args = importlib.import_module("comfy.cli_args").args
    args.cpu, args.base_directory = True, str(file.parent.parent.parent)
    sd = importlib.import_module("comfy.sd")
    node = importlib.import_module("..nodes.loader", __package__).KleinKitLoader

    def theirs():
        # CLIPLoader's own code. By this width it would take the file for another model's, so it is told which it is.
        with patch.object(sd, "detect_te_model", lambda _: sd.TEModel.QWEN3_4B):
            return sd.load_clip([str(file)], clip_type=sd.CLIPType.FLUX2, model_options={"qwen3_4b_model_config": dict(CONFIG)})

    def ours():
        return node.execute("klein.safetensors", file.name, "auto", "auto", "default", "ignore", True).result[1]

    return ours, theirs


def measure(which, file):
    """Load in a process of its own, with nothing of the file in the system's cache.

    Prints:
        JSON: `read`, the bytes that came from the disk, and `resident`, by how much the process grew.
    """
    load = loaders(file)[which]
    with open(file, "rb") as content:
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read, resident = counter("io", "read_bytes"), counter("status", "VmRSS")
    clip = load()
    print(json.dumps({"read": counter("io", "read_bytes") - read, "resident": 1024 * (counter("status", "VmRSS") - resident)}))
    del clip


def counter(table, name):
    with open(f"/proc/self/{table}") as lines:
        return int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def costs(which, file):
    command = [sys.executable, ROOT / "tasks.py", "run", __name__.split(".", 1)[1], str(which), str(file)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def report(name, ours, theirs, show):
    print(
        f"{name}: KleinKit {show(ours)}, CLIPLoader {show(theirs)}, ratio {ours / theirs:.3f} (at most {MOST_OF_THE_LAYERS})",
        flush=True,
    )
    return ours / theirs


def gigabytes(size):
    return f"{size / 1e9:.3f} GB"


def text_encoder(base):
    """The ratios of bytes read, of memory and of the time to encode, each of the layers alone."""
    file = install(base / "models")
    ours, theirs = costs(0, file), costs(1, file)
    if not theirs["read"]:
        raise RuntimeError(f"The system counts no bytes read from {base}: set TMPDIR to a folder on a disk.")
    ratios = [report("bytes read of the layers", ours["read"], theirs["read"], gigabytes)]
    embeddings = 4 * 151936 * ENCODER["hidden"]
    ratios.append(
        report(
            "resident memory, less the embeddings", ours["resident"] - embeddings, theirs["resident"] - embeddings, gigabytes
        )
    )
    clips = [load() for load in loaders(file)]
    # On a busy machine more threads wait for each other.
    torch.set_num_threads(1)
    # A prompt is padded to four times as many, which changes the times and not their ratio.
    tokens = {"qwen3_4b": [[(number, 1.0) for number in range(TOKENS)]]}
    if not torch.equal(*(clip.encode_from_tokens(tokens) for clip in clips)):
        raise RuntimeError("The embeddings differ.")
    ours, theirs = side_by_side(
        f"encode {TOKENS} tokens",
        *(lambda clip=clip: clip.encode_from_tokens(tokens) for clip in clips),
        rounds=9,
        against="CLIPLoader",
    )
    return [*ratios, ours / theirs]


def header(base):
    """The median seconds of telling what an 18 GB file is. The file is a hole, but for its header."""
    file = write(base / "flux-2-klein-9b.safetensors", klein(**NINE))
    time = statistics.median(seconds(lambda: inspect(file)) for _ in range(50))
    print(
        f"what a file of {gigabytes(file.stat().st_size)} is: {time * 1e3:.2f} ms (at most {MOST_MILLISECONDS:g} ms)",
        flush=True,
    )
    return time


def main(arguments):
    if arguments:
        measure(int(arguments[0]), Path(arguments[1]))
        return 0
    with tempfile.TemporaryDirectory() as base:
        slow = header(Path(base)) * 1e3 > MOST_MILLISECONDS
        return int(slow or max(text_encoder(Path(base))) > MOST_OF_THE_LAYERS)
