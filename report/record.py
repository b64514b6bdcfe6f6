"""The record of a sampling run, and the JSON that reports hand on."""

import json
from dataclasses import asdict, dataclass, field

SCHEMA = "kleinkit.report/1"


@dataclass
class RunRecord:
    """One run of a sampler.

    Attributes:
        sampler, prompt: ids of the node that sampled and of the prompt; None where ComfyUI does not say.
        guidance: ids of the guidance nodes.
        latent: its shape.
        sigmas: n + 1 floats.
        calls: a dict for each model call, as the help page of KleinKitReport describes it.
    """

    sampler: str | None
    prompt: str | None
    guidance: list
    latent: list
    sigmas: list
    calls: list = field(default_factory=list)


def as_json(runs):
    """The JSON of runs, in the schema `kleinkit.report/1`: a change of what a name means is a new number."""
    return json.dumps({"schema": SCHEMA, "runs": [asdict(run) for run in runs]}, allow_nan=False, indent=1)
