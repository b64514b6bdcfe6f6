"""ComfyUI's own Klein templates as prompts: on the nano family under the official names, all links and widgets as they
are but for the numbers that say how large the picture is and how many steps it takes.
"""

import os
from pathlib import Path

from kleinkit.harness import server as api
from kleinkit.harness.workflow import NOTES
from kleinkit.nano.build import build
from PIL import Image

# Its node is in place of CLIPLoader.
PACK = Path(__file__).parent / "tiny_text_encoder"
PREFIX = "image_flux2_klein"
# Where the files of a loader lie, and the input that names them.
LOADERS = {
    "UNETLoader": ("diffusion_models", "unet_name"),
    "TinyCLIPLoader": ("text_encoders", "clip_name"),
    "VAELoader": ("vae", "vae_name"),
}
SMALL = {
    "PrimitiveInt": {"value": 64},
    "EmptyFlux2LatentImage": {"width": 64, "height": 64},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "Flux2Scheduler": {"steps": 2},
}
# Ends of the links of a subgraph that lie outside it.
OUTSIDE = -10
TAEF2 = "taef2"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def templates(server):
    """`{name: workflow}` of the Klein templates that a ComfyUI offers."""
    names = [entry["name"] for group in api.get(server, "/templates/index.json") for entry in group["templates"]]
    return {name: api.get(server, f"/templates/{name}.json") for name in sorted(set(names)) if name.startswith(PREFIX)}


def expand(graph, subgraphs, prefix="", given=()):
    """A workflow without its subgraphs.

    Returns:
        `([(id, node, {input: source})], [source of each output])`, a source being `[id, slot]`; nodes that the template
        leaves off are on. An id has the ids of the subgraphs before it, as ComfyUI's editor writes it.
    """
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = [
        (link["id"], link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else link[:3] for link in graph["links"]
    ]
    links = {link: (origin, slot) for link, origin, slot in links}

    def source(link):
        origin, slot = links[link]
        if origin == OUTSIDE:
            return given[slot]
        return inside(nodes[origin])[1][slot] if nodes[origin]["type"] in subgraphs else [f"{prefix}{origin}", slot]

    def sources(node):
        found = {entry["name"]: source(entry["link"]) for entry in node["inputs"] if entry.get("link") is not None}
        return {name: origin for name, origin in found.items() if origin}

    def inside(node):
        subgraph, connected = subgraphs[node["type"]], sources(node)
        return expand(subgraph, subgraphs, f"{prefix}{node['id']}:", [connected.get(i["name"]) for i in subgraph["inputs"]])

    found = []
    for number, node in nodes.items():
        if node["type"] in subgraphs:
            found += inside(node)[0]
        elif node["type"] not in NOTES:
            found.append((f"{prefix}{number}", node, sources(node)))
    return found, [source(output["linkIds"][0]) for output in graph.get("outputs", ())]


def widgets(inputs):
    """Names of what a node's `widgets_values` holds, in that order, of its inputs in ComfyUI's `/object_info`."""
    names = []
    for name, (kind, *options) in (item for group in ("required", "optional") for item in inputs.get(group, {}).items()):
        options = options[0] if options else {}
        if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
            names += [name, None] if options.get("control_after_generate") else [name]
    return names


def as_prompt(name, graph, known):
    """A template in API format. Ids begin with its name; what every sampler makes is saved as a latent too.

    The VAE is TAEF2 where the ComfyUI knows it: FLUX.2's own takes a minute on a CPU.
    """
    subgraphs = {subgraph["id"]: subgraph for subgraph in graph.get("definitions", {}).get("subgraphs", ())}
    prompt = {}
    for number, node, sources in expand(graph, subgraphs, f"{name}:")[0]:
        kind = node["type"]
        inputs = dict(zip(widgets(known[kind]["input"]), node["widgets_values"])) | SMALL.get(kind, {}) | sources
        inputs.pop(None, None)
        prompt[number] = {"class_type": "TinyCLIPLoader" if kind == "CLIPLoader" else kind, "inputs": inputs}
        if kind == "VAELoader" and TAEF2 in known[kind]["input"]["required"]["vae_name"][0]:
            inputs["vae_name"] = TAEF2
        if kind == "SamplerCustomAdvanced":
            latent = {"samples": [number, 0], "filename_prefix": "latents/" + number.replace(":", "_")}
            prompt[f"{number}:latent"] = {"class_type": "SaveLatent", "inputs": latent}
    return prompt


def of_type(prompt, kind):
    """The nodes of a type, by their ids."""
    return {number: node for number, node in prompt.items() if node["class_type"] == kind}


def install(prompt, base, comfyui):
    """Put what a prompt loads into a server's base directory, under the names that it has: the nano family and a picture.

    Returns:
        Paths of what was not there.
    """
    family, new = build(base / "models", comfyui), []
    for kind, (folder, name) in LOADERS.items():
        for file in {node["inputs"][name] for node in of_type(prompt, kind).values()} - {TAEF2}:
            role = {"text_encoders": "text_encoder", "vae": "vae"}.get(folder, "base" if "base" in file else "distilled")
            new.append(family[role].with_name(file))
            os.link(family[role], new[-1])
    for node in of_type(prompt, "LoadImage").values():
        # Scaled to 150×70: as of a photo, no side is a multiple of 16. (ComfyUI's TAEF2 crops to multiples of 8, which
        # here are multiples of 16 too, as it needs them.)
        picture = Image.linear_gradient("L").convert("RGB").resize((591, 276))
        new.append(base / "input" / node["inputs"]["image"])
        picture.save(new[-1])
    return new
