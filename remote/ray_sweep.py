"""A sweep over several ComfyUI servers: `python3 tasks.py sweep`.

Each value of a workflow's Klein Sweep becomes a prompt of its own. Ray holds the prompts as tasks. Where a server ends, Ray
runs its prompts again on another one. What waits for a server waits in the server's own queue.
"""

import argparse
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from ..checks import expected, in_node
from ..harness import server as api
from ..report.sheet import sheet
from ..report.sweep import label, parse_values
from .slot import SLOT, SLOTS, run, server_of, waiting

SWEEP, SHEET = "KleinKitSweep", "KleinKitContactSheet"
# Klein Sweep's outputs `label` and `whole number`.
LABELS, WHOLE = 1, 2
STARTS = 3
OBJECT_STORE = 256 * 2**20


def read_prompt(path: Path) -> dict:
    """The prompt in a file.

    Args:
        path: of a file in API format. Only the editor knows what its own format comes to: which nodes are muted or bypassed,
            what is in a subgraph, where a reroute or a primitive leads.
    Returns:
        `{node id: {"class_type": …, "inputs": …}}`.
    Raises:
        ValueError: it is not in API format.
    """
    try:
        # An editor of texts may have put a mark of UTF-8 in front.
        prompt = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(prompt, dict) and "nodes" in prompt:
        raise ValueError(
            f"{path} is a workflow in the editor's format. Open it in ComfyUI, choose File → Export (API), and give that "
            "file to this command."
        )
    if not (isinstance(prompt, dict) and prompt and all(map(is_node, prompt.values()))):
        raise ValueError(f"{path} is not a workflow in API format. In ComfyUI, File → Export (API) writes one.")
    return prompt


def is_node(value) -> bool:
    """Whether a value is a node in API format."""
    return isinstance(value, dict) and isinstance(value.get("class_type"), str) and isinstance(value.get("inputs"), dict)


def of_type(prompt: dict, kind: str) -> dict:
    """The nodes of a type, by their ids."""
    return {number: node for number, node in prompt.items() if node["class_type"] == kind}


def is_link(value) -> bool:
    """Whether an input is a link, `[node id, slot]`."""
    return isinstance(value, list) and [type(part) for part in value] == [str, int]


def check_links(prompt: dict) -> None:
    """Check that every link has a node at its other end, and that something goes by the sweep and can take its values.

    Raises:
        ValueError: a link leads nowhere, all prompts would be the same, or a value is not whole where it has to be.
    """
    (sweep, labels), swept = sweep_of(prompt), False
    broken = next((text for text in labels if not float(text).is_integer()), None)
    for number, node in prompt.items():
        for name, value in node["inputs"].items():
            if is_link(value) and value[0] not in prompt:
                kind = node["class_type"]
                raise ValueError(f"`{name}` of {kind} ({number}) is linked to node {value[0]}, which is not there.")
            if value == [sweep, WHOLE] and broken:
                with in_node("Klein Sweep"):
                    raise expected("values", f"whole numbers for `{name}` of {node['class_type']} ({number})", float(broken))
            swept |= is_link(value) and value[0] == sweep and node["class_type"] != SHEET
    if not swept:
        raise ValueError("Nothing goes by Klein Sweep: connect `value` to cfg, or to any other number.")


def sweep_of(prompt: dict) -> tuple[str, list[str]]:
    """The one Klein Sweep of a prompt.

    Returns:
        Its id, and the label of each of its values.
    Raises:
        ValueError: there is not exactly one, or its values are not numbers, or come over a link.
    """
    sweeps = of_type(prompt, SWEEP)
    if len(sweeps) != 1:
        raise ValueError(f"Expected a workflow with one Klein Sweep, but got {len(sweeps)}.")
    [(number, node)] = sweeps.items()
    values = node["inputs"].get("values")
    with in_node("Klein Sweep"):
        if not isinstance(values, str):
            raise expected("values", "typed into the node, not connected", values)
        return number, [label(value) for value in parse_values(values)]


def behind_sheets(prompt: dict) -> set[str]:
    """The nodes that need a Klein Contact Sheet."""
    sheets, behind = of_type(prompt, SHEET).keys(), set()
    while more := {
        number
        for number, node in prompt.items()
        if number not in behind and any(is_link(value) and value[0] in sheets | behind for value in node["inputs"].values())
    }:
        behind |= more
    return behind


def split(prompt: dict) -> dict[str, dict]:
    """A prompt with one Klein Sweep as one prompt a value.

    In place of each Klein Contact Sheet is a node that saves what the sheet would show; what is behind a sheet is left out.

    Args:
        prompt: in API format.
    Returns:
        `{name: prompt}`, the name being the value's label; a value that comes again is named "2 (2)".
    Raises:
        ValueError: as of `sweep_of`.
    """
    number, labels = sweep_of(prompt)
    saved = {
        other: {"class_type": "SaveImage", "inputs": {"images": node["inputs"]["images"], "filename_prefix": "KleinKit"}}
        for other, node in of_type(prompt, SHEET).items()
    }
    behind = behind_sheets(prompt)
    kept = {other: node for other, node in (prompt | saved).items() if other not in behind}
    seen, prompts = Counter(), {}
    for text in labels:
        seen[text] += 1
        name = text if seen[text] == 1 else f"{text} ({seen[text]})"
        prompts[name] = {**kept, number: {"class_type": SWEEP, "inputs": {"values": text}}}
    return prompts


