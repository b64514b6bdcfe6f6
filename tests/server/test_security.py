"""What a run does to the machine: it talks to nobody, starts nothing, and writes pictures only."""

from pathlib import Path

import prompts
import pytest
from kleinkit.harness import server as api

PROBE = ("KleinKitProbe", {})
RULES = (
    prompts.SKIP,
    ("KleinKitCFG", {"schedule": "skip", "schedule.mode": "late", "schedule.guided_ratio": 0.5, "unguided": "conditional"}),
    ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1)),
    ("KleinKitRenorm", dict(mode="token", strength=0.5, shrink_only=True)),
    ("KleinKitTCFG", {}),
    ("KleinKitAdaptiveGuidance", dict(threshold=0.99)),
    ("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0)),
    ("KleinKitBaseUncond", dict(base_model=["base", 0])),
    (
        "KleinKitAutoGuidance",
        dict(scale=2, double_layers="", single_layers="", prompt="both", start=0, end=1, weak_model=["base", 0]),
    ),
    ("KleinKitSEG", dict(scale=2.0, double_layers="0", single_layers="1", start=0.0, end=1.0, blur_sigma=1.0)),
    ("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0)),
    PROBE,
    ("KleinKitGuidance", dict(preset="negative_prompt")),
)
# They exclude each other.
COMBINATIONS = (
    ("KleinKitSlerpCFG", {}),
    ("KleinKitImageCFG", dict(image_scale=2.0)),
    ("KleinKitAPG", dict(eta=0.0, norm_threshold=15.0, momentum=-0.5, space="denoised", start=0.0, scale=0.0)),
    ("KleinKitMAMBOG", dict(alpha=2.0)),
    ("KleinKitFDG", dict(shares="1, 0.2, 0.7")),
)


def every_node(combination, fault=("none", 0)):
    """A prompt with every node of the pack but all of those but one that exclude each other."""
    wanted = prompts.prompt(*RULES, combination, steps=4, fault=fault)
    more = {
        "base": ("UNETLoader", dict(unet_name="flux-2-klein-nano.safetensors", weight_dtype="default")),
        "sweep": ("KleinKitSweep", dict(values="3, 4")),
        "black": ("EmptyImage", dict(width=70, height=50, batch_size=1, color=0)),
        "references": (
            "KleinKitReferences",
            {
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "vae": ["loader", 2],
                "images.image_1": ["black", 0],
                "size": "megapixels",
                "size.megapixels": 1.0,
                "latent_from": "width and height",
                "latent_from.width": 64,
                "latent_from.height": 64,
            },
        ),
        "sigmas": (
            "KleinKitScheduler",
            dict(
                steps=4, width=64, height=64, denoise=1.0, denoise_mode="ksampler", shift="flux2", spacing="beta", terminal=0.0
            ),
        ),
        "show": ("PreviewAny", dict(source=["sigmas", 0])),
        "mask": ("SolidMask", dict(value=1.0, width=64, height=64)),
        "crop": ("KleinKitInpaintCrop", dict(image=["picture", 0], mask=["mask", 0], padding=32)),
        "stitch": ("KleinKitInpaintStitch", dict(image=["crop", 0], crop=["crop", 2])),
        "sheet": ("KleinKitContactSheet", dict(images=["stitch", 0], labels=["sweep", 1], columns=2, title="cfg")),
        "report": ("KleinKitReport", dict(probe=[f"rule{RULES.index(PROBE)}", 1], latent=["sampler", 0])),
        "plot": ("PreviewImage", dict(images=["report", 0])),
        "look": ("KleinKitTestState", dict(image=["sheet", 0])),
    }
    wanted |= {key: {"class_type": node, "inputs": inputs} for key, (node, inputs) in more.items()}
    wanted["sampler"]["inputs"] |= dict(cfg=["sweep", 0], positive=["references", 0], negative=["references", 1])
    wanted["save"]["inputs"]["images"] = ["sheet", 0]
    return wanted


def events(server, wanted):
    """What a prompt did: `(audit event, its argument)`."""
    outcome = api.queue(server, wanted)
    assert outcome.error is None, api.sentences(outcome.error)
    # The state is taken while pictures may still have to be saved.
    return prompts.state(server)[1]["events"]


@pytest.fixture(scope="module")
def quiet(lab):
    """The server, whose audit holds nothing of before."""
    prompts.state(lab)
    return lab


def test_every_node_is_in_one_of_the_prompts(quiet):
    known = {name for name in api.get(quiet, "/object_info") if name.startswith("KleinKit") and "Test" not in name}
    used = {node["class_type"] for combination in COMBINATIONS for node in every_node(combination).values()}
    assert known <= used


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda pair: pair[0])
def test_a_run_talks_to_nobody_and_writes_pictures_only(quiet, combination):
    for event, argument in events(quiet, every_node(combination)):
        assert event == "open"
        assert Path(argument).suffix == ".png"
        assert any(Path(argument).is_relative_to((quiet.base / folder).resolve()) for folder in ("output", "temp"))


def test_the_audit_sees_what_it_looks_for(quiet):
    seen = {event for event, _ in events(quiet, prompts.prompt(fault=("misbehave", 1)))}
    assert {"socket.connect", "subprocess.Popen", "open"} <= seen
