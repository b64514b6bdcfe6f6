"""Every widget of every node works as a link too, and what comes through a link counts for ComfyUI's cache."""

import itertools

import pytest
from files import write
from kleinkit.harness import server as api
from prompts import LOADER
from safetensors.torch import load_file

PRIMITIVES = {"INT": "PrimitiveInt", "FLOAT": "PrimitiveFloat", "BOOLEAN": "PrimitiveBoolean", "STRING": "PrimitiveString"}
SOCKETS = {
    "MODEL": ["loader", 0],
    "IMAGE": ["image", 0],
    "LATENT": ["latent", 0],
    "CONDITIONING": ["prompt", 0],
    "VAE": ["loader", 2],
}
# It takes a model of a file of its own.
ANOTHER_MODEL = "weak_model"
# The family of the tests has 2 double and 2 single blocks or more, and no layer 9.
FITTING = {"single_layers": "1", "diffusion_model": LOADER["diffusion_model"]}
WITH_WIDGETS = (
    "KleinKitLoader",
    "KleinKitScheduler",
    "KleinKitDynamicShift",
    "KleinKitReferences",
    "KleinKitInpaintCrop",
    "KleinKitCFG",
    "KleinKitCFGZeroStar",
    "KleinKitSkipLayerGuidance",
    "KleinKitSEG",
    "KleinKitRenorm",
    "KleinKitSlerpCFG",
    "KleinKitImageCFG",
    "KleinKitAutoGuidance",
    "KleinKitMomentum",
    "KleinKitAdaptiveGuidance",
    "KleinKitNAG",
    "KleinKitAPG",
    "KleinKitMAMBOG",
    "KleinKitFDG",
    "KleinKitGuidance",
    "KleinKitSweep",
    "KleinKitContactSheet",
)


def linked(name, kind, value):
    """`(nodes, link)`: nodes of ComfyUI that output a value of this kind, and the link to it."""
    if kind in PRIMITIVES:
        return {name: {"class_type": PRIMITIVES[kind], "inputs": {"value": value}}}, [name, 0]
    text = {"class_type": "PrimitiveString", "inputs": {"value": value}}
    # No primitive of ComfyUI outputs a choice of a list. Its switch outputs what it gets, of any type.
    switch = dict(switch=True, on_true=[f"{name} text", 0], on_false=[f"{name} text", 0])
    return {f"{name} text": text, name: {"class_type": "ComfySwitchNode", "inputs": switch}}, [name, 0]


def kind_of(spec):
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def default_of(spec):
    kind, settings = spec[0], spec[1] if len(spec) > 1 else {}
    options = kind if isinstance(kind, list) else settings.get("options")
    return settings.get("default", options[0] if options else None)


