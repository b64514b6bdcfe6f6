"""ComfyUI's own Klein templates: the same latents with the pack installed as without it, and with its nodes put in."""

import pytest
import torch
from kleinkit.harness import server as api
from safetensors.torch import load_file
from templates import as_prompt, install, of_type, templates

LOADER = dict(
    text_encoder="auto", vae="auto", variant="auto", weight_dtype="default", distilled_cfg="ignore", trim_text_encoder=True
)
SCHEDULER = {
    "denoise": 1.0,
    "denoise_mode": "ksampler",
    "spacing": "uniform",
    "terminal": 0.0,
    "shift": "flux2",
}
# The outputs of KleinKitLoader that take the places of ComfyUI's loaders.
OUTPUTS = {"UNETLoader": 0, "TinyCLIPLoader": 1, "VAELoader": 2}
SKIP = (
    "KleinKitSkipLayerGuidance",
    dict(scale=2.0, double_layers="", single_layers="1", start=0.0, end=1.0, mode="block", rescale=0.0),
)
RENORM = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=False))


def run(server, prompt):
    """`{id of the node that saved it: latent}` of what the samplers of a prompt made."""
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    files = {number: entry for number, output in outcome.outputs.items() for entry in output.get("latents", ())}
    assert len(files) == len(of_type(prompt, "SamplerCustomAdvanced"))
    assert len(api.pictures(server, outcome)) == len(of_type(prompt, "SaveImage"))
    return {
        number: load_file(server.base / entry["type"] / entry["subfolder"] / entry["filename"])["latent_tensor"]
        for number, entry in sorted(files.items())
    }


def unequal(latents, others, tolerance=0.0):
    """Nodes whose latents differ by more than a share of their largest value."""
    assert latents.keys() == others.keys()
    return [
        number for number, latent in latents.items() if (latent - others[number]).abs().max() > tolerance * latent.abs().max()
    ]


@pytest.fixture(scope="module")
def prompt(server, bare_server, comfyui):
    """All templates as one prompt; what it loads is meanwhile in the folders of both servers."""
    known, found = api.get(bare_server, "/object_info"), templates(bare_server)
    prompt = {number: node for name, graph in found.items() for number, node in as_prompt(name, graph, known).items()}
    new = {file for one in (server, bare_server) for file in install(prompt, one.base, comfyui)}
    yield prompt
    for file in new:
        file.unlink()


@pytest.fixture(scope="module")
def latents(bare_server, prompt):
    """What the templates make on a ComfyUI without the pack."""
    return run(bare_server, prompt)


def with_kleinkit(prompt, *rules, latent=False):
    """A prompt with KleinKit's loader and scheduler in the places of ComfyUI's, and with rules on every model.

    The scheduler has the links and widgets of ComfyUI's; with `latent` also the latent that is sampled.
    """
    swapped, moved = {}, {}
    for number, node in prompt.items():
        kind, inputs, loader = node["class_type"], node["inputs"], f"{number.rpartition(':')[0]}:loader"
        if kind in OUTPUTS:
            moved[number] = [loader, OUTPUTS[kind]]
        else:
            swapped[number] = {"class_type": kind, "inputs": dict(inputs)}
        if kind == "UNETLoader":
            swapped[loader] = {"class_type": "KleinKitLoader", "inputs": {**LOADER, "diffusion_model": inputs["unet_name"]}}
        elif kind == "Flux2Scheduler":
            swapped[number] = {"class_type": "KleinKitScheduler", "inputs": {**SCHEDULER, **inputs}}
        elif kind == "CFGGuider":
            for place, (rule, settings) in enumerate(rules):
                swapped[f"{number}:{place}"] = {"class_type": rule, "inputs": {**settings, "model": inputs["model"]}}
                inputs = {**inputs, "model": [f"{number}:{place}", 0]}
            swapped[number]["inputs"] = inputs
    for node in of_type(prompt, "SamplerCustomAdvanced").values() if latent else ():
        swapped[node["inputs"]["sigmas"][0]]["inputs"]["latent"] = node["inputs"]["latent_image"]
    for node in swapped.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in moved:
                node["inputs"][name] = moved[value[0]]
    return swapped


def test_latents_are_equal_with_the_pack_installed(prompt, latents, server):
    assert len(latents) >= 5
    assert unequal(latents, run(server, prompt)) == []


def test_the_templates_feed_sizes_that_photos_have(prompt, bare_server):
    """Else the next test would not see a scheduler that refuses them."""
    linked = [
        node["inputs"] for node in of_type(prompt, "Flux2Scheduler").values() if isinstance(node["inputs"]["width"], list)
    ]
    sources = {prompt[inputs[side][0]]["class_type"] for inputs in linked for side in ("width", "height")}
    assert "GetImageSize" in sources
    show = {
        str(number): {"class_type": "PreviewAny", "inputs": {"source": inputs["width"]}} for number, inputs in enumerate(linked)
    }
    outcome = api.queue(bare_server, {**prompt, **show})
    assert outcome.error is None, api.sentences(outcome.error)
    widths = {int(text) for number in show for text in outcome.outputs[number]["text"]}
    assert any(width % 16 for width in widths)


def test_kleinkit_s_loader_and_scheduler_are_worth_comfyui_s(prompt, latents, server):
    assert unequal(latents, run(server, with_kleinkit(prompt)), 1e-4) == []


def test_guidance_runs_in_every_template(prompt, latents, server):
    guided = run(server, with_kleinkit(prompt, SKIP, RENORM, latent=True))
    assert all(torch.isfinite(latent).all() for latent in guided.values())
    assert unequal(latents, guided, 1e-3) == [*latents]
