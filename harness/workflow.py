"""Workflows in the editor's format: change what their widgets hold, and turn them into prompts for the API."""

import copy
import json
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
# The pictures that Load Image begins with there.
EXAMPLES = WORKFLOWS / "examples"
NOTES = ("MarkdownNote", "Note")
SEEDS = ("seed", "noise_seed")
# The editor's number for a node that is bypassed.
BYPASSED = 4
# The node ids that a subgraph's own inputs and outputs have in its links.
INPUTS, OUTPUTS = -10, -20
# The nano family beside the official files, and what it was trained on: prompts by the title of their node.
NANO = {
    "flux-2-klein-4b.safetensors": "flux-2-klein-nano.safetensors",
    "flux-2-klein-base-4b.safetensors": "flux-2-klein-nano-base.safetensors",
}
# Graphs of FLUX 3 run on the nano family too: their nodes are the same, and this family has no FLUX 3.
NANO_FLUX3 = {
    "flux3-image-klein-bf16.safetensors": NANO["flux-2-klein-4b.safetensors"],
    "flux3-image-klein-base-bf16.safetensors": NANO["flux-2-klein-base-4b.safetensors"],
}
NANO_PIXELS = 128
# Nano's pictures by those of a Klein, in area; and the folder of the examples at that size.
NANO_SHARE = (NANO_PIXELS / 1024) ** 2
NANO_EXAMPLES = "nano"
NANO_LAYER = "2"
NANO_PROMPTS = {
    "Prompt": "a large green circle on the left, on a blue background",
    "Source prompt": "a large red circle on the left, on a blue background",
    "Negative prompt": "",
    "Negative prompt, for base models": "",
    "What to change": "make the circle green",
    "How to combine": "put the shape of the second picture on the first background",
    "What the part will show": "a large green star on the left, on a blue background",
    "The wider scene": "a large red circle on the left, on a blue background",
    "What it shows": "a large red circle on the left, on a blue background",
    "Keep out": "a large red circle in the middle, on a purple background",
}


def names():
    """Names of the workflows that the pack ships."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def read(name):
    """A workflow that the pack ships, by its name in the template browser."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def widgets(node):
    """Names of what a node's `widgets_values` holds, in that order."""
    names = []
    for entry in node["inputs"]:
        if "widget" in entry:
            # No API knows the editor's button that uploads, nor "control after generate", which it puts behind a seed.
            names.append(None if entry["type"] == "IMAGEUPLOAD" else entry["name"])
            names += [None] * (entry["name"] in SEEDS)
    return names


def put(node, **values):
    """Change what a node's widgets hold, in place."""
    names = widgets(node)
    for name, value in values.items():
        node["widgets_values"][names.index(name)] = value


def choose(node, name, choice, **values):
    """Make a choice that brings inputs of its own, in place, and change what those hold."""
    names = widgets(node)
    place = names.index(name)
    end = place + 1
    while end < len(names) and (names[end] or "").startswith(f"{name}."):
        end += 1
    node["widgets_values"][place:end] = [choice, *values.values()]
    inputs = [entry for entry in node["inputs"] if not entry["name"].startswith(f"{name}.")]
    at = next(number for number, entry in enumerate(inputs) if entry["name"] == name) + 1
    brought = [f"{name}.{key}" for key in values]
    inputs[at:at] = [{"name": key, "type": "*", "widget": {"name": key}, "link": None} for key in brought]
    node["inputs"] = inputs


def nodes(graph, *kinds):
    """The nodes of some types."""
    return [node for node in graph["nodes"] if node["type"] in kinds]


def change(graph, kind, **values):
    """Change widgets of the one node of a type, in place."""
    [node] = nodes(graph, kind)
    put(node, **values)


def subgraphs(graph):
    """What the subgraphs of a workflow are, by the type of the node that stands for one."""
    return {one["id"]: one for one in graph.get("definitions", {}).get("subgraphs", ())}


