"""Workflows in the editor's format: change what their widgets hold, and turn them into prompts for the API."""

import json
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
NOTES = ("MarkdownNote", "Note")
SEEDS = ("seed", "noise_seed")


def read(name):
    """A workflow that the pack ships, by its name in the template browser."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def widgets(node):
    """Names of what a node's `widgets_values` holds, in that order."""
    names = []
    for entry in node["inputs"]:
        if "widget" in entry:
            # The editor puts the widget "control after generate" behind a seed; no API knows it.
            names += [entry["name"], None] if entry["name"] in SEEDS else [entry["name"]]
    return names


def change(graph, kind, **values):
    """Change widgets of the one node of a type, in place."""
    [node] = [node for node in graph["nodes"] if node["type"] == kind]
    names = widgets(node)
    for name, value in values.items():
        node["widgets_values"][names.index(name)] = value


def as_prompt(graph):
    """The workflow in API format: `{node id: {"class_type": …, "inputs": …}}`."""
    sources = {link: [str(node), slot] for link, node, slot, *_ in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] not in NOTES:
            inputs = dict(zip(widgets(node), node["widgets_values"]))
            inputs.pop(None, None)
            inputs |= {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
