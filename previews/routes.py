"""The pack's routes on ComfyUI's server, for the editor's previews: `POST /kleinkit/sigmas`, `/guidance`, …"""

import json
from collections.abc import Callable
from functools import partial

from aiohttp import web
from server import PromptServer

from ..checks import sentence
from .guidance import preview as preview_guidance
from .guidance import preview_layers
from .loader import suited
from .references import preview as preview_references
from .sigmas import preview as preview_sigmas
from .sweep import preview as preview_sweep

MOST_BYTES = 16 * 1024
PREVIEWS = {
    "/kleinkit/sigmas": preview_sigmas,
    "/kleinkit/guidance": preview_guidance,
    "/kleinkit/layers": preview_layers,
    "/kleinkit/loader": suited,
    "/kleinkit/references": preview_references,
    "/kleinkit/sweep": preview_sweep,
}


async def settings_of(request: web.Request) -> dict:
    """The settings that a request carries.

    Raises:
        ValueError: it carries none; the message says what would do.
    """
    if request.content_type != "application/json":
        raise ValueError(sentence("body", "of type application/json", f"got {request.content_type[:100]}"))
    body = b""
    try:
        async for chunk in request.content.iter_chunked(MOST_BYTES):
            body += chunk
            if len(body) > MOST_BYTES:
                raise ValueError(sentence("body", f"at most {MOST_BYTES} bytes long", "got more"))
    except web.RequestPayloadError as error:
        raise ValueError(sentence("body", "what its headers say", "it cannot be decoded")) from error
    try:
        settings = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(sentence("body", "JSON", "got something else")) from error
    if not isinstance(settings, dict):
        raise ValueError(sentence("body", "a JSON object of settings", f"got {type(settings).__name__}"))
    return settings


async def answer(preview: Callable[[dict], dict], request: web.Request) -> web.Response:
    """Answer with the preview of the settings in the body, or with 400 and a sentence as `error`."""
    try:
        in_thread = PromptServer.instance.loop.run_in_executor
        # In a thread: the server goes on with its other work, such as the progress of a run, while a disk is slow.
        return web.json_response(await in_thread(None, preview, await settings_of(request)))
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)


def add() -> None:
    """Add the routes, where there is a server; a worker without one has no editor."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        for path, preview in PREVIEWS.items():
            server.routes.post(path)(partial(answer, preview))
