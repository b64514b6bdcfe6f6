"""The record of a sampling run, and the JSON of records."""

import json
from dataclasses import asdict, dataclass, field

SCHEMA = "kleinkit.report/1"


@dataclass
class RunRecord:
    """One run of a sampler.

    Attributes:
        sampler, prompt: ids of the node that sampled and of the prompt. None where ComfyUI does not say.
        guidance: ids of the guidance nodes.
        latent: its shape.
        sigmas: of the run, one more than its steps.
        calls: a dict for each model call. The help page of Klein Report describes it.
    """

    sampler: str | None
    prompt: str | None
    guidance: list[str]
    latent: list[int]
    sigmas: list[float]
    calls: list[dict] = field(default_factory=list)


def as_json(runs: list[RunRecord]) -> str:
    """The JSON of runs, in the schema `kleinkit.report/1`. Where a name changes its meaning, the schema gets a new number."""
    return json.dumps({"schema": SCHEMA, "runs": [asdict(run) for run in runs]}, allow_nan=False, indent=1)
