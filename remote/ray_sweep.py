"""A sweep over several ComfyUI servers: `python3 tasks.py sweep`.

Each value of a workflow's KleinKitSweep is a prompt of its own. Ray holds them as tasks, and runs those again whose server
is gone; the servers' own queues hold what waits there.
"""

import argparse
import asyncio
import io
import json
import os
import random
import sys
from pathlib import Path

import aiohttp
import numpy as np
import ray
import torch
from PIL import Image

from ..harness import server as api
from ..harness.workflow import as_prompt
from ..report.sheet import sheet
from ..report.sweep import label, parse_values

SLOT = "comfyui"
# One prompt runs on a server while the next one waits there.
SLOTS = 2
TRIES = 8
STARTS = 3
HEARTBEAT = 60
OBJECT_STORE = 256 * 2**20


class ServerGone(RuntimeError):
    """A server ended, or stopped answering, before its prompt was done."""


def split(prompt):
    """A prompt with one KleinKitSweep as one prompt a value, without contact sheets: what is behind one gets its pictures.

    Args:
        prompt: in API format.
    Returns:
        `{label: prompt}`.
    Raises:
        ValueError: there is not exactly one KleinKitSweep.
    """
    sweeps = of_type(prompt, "KleinKitSweep")
    if len(sweeps) != 1:
        raise ValueError(f"Expected a workflow with one KleinKitSweep, but got {len(sweeps)}.")
    pictures = {number: node["inputs"]["images"] for number, node in of_type(prompt, "KleinKitContactSheet").items()}
    kept = {
        number: {
            **node,
            "inputs": {
                name: pictures.get(value[0], value) if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        }
        for number, node in prompt.items()
        if number not in pictures
    }
    [number] = sweeps
    return {
        text: {**kept, number: {"class_type": "KleinKitSweep", "inputs": {"values": text}}}
        for text in map(label, parse_values(prompt[number]["inputs"]["values"]))
    }


def of_type(prompt, kind):
    return {number: node for number, node in prompt.items() if node["class_type"] == kind}


def waiting(url):
    """How many prompts a server has to do, or None if it does not answer."""
    try:
        return api.get(api.Server(url, None, None), "/prompt")["exec_info"]["queue_remaining"]
    except OSError:
        return None


@ray.remote(num_cpus=0, resources={SLOT: 1}, max_retries=TRIES, retry_exceptions=[ServerGone])
def run(urls, prompt):
    """Run a prompt on the server that has the least to do.

    Returns:
        `(url, pictures, sentences)`: PNG files as bytes, and what went wrong.
    """
    queues = {url: count for url in random.sample(urls, len(urls)) if (count := waiting(url)) is not None}
    if not queues:
        raise RuntimeError(f"None of the servers answers: {', '.join(urls)}.")
    url = min(queues, key=queues.get)
    try:
        outputs, error = asyncio.run(api.follow(url, prompt, heartbeat=HEARTBEAT))
        pictures = [
            api.download(api.Server(url, None, None), image)
            for output in outputs.values()
            for image in output.get("images", ())
        ]
    except (OSError, aiohttp.ClientError) as reason:
        raise ServerGone(f"{url}: {reason}") from reason
    return url, pictures, api.sentences(error) if error else []


def start(slots):
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


def sweep(urls, prompts):
    """Run prompts on servers.

    Args:
        urls: of the servers, which hold the same pack and the same model files.
        prompts: `{label: prompt}`.
    Yields:
        `(label, url, pictures, sentences)` as they come.
    Raises:
        ray.exceptions.RayTaskError: no server is left.
    """
    start(SLOTS * len(urls))
    try:
        tasks = {run.remote(urls, prompt): text for text, prompt in prompts.items()}
        while tasks:
            [done], _ = ray.wait(list(tasks))
            yield tasks.pop(done), *ray.get(done)
    finally:
        ray.shutdown()


def contact_sheet(prompt, pictures):
    """The sheet that the prompt would have made of all pictures.

    Args:
        prompt: with a KleinKitContactSheet.
        pictures: `{label: [PNG file as bytes]}`.
    Returns:
        `PIL.Image`.
    """
    [node] = of_type(prompt, "KleinKitContactSheet").values()
    images = [
        torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs])) / 255.0
        for pngs in pictures.values()
    ]
    page = sheet(images, list(pictures), node["inputs"]["columns"], node["inputs"]["title"])[0]
    return Image.fromarray((page * 255.0).round().byte().numpy())


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--servers", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    prompt = json.loads(options.workflow.read_text("utf-8"))
    prompt = as_prompt(prompt) if "nodes" in prompt else prompt
    prompts, made, failed = split(prompt), {}, []
    options.out.mkdir(parents=True, exist_ok=True)
    for text, url, pictures, sentences in sweep([url if "://" in url else f"http://{url}" for url in options.servers], prompts):
        made[text] = pictures
        failed += sentences
        for number, png in enumerate(pictures):
            (options.out / f"{text}-{number}.png").write_bytes(png)
        print(f"{len(made)} of {len(prompts)}: {text} from {url}", *sentences, sep="\n  ", flush=True)
    if of_type(prompt, "KleinKitContactSheet") and not failed:
        contact_sheet(prompt, {text: made[text] for text in prompts}).save(options.out / "sheet.png")
    if failed:
        sys.exit(f"{len(failed)} of {len(prompts)} failed.")
