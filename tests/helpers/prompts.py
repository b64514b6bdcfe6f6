"""Small prompts in API format for a server with the nano family and `fault_pack`, and their pictures."""

import json
import urllib.request
from pathlib import Path

import numpy as np
from kleinkit.harness import server as api
from kleinkit.harness.workflow import as_prompt, for_nano, read
from PIL import Image

JSON = {"Content-Type": "application/json"}
FAULT_PACK = Path(__file__).parent / "fault_pack"
# Never ends by itself.
WAIT = {"wait": {"class_type": "KleinKitTestWait", "inputs": {}}}
LOADER = dict(
    diffusion_model="flux-2-klein-nano-base.safetensors",
    text_encoder="auto",
    vae="auto",
    variant="auto",
    weight_dtype="default",
    distilled_cfg="ignore",
    trim_text_encoder=True,
)
SKIP = (
    "KleinKitSkipLayerGuidance",
    dict(scale=2.0, double_layers="0", single_layers="1", start=0.0, end=1.0, mode="attention", rescale=0.3),
)
# Steps of a sweep, a prompt each, and those of the one in which the server is killed.
SWEEP, KILLED_AT = (1, 2, 3, 4), 3


def prompt(*rules, steps=2, seed=1, cfg=4.0, size=64, sampler="euler", fault=("none", 0)):
    """A prompt that loads, guides, samples, decodes and saves; none of it behind the guidance comes from a cache.

    Args:
        rules: `(node, inputs)` pairs, put behind each other.
        steps, seed, cfg, size, sampler: of KSampler; `size` in pixels.
        fault: what breaks, and in which pass, of `KleinKitTestFault`; None leaves that node out.
    """
    nodes = {
        "loader": ("KleinKitLoader", LOADER),
        "positive": ("CLIPTextEncode", dict(clip=["loader", 1], text="a red circle")),
        "negative": ("CLIPTextEncode", dict(clip=["loader", 1], text="")),
        "latent": ("EmptyFlux2LatentImage", dict(width=size, height=size, batch_size=1)),
        "shift": ("KleinKitDynamicShift", dict(model=["loader", 0], shift="flux2")),
    }
    model = ["shift", 0]
    for number, (node, inputs) in enumerate(rules):
        nodes[f"rule{number}"] = (node, {**inputs, "model": model})
        model = [f"rule{number}", 0]
    if fault:
        nodes["fault"] = ("KleinKitTestFault", dict(model=model, fault=fault[0], call=fault[1]))
        model = ["fault", 0]
    nodes |= {
        "sampler": (
            "KSampler",
            dict(
                model=model,
                seed=seed,
                steps=steps,
                cfg=cfg,
                sampler_name=sampler,
                scheduler="simple",
                denoise=1.0,
                positive=["positive", 0],
                negative=["negative", 0],
                latent_image=["latent", 0],
            ),
        ),
        "picture": ("VAEDecode", dict(samples=["sampler", 0], vae=["loader", 2])),
        "save": ("SaveImage", dict(images=["picture", 0], filename_prefix="lab")),
    }
    return {key: {"class_type": node, "inputs": dict(inputs)} for key, (node, inputs) in nodes.items()}


def of_workflow(name, **changes):
    """A workflow of the pack as a prompt for the nano family; `changes` are for every node that has such inputs."""
    wanted = as_prompt(for_nano(read(name)))
    for node in wanted.values():
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return wanted


def guided():
    """A workflow of guidance nodes as a prompt for the nano family, with those that it has bypassed."""
    graph = for_nano(read("11 Klein Guidance by Steps"))
    for node in graph["nodes"]:
        node["mode"] = 0
    return as_prompt(graph)


def picture(server, outcome):
    """The pixels that a prompt saved."""
    assert outcome.error is None, api.sentences(outcome.error)
    [path] = api.pictures(server, outcome)
    with Image.open(path) as image:
        return np.asarray(image)


def run(server, wanted):
    """The pixels of a prompt."""
    return picture(server, api.queue(server, wanted))


def interrupt(server):
    """Ask for the end of the prompt that is running."""
    _post(server, "/interrupt", {})


def put_between(server, number, wanted):
    """Queue a prompt, and wait for nothing. ComfyUI numbers prompts from 0 in the order in which they came; the lowest runs."""
    _post(server, "/prompt", {"prompt": wanted, "number": number})


def _post(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), JSON)
    urllib.request.urlopen(request, timeout=60).close()


def state(server):
    """What the server holds after one and the same prompt: its pixels, and the numbers of `fault_pack`."""
    look = {"class_type": "KleinKitTestState", "inputs": {"image": ["picture", 0]}}
    outcome = api.queue(server, prompt(SKIP) | {"look": look})
    [text] = outcome.outputs["look"]["text"]
    return picture(server, outcome), json.loads(text)
