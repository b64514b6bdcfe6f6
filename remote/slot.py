"""One prompt of a sweep on one of its servers: all that Ray's workers import. torch is not among it: it takes each 3 s."""

import asyncio
import random

import aiohttp
import ray

from ..harness import server as api

SLOT = "comfyui"
# One prompt runs on a server while the next one waits there.
SLOTS = 2
TRIES = 8
HEARTBEAT = 60


class ServerGone(RuntimeError):
    """A server ended, or stopped answering, before its prompt was done."""


def server_of(url: str) -> api.Server:
    """A server that runs elsewhere, for the functions of `harness.server` that only talk to it."""
    return api.Server(url, None, None)


def waiting(url: str) -> int | None:
    """How many prompts a server has to do, or None if it does not answer."""
    try:
        return api.get(server_of(url), "/prompt")["exec_info"]["queue_remaining"]
    except OSError:
        return None


@ray.remote(num_cpus=0, resources={SLOT: 1}, max_retries=TRIES, retry_exceptions=[ServerGone])
def run(urls: list[str], prompt: dict) -> tuple[str, dict[str, list[bytes]], list[str]]:
    """Run a prompt on the server that has the least to do.

    Returns:
        `(url, pictures, sentences)`: PNG files by the node that saved them, and what went wrong.
    """
    queues = {url: count for url in random.sample(urls, len(urls)) if (count := waiting(url)) is not None}
    if not queues:
        raise RuntimeError(f"None of the servers answers: {', '.join(urls)}.")
    url = min(queues, key=queues.get)
    try:
        outputs, error = asyncio.run(api.follow(url, prompt, heartbeat=HEARTBEAT))
        pictures = {
            number: [api.download(server_of(url), image) for image in output["images"]]
            for number, output in outputs.items()
            if output.get("images")
        }
    except (OSError, aiohttp.ClientError) as reason:
        raise ServerGone(f"{url}: {reason}") from reason
    return url, pictures, api.sentences(error) if error else []