def check_sheets(prompt: dict) -> None:
    """Check that each Klein Contact Sheet can be made here of the pictures.

    Raises:
        ValueError: it cannot.
    """
    (sweep, labels), behind = sweep_of(prompt), behind_sheets(prompt)
    for number, node in of_type(prompt, SHEET).items():
        with in_node(f"Klein Contact Sheet ({number})"):
            inputs = node["inputs"]
            if not is_link(inputs.get("images")) or number in behind:
                raise expected("images", "connected to pictures, not to another sheet", inputs.get("images"))
            if inputs.get("labels", [sweep, LABELS]) != [sweep, LABELS]:
                raise expected("labels", "connected to `label` of Klein Sweep, or to nothing", inputs["labels"])
            for name in ("columns", "title"):
                if is_link(inputs.get(name)):
                    raise expected(name, "typed into the node, not connected", inputs[name])
            # One dot a value stands for the pictures that are not there yet.
            contact_sheet(prompt, number, [[Image.new("RGB", (1, 1))] for _ in labels])


def contact_sheet(prompt: dict, number: str, pictures: list[list[Image.Image]]) -> Image.Image:
    """The sheet that the prompt would have made of all pictures.

    Args:
        prompt: as it was before `split`.
        number: id of the Klein Contact Sheet.
        pictures: those of each value, in the order of the values.
    Returns:
        The sheet.
    Raises:
        ValueError: the settings of the node do not fit.
    """
    inputs = of_type(prompt, SHEET)[number]["inputs"]
    images = [[torch.from_numpy(np.array(image.convert("RGB"))) / 255.0 for image in batch] for batch in pictures]
    labels = sweep_of(prompt)[1] if "labels" in inputs else ()
    page = sheet(images, labels, inputs.get("columns", 4), inputs.get("title", ""))[0]
    return Image.fromarray((page * 255.0).round().byte().numpy())


def check_servers(urls: list[str], prompt: dict) -> None:
    """Check that the servers that answer have the nodes of a prompt; say which ones do not answer.

    Raises:
        ValueError: none answers, a server lacks a node, a node lacks an input, or no node of the prompt saves a picture.
    """
    silent = [url for url in urls if waiting(url) is None]
    if silent == urls:
        raise ValueError(f"None of the servers answers: {', '.join(urls)}.")
    for url in silent:
        print(f"{url} does not answer; the others do its part.", flush=True)
    for url in urls:
        if url in silent:
            continue
        known = api.get(server_of(url), "/object_info")
        kinds = {node["class_type"] for node in prompt.values()}
        if missing := sorted(kinds - known.keys()):
            raise ValueError(
                f"{url} does not have the node {', '.join(missing)}: install its pack there, or leave the server out."
            )
        for number, node in prompt.items():
            required = known[node["class_type"]]["input"].get("required", {})
            # Inputs that grow with what is connected have names of their own.
            growing = {name for name, (kind, *_) in required.items() if str(kind).startswith("COMFY_")}
            if missing := sorted(required.keys() - growing - node["inputs"].keys()):
                raise ValueError(f"{node['class_type']} ({number}) lacks `{'`, `'.join(missing)}`: connect it, or type it in.")
        if not any(known[kind]["output_node"] for kind in kinds):
            raise ValueError("No node of the workflow saves or shows a picture: add Save Image or Klein Contact Sheet.")


def start(slots: int) -> None:
    """Start Ray on this machine, for so many prompts at once."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The workers make `kleinkit` as this process did.
    workers = {"env_vars": {"PYTHONPATH": str(api.ROOT)}, "worker_process_setup_hook": "tasks.as_package"}
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                resources={SLOT: slots},
                runtime_env=workers,
                include_dashboard=False,
                configure_logging=False,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE,
            )
            return
        except Exception:
            # Ray gives its own processes 15 seconds to come up: on a busy machine not always enough.
            ray.shutdown()
            if not left:
                raise


def sweep(urls: list[str], prompts: dict[str, dict]) -> Iterator[tuple[str, str, dict[str, list[bytes]], list[str]]]:
    """Run prompts on servers.

    Args:
        urls: of the servers, which hold the same pack and the same model files.
        prompts: `{name: prompt}`.
    Yields:
        `(name, url, pictures, sentences)` as they come, the last three as of `run`.
    Raises:
        ray.exceptions.RayTaskError: no server is left.
    """
    start(SLOTS * len(urls))
    try:
        tasks = {run.remote(urls, prompt): name for name, prompt in prompts.items()}
        while tasks:
            [done], _ = ray.wait(list(tasks))
            yield tasks.pop(done), *ray.get(done)
    finally:
        ray.shutdown()


def main(arguments: list[str]) -> None:
    """Check everything, run a prompt a value, and write the pictures and the sheets; exits with a sentence where it cannot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--servers", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    urls = [url if "://" in url else f"http://{url}" for url in options.servers]
    try:
        prompt = read_prompt(options.workflow)
        check_links(prompt)
        check_sheets(prompt)
        prompts = split(prompt)
        check_servers(urls, next(iter(prompts.values())))
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    made, failed, sheets = {}, 0, of_type(prompt, SHEET)
    for name, url, pictures, sentences in sweep(urls, prompts):
        made[name] = pictures
        lost = [number for number in sheets if number not in pictures]
        sentences = sentences or [f"No picture came for Klein Contact Sheet ({number})." for number in lost]
        failed += bool(sentences)
        for number, png in enumerate(png for node in sorted(pictures) for png in pictures[node]):
            (options.out / f"{name}-{number}.png").write_bytes(png)
        print(f"{len(made)} of {len(prompts)}: {name} from {url}", *sentences, sep="\n  ", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(prompts)} failed.")
    for number in sheets:
        pictures = [[Image.open(io.BytesIO(png)) for png in made[name][number]] for name in prompts]
        file = "sheet.png" if len(sheets) == 1 else f"sheet-{number}.png"
        contact_sheet(prompt, number, pictures).save(options.out / file)
