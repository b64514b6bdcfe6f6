"""What happens in a run: KleinKitProbe records it, KleinKitReport shows it."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..checks import names_itself
from ..engine.sampling import with_probe
from ..engine.watch import Probe
from ..report.record import RunRecord, as_json

PROBE = io.Custom("KLEINKIT_PROBE")


@names_itself
class KleinKitProbe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitProbe",
            display_name="Klein Probe",
            category="KleinKit/study",
            description="Records every step of the runs that use this model: cfg, passes, blocks, the sizes of the predictions "
            "and the angle between them, and the time. Draws it while it runs. The picture stays the same.",
            search_aliases=["telemetry", "measure", "debug sampling", "statistics", "monitor"],
            inputs=[io.Model.Input("model", tooltip="The model to watch. Guidance nodes can come before or after.")],
            outputs=[
                io.Model.Output(tooltip="The model with the probe: connect the sampler here."),
                PROBE.Output(display_name="probe", tooltip="For Klein Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        probe = Probe(cls.hidden.unique_id)
        return io.NodeOutput(with_probe(model, probe), probe)


@names_itself
class KleinKitReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitReport",
            display_name="Klein Report",
            category="KleinKit/study",
            description="What a probe recorded, as a plot and as JSON.",
            search_aliases=["plot", "telemetry", "statistics", "json", "chart"],
            inputs=[
                PROBE.Input("probe", tooltip="From Klein Probe."),
                io.Latent.Input(
                    "latent", tooltip="What the sampler made: the report waits for it, and shows the runs that led to it."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="A panel for each thing that was measured, by model call."),
                io.String.Output(display_name="json", tooltip="The same numbers; the help page describes them."),
            ],
            is_input_list=True,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, probe: list[Probe], latent: list[dict]) -> io.NodeOutput:
        sources = upstream(cls.hidden.prompt, cls.hidden.unique_id)
        # A list of models has gone through the probe node several times.
        runs = [run for one in dict.fromkeys(probe) for run in one.runs if led_here(run, sources)]
        if not runs:
            raise ValueError(
                "Expected `probe` to have records of the run that made `latent`, but got none: connect the probe's model to "
                "that sampler; if it is connected, change the seed to run it again."
            )
        try:
            # Here alone: without matplotlib, only this node fails; with it, ComfyUI starts no slower.
            from ..report.plot import plot
        except ImportError as error:
            raise ValueError(f"The plot needs matplotlib in ComfyUI's Python (pip install matplotlib): {error}.") from error
        return io.NodeOutput(torch.from_numpy(plot(runs)).float().div_(255.0)[None], as_json(runs))


def upstream(prompt: dict | None, node: str) -> set[str] | None:
    """The ids of the nodes that a node of a prompt depends on; None where they are not known."""
    if not prompt or node not in prompt:
        return None
    found, waiting = set(), [node]
    while waiting:
        for value in prompt[waiting.pop()]["inputs"].values():
            source = value[0] if isinstance(value, list) and value else None
            if isinstance(source, str) and source in prompt and source not in found:
                found.add(source)
                waiting.append(source)
    return found


def led_here(run: RunRecord, sources: set[str] | None) -> bool:
    """Whether a run was of one of these samplers. A node that was expanded into others gives them its id, a dot, and more."""
    return sources is None or run.sampler is None or run.sampler.split(".")[0] in sources


NODES = [KleinKitProbe, KleinKitReport]
