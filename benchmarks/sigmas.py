"""What sigmas cost: the route of the preview on the real server, and the node side by side with ComfyUI's."""

import http.client
import importlib
import json
import os
import statistics
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from ..harness.inside import enter
from ..harness.server import running
from .timing import seconds, side_by_side

STEPS = 50
REQUESTS = 300
MOST_MILLISECONDS = 5.0


def route(server):
    """The median seconds of a request for the sigmas of `STEPS` steps, on one connection as a browser keeps it."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    body = json.dumps({"steps": STEPS, "width": 1024, "height": 1024, "shift": "flux2", "spacing": "uniform"})

    def request():
        connection.request("POST", "/kleinkit/sigmas", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200 or len(json.load(answer)["sigmas"]) != STEPS + 1:
            raise RuntimeError(f"The route answered with {answer.status}.")

    request()
    try:
        return statistics.median(seconds(request) for _ in range(REQUESTS))
    finally:
        connection.close()


def nodes():
    """KleinKitScheduler and ComfyUI's Flux2Scheduler, called as the executor calls them."""
    enter()
    ours = importlib.import_module("..nodes.scheduler", __package__).KleinKitScheduler
    theirs = importlib.import_module("comfy_extras.nodes_flux").Flux2Scheduler
    for steps in (4, STEPS, 1000):
        side_by_side(
            f"scheduler node, {steps} steps",
            lambda steps=steps: ours.execute(steps, 1024, 1024, 1.0, "ksampler", {"shift": "flux2"}, "uniform", 0.0),
            lambda steps=steps: theirs.execute(steps, 1024, 1024),
            rounds=200,
            against="Flux2Scheduler",
        )


def main(arguments):
    with tempfile.TemporaryDirectory() as base, running(Path(os.environ["COMFYUI_PATH"]), base) as server:
        milliseconds = route(server) * 1e3
    print(
        f"POST /kleinkit/sigmas, {STEPS} steps: median {milliseconds:.3f} ms of {REQUESTS} requests "
        f"(at most {MOST_MILLISECONDS:g} ms)",
        flush=True,
    )
    nodes()
    return int(milliseconds >= MOST_MILLISECONDS)