def cases(info):
    """Prompts for one node, in which all its widgets are links: one for each choice of its dynamic lists, else one."""
    specs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    dynamic = {name: spec[1]["options"] for name, spec in specs.items() if kind_of(spec) == "COMFY_DYNAMICCOMBO_V3"}
    for picked in itertools.product(*dynamic.values()):
        widgets = {name: spec for name, spec in specs.items() if kind_of(spec) in (*PRIMITIVES, "COMBO")}
        inputs = {name: SOCKETS[kind_of(spec)] for name, spec in specs.items() if kind_of(spec) in SOCKETS}
        inputs.pop(ANOTHER_MODEL, None)
        if "mask" in info["input"].get("required", {}):
            inputs["mask"] = ["mask", 0]
        for name, spec in specs.items():
            if kind_of(spec) == "COMFY_AUTOGROW_V3":
                [grown] = spec[1]["template"]["input"]["required"].values()
                inputs |= {f"{name}.{one}": SOCKETS[kind_of(grown)] for one in spec[1]["template"]["names"]}
        for combo, option in zip(dynamic, picked):
            inputs[combo] = option["key"]
            inner = {**option["inputs"].get("required", {}), **option["inputs"].get("optional", {})}
            widgets |= {f"{combo}.{name}": spec for name, spec in inner.items()}
        nodes = {
            "loader": {"class_type": "KleinKitLoader", "inputs": LOADER},
            "image": {"class_type": "EmptyImage", "inputs": dict(width=64, height=64, batch_size=1, color=0)},
            "mask": {"class_type": "SolidMask", "inputs": dict(value=1.0, width=64, height=64)},
            "latent": {"class_type": "EmptyFlux2LatentImage", "inputs": dict(width=64, height=64, batch_size=1)},
            "prompt": {"class_type": "CLIPTextEncode", "inputs": dict(clip=["loader", 1], text="")},
        }
        for name, spec in widgets.items():
            more, inputs[name] = linked(name, kind_of(spec), FITTING.get(name, default_of(spec)))
            nodes |= more
        nodes["node"] = {"class_type": info["name"], "inputs": inputs}
        nodes["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
        yield widgets, nodes


@pytest.fixture(scope="module")
def infos(server):
    return {name: info for name, info in api.get(server, "/object_info").items() if name.startswith("KleinKit")}


def test_every_node_with_widgets_is_here(infos):
    assert {name for name, info in infos.items() if any(widgets for widgets, _ in cases(info))} == set(WITH_WIDGETS)


@pytest.mark.parametrize("node", WITH_WIDGETS)
def test_every_widget_is_a_link(server, infos, node):
    for widgets, prompt in cases(infos[node]):
        outcome = api.queue(server, prompt)
        assert outcome.error is None, (list(widgets), api.sentences(outcome.error))


DYNAMIC = ("KleinKitScheduler", "KleinKitDynamicShift", "KleinKitCFG", "KleinKitReferences")


def dynamic_names(info):
    specs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    return {name for name, spec in specs.items() if kind_of(spec) == "COMFY_DYNAMICCOMBO_V3"}


def test_every_node_with_a_dynamic_list_is_here(infos):
    assert {name for name, info in infos.items() if dynamic_names(info)} == set(DYNAMIC)


@pytest.mark.parametrize("node", DYNAMIC)
def test_a_dynamic_list_is_a_link(server, infos, node):
    """What its choice brings has its defaults: through the link comes the choice alone."""
    names = dynamic_names(infos[node])
    for _, prompt in cases(infos[node]):
        wanted = api.queue(server, prompt)
        inputs = prompt["node"]["inputs"]
        for name in names:
            more, inputs[name] = linked(name, "COMBO", inputs[name])
            prompt |= more
            for brought in [key for key in inputs if key.startswith(f"{name}.") and not key.startswith("images.")]:
                del inputs[brought]
        outcome = api.queue(server, prompt)
        assert outcome.error is None, api.sentences(outcome.error)
        if node == "KleinKitScheduler":
            assert outcome.outputs["show"] == wanted.outputs["show"]


def test_a_linked_choice_that_is_not_in_the_list(server):
    nodes, link = linked("shift", "COMBO", "absent")
    numbers = dict(steps=4, width=64, height=64, denoise=1.0, denoise_mode="ksampler", spacing="uniform", terminal=0.0)
    nodes["node"] = {"class_type": "KleinKitScheduler", "inputs": numbers | {"shift": link}}
    nodes["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 1]}}
    [sentence] = api.sentences(api.queue(server, nodes).error)
    assert sentence.startswith("KleinKitScheduler: Expected `shift` to be one of flux2, ") and "'absent'" in sentence


@pytest.mark.parametrize("name", ["diffusion_model", "text_encoder", "vae"])
def test_a_linked_name_that_is_not_there(server, name):
    nodes, link = linked("name", "COMBO", "absent.safetensors")
    nodes["loader"] = {"class_type": "KleinKitLoader", "inputs": {**LOADER, name: link}}
    nodes["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["loader", 3]}}
    [sentence] = api.sentences(api.queue(server, nodes).error)
    assert "'absent.safetensors' is not a safetensors file in models/" in sentence


def test_a_changed_file_behind_a_link_is_loaded_anew(server):
    file = server.base / "models/diffusion_models/linked-klein.safetensors"
    weights = load_file(server.base / "models/diffusion_models" / LOADER["diffusion_model"])
    nodes, link = linked("name", "COMBO", file.name)
    nodes["loader"] = {"class_type": "KleinKitLoader", "inputs": {**LOADER, "diffusion_model": link}}
    nodes["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["loader", 3]}}

    def steps():
        ran = []
        outcome = api.queue(server, nodes, lambda kind, data: ran.append(data["node"]) if kind == "executing" else 0)
        assert outcome.error is None, api.sentences(outcome.error)
        return "loader" in ran, outcome.outputs["show"]["text"][0]

    try:
        write(file, weights, metadata={"is_distilled": "true"})
        assert steps() == (True, "4")
        assert not steps()[0]
        write(file, weights, metadata={"is_distilled": "false"})
        assert steps() == (True, "50")
        assert not steps()[0]
    finally:
        file.unlink()
