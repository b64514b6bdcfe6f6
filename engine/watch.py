"""What a probe sees of a sampling run. Without a probe nothing here runs."""

import math
import time
from collections.abc import Iterable

import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..guidance.measure import MEASURES, velocity_measures
from ..guidance.rule import COND, UNCOND
from ..report.record import RunRecord
from .run import LATENT, RESULT, Run, all_finite

PROBES = "kleinkit_probes"
EVENT = "kleinkit.probe"
MOST_RUNS = 256


class Probe:
    """The runs that went through one probe node, each sampler's of its last prompt.

    ComfyUI keeps a node's outputs as long as its inputs stay: one object sees many prompts, and in some of them only a few
    of its samplers run again.

    Attributes:
        node: id of the probe node.
        runs: of `RunRecord`, in the order in which they ran.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.runs: list[RunRecord] = []

    def begin(self, run: RunRecord) -> None:
        """Add a run; what its sampler did in earlier prompts goes."""

        def stays(other: RunRecord) -> bool:
            return other.sampler != run.sampler or (run.prompt is not None and other.prompt == run.prompt)

        self.runs = [*filter(stays, self.runs), run][-MOST_RUNS:]

    def send(self, run: RunRecord, call: dict) -> None:
        """Send a call to the editor that queued the prompt; a worker without a server has none."""
        server = getattr(PromptServer, "instance", None)
        client, send = getattr(server, "client_id", None), getattr(server, "send_sync", None)
        if client is not None and send is not None:
            number = sum(one.prompt == run.prompt for one in self.runs)
            send(
                EVENT,
                {
                    "node": self.node,
                    "prompt_id": run.prompt,
                    "run": number,
                    "call": len(run.calls),
                    "steps": len(run.sigmas) - 1,
                    **call,
                },
                client,
            )


class Watch:
    """Records the model calls of one run for its probes: one host synchronisation a call, after the model."""

    def __init__(self, probes: list[Probe], run: Run, shape: Iterable[int]) -> None:
        context = get_executing_context()
        self.probes, self.of = probes, run
        self.run = RunRecord(
            context and context.node_id,
            context and context.prompt_id,
            [rule.node for rule in run.rules],
            list(shape),
            run.sigmas,
        )
        for probe in probes:
            probe.begin(self.run)
        self.begin()

    def begin(self) -> None:
        """A model call begins."""
        self.cfg, self.cond, self.uncond = None, None, None
        self.started = time.perf_counter()

    def see(self, cfg: float, cond: torch.Tensor | None, uncond: torch.Tensor | None) -> None:
        """The predictions of the call, as x0, and the scale that joined them. None is one that did not run."""
        self.cfg, self.cond, self.uncond = cfg, cond, uncond

    def end(self, x: torch.Tensor, timestep: torch.Tensor, denoised: torch.Tensor) -> None:
        """A model call has ended: measure it, keep the numbers, and send them."""
        sigma = timestep.flatten()[0].float()
        values = velocity_measures(x, sigma, denoised, self.cond, self.uncond)
        seen = {LATENT: x, COND: self.cond, UNCOND: self.uncond, RESULT: denoised}
        finite = {name: all_finite(tensor) for name, tensor in seen.items() if tensor is not None}
        sigma, *values = torch.cat([torch.stack([sigma, *finite.values()]), values]).tolist()
        broken = [name for name, whole in zip(finite, values) if not whole]
        values = values[len(finite) :]
        milliseconds = (time.perf_counter() - self.started) * 1000.0
        self.cond = self.uncond = None
        step = self.of.index if self.of.rules else self.of.enter(sigma)
        # Where there are rules, the sampler's own check knows their passes too.
        if RESULT in broken and not self.of.rules:
            self.of.warn_not_finite(broken, step, sigma)
        blocks = [call.blocks for call in self.of.model_calls]
        call = {
            "step": step,
            "sigma": for_json(sigma),
            "cfg": None if self.cfg is None else for_json(self.cfg),
            "passes": sum(len(call.rows) for call in self.of.model_calls),
            "blocks": None if None in blocks else sum(blocks),
            **{name: for_json(value) for name, value in zip(MEASURES, values)},
            "milliseconds": round(milliseconds, 2),
        }
        self.run.calls.append(call)
        for probe in self.probes:
            probe.send(self.run, call)


def for_json(value: float) -> float | None:
    """A float32 in as many digits as it has. None where it is NaN or infinite, which JSON does not know."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
