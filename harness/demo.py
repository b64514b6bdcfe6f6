"""Make a picture with KleinKit in the real ComfyUI, or show its editor: `python3 tasks.py demo`, `serve`."""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser
from pathlib import Path

from . import server as api
from .workflow import as_prompt, change, for_nano, read

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
FIRST, STUDY = "01 Klein First Picture", "15 Klein Guidance Study"
# Its name in the address of the demo, which takes no spaces.
LINK = "klein-first-picture"
# A folder of custom nodes that holds nothing but the workflow as this server can run it.
TEMPLATES = "KleinKitDemo"
BAR = 30
MODEL = re.compile(r"flux-?2-klein(-base)?-(4|9)b[^/\\]*\.safetensors$", re.IGNORECASE)
# A Klein 4B reads Qwen3-4B, a 9B Qwen3-8B.
ENCODER = {
    "4": re.compile(r"qwen_?3_4b[^/\\]*\.safetensors$", re.IGNORECASE),
    "9": re.compile(r"qwen_?3_8b[^/\\]*\.safetensors$", re.IGNORECASE),
}
VAE = re.compile(r"(flux2[-_]vae|full_encoder_small_decoder)[^/\\]*\.safetensors$", re.IGNORECASE)


def comfyui():
    return Path(os.environ["COMFYUI_PATH"])


def use_cpu():
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())


def installed_klein(server):
    """The name of a Klein in the server's model folders whose encoder and VAE are there too (base first), or None."""
    encoders, vaes = api.get(server, "/models/text_encoders"), api.get(server, "/models/vae")
    found = [
        (name, match)
        for name in api.get(server, "/models/diffusion_models")
        if (match := MODEL.search(name)) and any(map(ENCODER[match[2]].search, encoders)) and any(map(VAE.search, vaes))
    ]
    return max(found, key=lambda pair: bool(pair[1][1]))[0] if found else None


def first_picture(klein=None):
    """The workflow that the pack ships, in the editor's format, for the nano family or for an installed Klein."""
    graph = read(FIRST)
    if klein is None:
        return for_nano(graph)
    change(graph, "KleinKitLoader", diffusion_model=klein)
    return graph


def to_run(klein):
    """The workflow of the demo: an installed Klein's first picture, or what cfg does to the nano family's."""
    return first_picture(klein) if klein else for_nano(read(STUDY))


@contextlib.contextmanager
def with_comfyui(base, port=0):
    """The found ComfyUI with KleinKit, the nano family and that ComfyUI's own models, in a base directory of ours."""
    subprocess.run([sys.executable, ROOT / "tasks.py", "run", "nano.build", base / "models"], check=True)
    print(f"Starting ComfyUI ({comfyui()}) …", flush=True)
    with api.running(comfyui(), base, port=port, cpu=use_cpu(), models=comfyui() / "models") as server:
        yield server


def show_progress(prompt):
    """A listener of `api.queue` that draws what the sampler does on one line."""
    width = 0

    def listen(kind, data):
        nonlocal width
        if kind == "executing" and data["node"]:
            text = prompt[data["node"]]["class_type"]
        elif kind == "progress":
            done, all_steps = data["value"], data["max"]
            bar = "#" * (BAR * done // all_steps)
            text = f"{prompt[data['node']]['class_type']} [{bar:.<{BAR}}] {done}/{all_steps}"
        else:
            return
        print(f"\r{text:{width}}", end="", flush=True)
        width = len(text)

    return listen


def in_order(server, outcome):
    """The paths of the pictures that a workflow's prompt saved, in the order of its nodes: a sheet comes last."""
    ordered = dict(sorted(outcome.outputs.items(), key=lambda item: int(item[0])))
    return api.pictures(server, outcome._replace(outputs=ordered))


def demo():
    """Make the picture; its path."""
    start = time.monotonic()
    DEMO.mkdir(exist_ok=True)
    # Of its own for each run: a second demo beside it, or one that was killed, is in nobody's way.
    with (
        tempfile.TemporaryDirectory(prefix="kleinkit-", ignore_cleanup_errors=True) as base,
        with_comfyui(Path(base)) as server,
    ):
        klein = installed_klein(server)
        print(f"Model: {klein or 'nano-base, a tiny Klein that draws shapes (nano/README.md)'}")
        prompt = as_prompt(to_run(klein))
        for text in {node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "CLIPTextEncode"} - {""}:
            print(f"Prompt: {text}")
        outcome = api.queue(server, prompt, show_progress(prompt), timeout=None)
        print()
        if outcome.error:
            raise RuntimeError("\n".join(api.sentences(outcome.error)))
        *_, picture = in_order(server, outcome)
        path = DEMO / f"KleinKit-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.png"
        shutil.copyfile(picture, path)
    for line in re.findall(r"KleinKit: (\d+ steps, .*)", outcome.log):
        print(f"Ran: {line}")
    print(f"Picture: {path}")
    print(f"Time: {time.monotonic() - start:.1f} s")
    return path


def serve(port, show):
    """Run ComfyUI until Ctrl-C, with the workflow open in the browser if `show`."""
    templates = DEMO / "custom_nodes" / TEMPLATES / "workflows"
    templates.mkdir(parents=True, exist_ok=True)
    (templates.parent / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", "utf-8")
    with with_comfyui(DEMO, port) as server:
        graph = first_picture(installed_klein(server))
        (templates / f"{LINK}.json").write_text(json.dumps(graph), "utf-8")
        address = f"{server.url}/?template={LINK}&source={TEMPLATES}"
        print(f"ComfyUI with KleinKit: {address}\nCtrl-C ends it.", flush=True)
        if show:
            webbrowser.open(address)
        while True:
            time.sleep(3600)


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.serve or options.open:
            serve(options.port, options.open)
        else:
            demo()
    except RuntimeError as error:
        sys.exit(f"The demo failed: {error}")
