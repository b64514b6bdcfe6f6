"""Sweeps: many values in one prompt, and their pictures side by side."""

from collections.abc import Sequence

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..checks import expected, names_itself
from ..report.sheet import MOST_COLUMNS, sheet
from ..report.sweep import MOST_VALUES, label, parse_values


@names_itself
class KleinKitSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitSweep",
            display_name="Klein Sweep",
            category="KleinKit/study",
            description="A list of numbers: whatever is connected runs once for each of them, in one prompt. Connect it to cfg "
            "or to any other number, and the pictures to Klein Contact Sheet.",
            search_aliases=[
                "xy plot",
                "grid",
                "list of numbers",
                "cfg study",
                "compare cfg",
                "range",
                "cfg 比較",
                "cfg 对比",
                "比较",
            ],
            inputs=[
                io.String.Input(
                    "values",
                    default="1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 50, 100",
                    tooltip="Numbers and ranges between commas, such as `1, 2.5, 4:10:2`. A range is "
                    f"start:end:step and includes its end. At most {MOST_VALUES} numbers.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="value", is_output_list=True, tooltip="The numbers, one run each."),
                io.String.Output(display_name="label", is_output_list=True, tooltip="The same as texts, for labels."),
                io.Int.Output(
                    display_name="whole number",
                    is_output_list=True,
                    tooltip="The same for inputs of whole numbers, such as steps. A number such as 2.5 stops what it is "
                    "connected to.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, values: str | None = None) -> bool | str:
        try:
            if values is not None:
                parse_values(values)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, values: str) -> io.NodeOutput:
        numbers = parse_values(values)
        return io.NodeOutput(list(numbers), [label(value) for value in numbers], [whole(value) for value in numbers])


def whole(value: float) -> int | ExecutionBlocker:
    """A number for an INT input. Where it is none, the node that gets it does not run, and says why; the others run."""
    if value.is_integer():
        return int(value)
    return ExecutionBlocker(f"Klein Sweep: {expected('values', 'whole numbers for this input', value)}")


@names_itself
class KleinKitContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitContactSheet",
            display_name="Klein Contact Sheet",
            category="KleinKit/study",
            description="All pictures of a list or a batch side by side on one sheet, each with its label. No picture is "
            "scaled.",
            search_aliases=[
                "xy plot",
                "image grid",
                "compare images",
                "compare cfg",
                "labelled grid",
                "cfg 比較",
                "cfg 对比",
                "比较",
            ],
            inputs=[
                io.Image.Input("images", tooltip="A list of pictures, of batches too; sizes may differ."),
                io.String.Input(
                    "labels",
                    optional=True,
                    force_input=True,
                    tooltip="The texts below the pictures, such as `label` of Klein Sweep: one for each entry of "
                    "the list, or one for each picture.",
                ),
                io.Int.Input("columns", default=4, min=1, max=MOST_COLUMNS, tooltip="Pictures in a row."),
                io.String.Input("title", default="", tooltip="A text above the pictures; empty is none."),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="The sheet, one picture.")],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls, images: list[torch.Tensor], columns: list[int], title: list[str], labels: Sequence[str] = ()
    ) -> io.NodeOutput:
        bar = ProgressBar(sum(map(len, images)))
        return io.NodeOutput(sheet(images, labels, columns[0], title[0], lambda: bar.update(1)))


NODES = [KleinKitSweep, KleinKitContactSheet]