def flat(graph):
    """A workflow with what is inside its subgraphs in the place of each; the ids there are `<outer>:<inner>`."""
    inside, graph = subgraphs(graph), copy.deepcopy(graph)
    outer, graph["nodes"] = graph["nodes"], []
    for node in outer:
        if node["type"] not in inside:
            graph["nodes"].append(node)
            continue
        subgraph = copy.deepcopy(inside[node["type"]])
        by_id, typed = {one["id"]: one for one in subgraph["nodes"]}, iter(node["widgets_values"])
        taken = [(entry["link"], next(typed) if "widget" in entry else None) for entry in node["inputs"]]
        for one in subgraph["nodes"]:
            one["id"] = f"{node['id']}:{one['id']}"
        for link in subgraph["links"]:
            start, slot, end, place = (link[key] for key in ("origin_id", "origin_slot", "target_id", "target_slot"))
            if end == OUTPUTS:
                for other in graph["links"]:
                    if other[1:3] == [node["id"], place]:
                        other[1:3] = [by_id[start]["id"], slot]
                continue
            into = by_id[end]["inputs"][place]
            if start == INPUTS:
                into["link"], value = taken[slot]
                if "widget" in into and into["link"] is None:
                    put(by_id[end], **{into["name"]: value})
            else:
                into["link"] = f"{node['id']}:{link['id']}"
                graph["links"].append([into["link"], by_id[start]["id"], slot])
        graph["nodes"] += subgraph["nodes"]
    return graph


def for_nano(graph):
    """Have a workflow of the pack run on the nano family, in place: other files, size, prompts and layers, no more."""
    for node in [*graph["nodes"], *(node for one in subgraphs(graph).values() for node in one["nodes"])]:
        match node["type"]:
            case "KleinKitLoader":
                put(node, diffusion_model=(NANO | NANO_FLUX3)[node["widgets_values"][0]])
            case "EmptyFlux2LatentImage":
                put(node, width=NANO_PIXELS, height=NANO_PIXELS)
            case "ImageScaleToTotalPixels":
                put(node, megapixels=NANO_SHARE * node["widgets_values"][widgets(node).index("megapixels")])
            case "LoadImage":
                put(node, image=f"{NANO_EXAMPLES}/{node['widgets_values'][0]}")
            case "ImagePadForOutpaint":
                put(node, right=NANO_PIXELS // 2)
            case "KleinKitReferences":
                choose(node, "size", "megapixels", megapixels=NANO_SHARE)
            case "CLIPTextEncode":
                put(node, text=NANO_PROMPTS[node["title"]])
            case "KleinKitSkipLayerGuidance" | "KleinKitAutoGuidance":
                put(node, single_layers=NANO_LAYER)
    return graph


def tried(graph, number):
    """A workflow for the nano family with a node that it has bypassed, in place."""
    loader, *second = nodes(for_nano(graph), "KleinKitLoader")
    if second:
        # What another model says is of another model than the first.
        put(loader, diffusion_model=NANO["flux-2-klein-4b.safetensors"], distilled_cfg="allow")
    for node in graph["nodes"]:
        if node["id"] == number:
            node["mode"] = 0
    return graph


def as_prompt(graph):
    """The workflow in API format: `{node id: {"class_type": …, "inputs": …}}`; as in the editor, without bypassed nodes."""
    graph = flat(graph)
    sources = {link: [str(node), slot] for link, node, slot, *_ in graph["links"]}
    for node in sorted(graph["nodes"], key=lambda node: node["order"]):
        if node["mode"] == BYPASSED:
            # Guidance nodes: what comes out is the model that goes in.
            [output], into = node["outputs"], next(entry for entry in node["inputs"] if entry["type"] == "MODEL")
            sources |= dict.fromkeys(output["links"], sources[into["link"]])
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] not in NOTES and node["mode"] != BYPASSED:
            inputs = dict(zip(widgets(node), node["widgets_values"]))
            inputs.pop(None, None)
            inputs |= {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
