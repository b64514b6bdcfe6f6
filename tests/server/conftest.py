"""Requests to the pack's routes; and a ComfyUI server for tests that break things, started after a kill of the one before."""

import functools
import http.client
import json
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api


@pytest.fixture(scope="session")
def post(server):
    """Send a body, bytes or what JSON can say: `(status, answer)`."""

    def send(body, headers=prompts.JSON, path="/kleinkit/sigmas"):
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        try:
            connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or "null")
        finally:
            connection.close()

    return send


@pytest.fixture(scope="session")
def of_workflow():
    """A workflow of the pack as a prompt that is quickly done."""
    return functools.partial(prompts.of_workflow, steps=2, values="1, 4")


@pytest.fixture(scope="session")
def ran(server, of_workflow):
    """The outcome of such a prompt, which runs once."""

    @functools.cache
    def ran(name):
        outcome = api.queue(server, of_workflow(name))
        assert outcome.error is None, api.sentences(outcome.error)
        return outcome

    return ran


class Killed(NamedTuple):
    """What was seen of the first server: `fresh`, its first picture; `sweep`, pictures by steps; `error` of the one cut off."""

    fresh: np.ndarray
    sweep: dict
    error: RuntimeError


@pytest.fixture(scope="session")
def base(family):
    """A base directory with the nano family and `fault_pack`."""
    return family("lab", prompts.FAULT_PACK)


@pytest.fixture(scope="session")
def killed(base, comfyui):
    """A server that runs one prompt, and dies in the second step of the prompt `KILLED_AT` of a sweep over the steps."""
    with api.running(comfyui, base) as server:
        fresh, sweep = prompts.run(server, prompts.prompt(prompts.SKIP)), {}
        for steps in prompts.SWEEP:
            fault = ("kill", 2) if steps == prompts.KILLED_AT else ("none", 0)
            try:
                sweep[steps] = prompts.run(server, prompts.prompt(steps=steps, fault=fault))
            except RuntimeError as error:
                return Killed(fresh, sweep, error)
    pytest.fail("The server was not killed.")


@pytest.fixture(scope="session")
def lab(killed, base, comfyui):
    """The server that was started again in the same base directory."""
    with api.running(comfyui, base) as server:
        yield server
