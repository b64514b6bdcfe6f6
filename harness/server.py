"""Start the real ComfyUI with KleinKit in a base directory of its own, and talk to it over its API."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import aiohttp
from PIL import Image

from .workflow import EXAMPLES, NANO_EXAMPLES, NANO_PIXELS

ROOT = Path(__file__).resolve().parent.parent
PACK = "KleinKit"
HOST = "127.0.0.1"
START_SECONDS = 300
STOP_SECONDS = 10
LOG_TAIL = 25
# A proxy of the environment must not come between us and this machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Server(NamedTuple):
    url: str
    base: Path
    log: Path


class Outcome(NamedTuple):
    """What became of a prompt: `outputs` by node id, `error` (None, or the answer), `log` (of this time)."""

    outputs: dict
    error: dict | None
    log: str


def free_port(port=0):
    """A free port of this machine, or `port` itself.

    Raises:
        RuntimeError: `port` is in use.
    """
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RuntimeError(f"Port {port} cannot be used ({error.strerror}): choose another with --port.") from error
        return probe.getsockname()[1]


def put_pack(base):
    """Put KleinKit into `<base>/custom_nodes`, as a link where the system allows one, else as a copy."""
    target = base / "custom_nodes" / PACK
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks"))


def put_pictures(base):
    """Put what the workflows begin with into `<base>/input`, for prompts that no editor opens; also at nano's size."""
    folder = base / "input"
    small = folder / NANO_EXAMPLES
    small.mkdir(parents=True, exist_ok=True)
    for picture in EXAMPLES.glob("*.png"):
        shutil.copy(picture, folder)
        with Image.open(picture) as image:
            # Each by itself: what is transparent keeps its colours.
            bands = [band.resize((NANO_PIXELS, NANO_PIXELS), Image.Resampling.BOX) for band in image.split()]
            Image.merge(image.mode, bands).save(small / picture.name)


def _command(comfyui, base, port, cpu, models):
    command = [
        sys.executable,
        "-u",
        str(comfyui / "main.py"),
        "--listen",
        HOST,
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{(base / 'comfyui.db').as_posix()}",
        "--disable-auto-launch",
        "--disable-api-nodes",
        "--disable-all-custom-nodes",
    ]
    packs = sorted(path.name for path in (base / "custom_nodes").iterdir())
    if packs:
        # An extra_model_paths.yaml of the installation may name others: only those of `base` are let in.
        command += ["--whitelist-custom-nodes", *packs]
    if models:
        folders = {folder.name: folder.name for folder in sorted(models.iterdir()) if folder.is_dir()}
        paths = base / "extra_model_paths.yaml"
        # JSON is YAML.
        paths.write_text(json.dumps({"comfyui": {"base_path": str(models), **folders}}), encoding="utf-8")
        command += ["--extra-model-paths-config", str(paths)]
    frontend = os.environ.get("KLEINKIT_FRONTEND")
    return command + ["--cpu"] * cpu + (["--front-end-root", frontend] if frontend else [])


def _stop(process):
    """End the server and whatever it started."""
    if os.name == "nt":
        process.terminate()
        process.wait()
        return
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def read_log(log, start=0):
    """The text of a server's log from byte `start` on, without colours."""
    with log.open("rb") as stream:
        stream.seek(start)
        return re.sub(r"\x1b\[\d*m", "", stream.read().decode("utf-8", "replace"))


def _died(server, what):
    tail = "\n".join(read_log(server.log).splitlines()[-LOG_TAIL:])
    return RuntimeError(f"{what}. The end of its log:\n{tail}")


@contextlib.contextmanager
def running(comfyui, base, *, port=0, cpu=True, pack=True, models=None):
    """A ComfyUI server on this machine, for a `with` block; it is stopped when the block ends, however it ends.

    Args:
        comfyui: the folder of ComfyUI, from which it only reads.
        base: the server's base directory, of models, input, output, user, database and log, `comfyui.log`.
        port: 0 for any free one.
        cpu: run on the CPU.
        pack: load KleinKit. Of other custom nodes, only those in `base` are loaded.
        models: a `models` folder whose files the server may also read.
    Yields:
        Server.
    Raises:
        RuntimeError: the port is in use, or ComfyUI ended or did not answer; with the end of its log.
    """
    base = Path(base).resolve()
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    if pack:
        put_pack(base)
        put_pictures(base)
    port = free_port(port)
    server = Server(f"http://{HOST}:{port}", base, base / "comfyui.log")
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    # Beside other work, waiting threads that spin make a small model four times slower.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            _command(Path(comfyui).resolve(), base, port, cpu, models),
            cwd=base,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **group,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(server):
            if process.poll() is not None:
                raise _died(server, f"ComfyUI ended with exit code {process.returncode} before it answered")
            if time.monotonic() > deadline:
                raise _died(server, f"ComfyUI did not answer within {START_SECONDS} seconds")
            time.sleep(0.1)
        yield server
    finally:
        _stop(process)


