"""A sweep of cfg through the API: the probe's live events, the contact sheet, and the report."""

import json

import pytest
from kleinkit.harness import server as api
from PIL import Image

STEPS, SIDE = 2, 64
NODES = {
    "model": (
        "KleinKitLoader",
        dict(
            diffusion_model="flux-2-klein-nano-base.safetensors",
            text_encoder="auto",
            vae="auto",
            variant="auto",
            weight_dtype="default",
            distilled_cfg="ignore",
            trim_text_encoder=True,
        ),
    ),
    "positive": ("CLIPTextEncode", dict(clip=["model", 1], text="a red circle")),
    "negative": ("CLIPTextEncode", dict(clip=["model", 1], text="")),
    "latent": ("EmptyFlux2LatentImage", dict(width=SIDE, height=SIDE, batch_size=1)),
    "probe": ("KleinKitProbe", dict(model=["model", 0])),
    "sweep": ("KleinKitSweep", dict(values="1:3")),
    "sampler": (
        "KSampler",
        dict(
            model=["probe", 0],
            seed=1,
            steps=STEPS,
            cfg=["sweep", 0],
            sampler_name="euler",
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
        ),
    ),
    "picture": ("VAEDecode", dict(samples=["sampler", 0], vae=["model", 2])),
    "sheet": ("KleinKitContactSheet", dict(images=["picture", 0], labels=["sweep", 1], columns=2, title="cfg")),
    "save": ("SaveImage", dict(images=["sheet", 0], filename_prefix="sheet")),
    "report": ("KleinKitReport", dict(probe=["probe", 1], latent=["sampler", 0])),
    "json": ("PreviewAny", dict(source=["report", 1])),
    "plot": ("PreviewImage", dict(images=["report", 0])),
}


def queue(server, seed, *others):
    """Queue the sweep; `(outcome, events of the probe, runs of the report)`."""
    prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in {**NODES, **dict(others)}.items()}
    prompt["sampler"]["inputs"]["seed"] = seed
    events = []
    outcome = api.queue(server, prompt, on_event=lambda name, data: events.append(data) if name == "kleinkit.probe" else None)
    assert outcome.error is None, api.sentences(outcome.error)
    [text] = outcome.outputs[others[-1][0] if others else "json"]["text"]
    return outcome, events, json.loads(text)["runs"]


@pytest.fixture(scope="module")
def first(server):
    return queue(server, 1)


def test_each_step_of_each_run_is_sent_as_it_happens(first):
    _, events, _ = first
    assert [(event["run"], event["call"], event["steps"]) for event in events] == [
        (run, call, STEPS) for run in (1, 2, 3) for call in (1, 2)
    ]
    assert [event["cfg"] for event in events] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert [event["passes"] for event in events] == [1, 1, 2, 2, 2, 2]
    assert {event["node"] for event in events} == {"probe"}


def test_the_report_has_the_same_numbers_in_a_run_each(first):
    _, events, runs = first
    sent = {key: [event[key] for event in events] for key in runs[0]["calls"][0]}
    assert {key: [call[key] for run in runs for call in run["calls"]] for key in sent} == sent
    assert [run["sampler"] for run in runs] == ["sampler"] * 3


def test_the_sheet_has_every_picture(server, first):
    [sheet] = [path for path in api.pictures(server, first[0]) if path.name.startswith("sheet")]
    with Image.open(sheet) as image:
        assert image.width > 2 * SIDE and image.height > 2 * SIDE


def test_another_seed_replaces_the_records_of_the_cached_probe(server, first):
    _, events, runs = queue(server, 2)
    assert len(events) == 3 * STEPS and len(runs) == 3
    assert {run["prompt"] for run in runs}.isdisjoint(run["prompt"] for run in first[2])


def test_a_report_added_later_sees_the_cached_run(server):
    _, _, runs = queue(server, 3)
    _, events, again = queue(
        server,
        3,
        ("late", ("KleinKitReport", dict(probe=["probe", 1], latent=["sampler", 0]))),
        ("late json", ("PreviewAny", dict(source=["late", 1]))),
    )
    assert events == [] and again == runs


def test_a_report_of_a_sampler_without_the_probe(server):
    beside = ("other", ("KSampler", NODES["sampler"][1] | {"model": ["model", 0], "cfg": 1.0, "seed": 4}))
    prompt = {
        key: {"class_type": kind, "inputs": inputs}
        for key, (kind, inputs) in {**NODES, **dict([beside])}.items()
        if key in ("model", "positive", "negative", "latent", "probe", "other", "report", "json")
    }
    prompt["report"] = {"class_type": "KleinKitReport", "inputs": dict(probe=["probe", 1], latent=["other", 0])}
    [sentence] = api.sentences(api.queue(server, prompt).error)
    assert sentence.startswith("KleinKitReport: Expected `probe` to have records of the run that made `latent`, but got none")


def test_a_sweep_of_steps(server):
    """Whole numbers sweep an INT input; one that is none stops its own run, with a sentence."""
    wanted = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in NODES.items()}
    wanted["sampler"]["inputs"] |= {"steps": ["sweep", 2], "cfg": 2.0, "seed": 6}
    wanted["sweep"]["inputs"]["values"] = "1, 3, 2"
    outcome = api.queue(server, wanted)
    assert outcome.error is None, api.sentences(outcome.error)
    [text] = outcome.outputs["json"]["text"]
    assert [len(run["calls"]) for run in json.loads(text)["runs"]] == [1, 3, 2]
    wanted["sweep"]["inputs"]["values"] = "1, 2.5"
    assert "Klein Sweep: Expected `values` to be whole numbers for this input, but got 2.5." in str(
        api.queue(server, wanted).error
    )
