"""What a probe sees of a sampling run. Without a probe nothing here runs."""

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..guidance.measure import MEASURES, measure
from ..guidance.plan import step_index
from ..guidance.rule import Rule
from ..report.record import RunRecord
from .skip_pass import blocks_of, is_compiled

PROBES = "kleinkit_probes"
COUNT = "kleinkit_count"
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

    def __init__(self, probes: list[Probe], sigmas: list[float], shape: Iterable[int], rules: Iterable[Rule]) -> None:
        context = get_executing_context()
        self.probes = probes
        self.run = RunRecord(
            context and context.node_id, context and context.prompt_id, [rule.node for rule in rules], list(shape), sigmas
        )
        for probe in probes:
            probe.begin(self.run)
        self.step = None
        self.begin()

    def counting(self, transformer_options: dict) -> dict:
        """The options of a run, or of its passes on another model, with every model call counted."""
        wrappers = transformer_options.get("wrappers", {})
        apply_model = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), COUNT: [self.count]}
        return {**transformer_options, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: apply_model}}

    def count(
        self,
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None,
        c_crossattn: torch.Tensor | None,
        control: dict | None,
        transformer_options: dict,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Wrapper of ComfyUI's `apply_model`: how many passes share the call, and how many blocks it runs."""
        passes = len(transformer_options.get("cond_or_uncond", (0,)))
        # A compiled model would be compiled anew.
        compiled = is_compiled({"transformer_options": transformer_options})
        blocks = [] if compiled else [block for kind in blocks_of(executor.class_obj).values() for block in kind]
        ran = []
        hooks = [block.register_forward_pre_hook(lambda *_: ran.append(passes)) for block in blocks]
        try:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
            # Several devices call at once: one append is one.
            self.counted.append((passes, sum(ran) if blocks else None))

    def begin(self) -> None:
        """A model call begins."""
        self.counted, self.cfg, self.cond, self.uncond = [], None, None, None
        self.started = time.perf_counter()

    def see(self, cfg: float, cond: torch.Tensor | None, uncond: torch.Tensor | None) -> None:
        """The predictions of the call, as x0, and the scale that joined them; None: did not run."""
        self.cfg, self.cond, self.uncond = cfg, cond, uncond

    def end(self, x: torch.Tensor, timestep: torch.Tensor, denoised: torch.Tensor) -> None:
        """A model call has ended: measure it, keep the numbers, and send them."""
        sigma = timestep.flatten()[0].float()
        sigma, *values = torch.cat([sigma[None], measure(x, sigma, denoised, self.cond, self.uncond)]).tolist()
        milliseconds = (time.perf_counter() - self.started) * 1000.0
        self.cond = self.uncond = None
        self.step = step_index(sigma, self.run.sigmas, self.step)
        blocks = [count for _, count in self.counted]
        call = {
            "step": self.step,
            "sigma": finite(sigma),
            "cfg": None if self.cfg is None else finite(self.cfg),
            "passes": sum(count for count, _ in self.counted),
            "blocks": None if None in blocks else sum(blocks),
            **{name: finite(value) for name, value in zip(MEASURES, values)},
            "milliseconds": round(milliseconds, 2),
        }
        self.run.calls.append(call)
        for probe in self.probes:
            probe.send(self.run, call)


def finite(value: float) -> float | None:
    """A float32 in as many digits as it has, or None: JSON knows neither NaN nor infinity."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