def _answers(server):
    try:
        return bool(get(server, "/system_stats"))
    except OSError:
        return False


def get(server, path):
    """The JSON that the server answers, as of `/object_info` or `/models/vae`.

    Raises:
        OSError: no answer, or one that is not 200.
    """
    with _open(server.url + path, timeout=60) as answer:
        return json.load(answer)


def forget(server):
    """Make the server forget every cached output and unload every model: the next prompt runs all its nodes.

    ComfyUI looks at such a wish after a prompt, and misses it until the next one ends if it comes while it is not waiting.
    """
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    request = urllib.request.Request(server.url + "/free", body, {"Content-Type": "application/json"})
    _open(request, timeout=60).close()
    nothing = {"nothing": {"class_type": "PreviewAny", "inputs": {"source": ""}}}
    # In a thread of its own: beside a browser, this one has an event loop that runs.
    with ThreadPoolExecutor(1) as pool:
        between = pool.submit(queue, server, nothing).result()
    if between.error:
        raise RuntimeError(f"ComfyUI was not made to forget: {' '.join(sentences(between.error))}")


def queue(server, prompt, on_event=None, timeout=600):
    """Queue a prompt in API format, and wait until it is done.

    Args:
        server: Server.
        prompt: `{node id: {"class_type": …, "inputs": …}}`.
        on_event: called with the type and the data of each websocket message of this prompt.
        timeout: seconds.
    Returns:
        Outcome. `error` is the body of a refused prompt (keys `error`, `node_errors`), or the `execution_error` message
        of one that failed (keys `node_id`, `node_type`, `exception_message`, …); `sentences` reads both.
    Raises:
        RuntimeError: the server ended, or the prompt took longer than `timeout`.
    """
    start = server.log.stat().st_size
    try:
        outputs, error = asyncio.run(asyncio.wait_for(follow(server.url, prompt, on_event), timeout))
    except asyncio.TimeoutError:
        raise _died(server, f"ComfyUI did not finish a prompt within {timeout} seconds") from None
    except (aiohttp.ClientError, ConnectionError) as reason:
        raise _died(server, f"ComfyUI stopped answering ({reason})") from reason
    return Outcome(outputs, error, read_log(server.log, start))


async def follow(url, prompt, on_event=None, heartbeat=None):
    """Queue a prompt on a server of any machine, and wait until it is done.

    Args:
        url: of the server.
        prompt, on_event: as of `queue`.
        heartbeat: seconds after which a machine that says nothing any more counts as gone.
    Returns:
        `(outputs, error)` of `Outcome`.
    Raises:
        aiohttp.ClientError, ConnectionError: the server does not answer, or ended before the prompt was done.
    """
    client, error = uuid.uuid4().hex, None
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0, heartbeat=heartbeat) as events,
    ):
        async with session.post(f"{url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            body = await answer.json()
            if answer.status != 200:
                return {}, body
        async for message in events:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            data = event.get("data", {})
            if data.get("prompt_id") != body["prompt_id"]:
                continue
            if on_event:
                on_event(event["type"], data)
            if event["type"] in ("execution_error", "execution_interrupted"):
                error = data
            if event["type"] == "executing" and data["node"] is None:
                break
        else:
            raise ConnectionError("the websocket was closed")
        async with session.get(f"{url}/history/{body['prompt_id']}") as answer:
            history = await answer.json()
    return history[body["prompt_id"]]["outputs"], error


def download(server, image):
    """The bytes of a picture, one of `images` in an output."""
    with _open(f"{server.url}/view?{urllib.parse.urlencode(image)}", timeout=60) as answer:
        return answer.read()


def sentences(error):
    """What ComfyUI says of a prompt that it refused or that failed: one text a problem, each with the node's id."""
    if "node_errors" not in error:
        # KleinKit's errors name their node themselves.
        message = error.get("exception_message", "interrupted").strip()
        ours = error.get("node_type", "").startswith("KleinKit")
        return [f"{error['node_type']}: {re.sub('^Klein [^:]*: ', '', message) if ours else message}"]
    found = [
        f"{node['class_type']}: {problem['message']}: {problem['details']}"
        for node in error["node_errors"].values()
        for problem in node["errors"]
    ]
    return found or [f"{error['error']['message']}: {error['error']['details']}"]


def pictures(server, outcome):
    """The paths of the pictures that a prompt saved."""
    return [
        server.base / image["type"] / image["subfolder"] / image["filename"]
        for output in outcome.outputs.values()
        for image in output.get("images", ())
    ]
