"""Make the pictures of the template browser and of the README, by running the workflows: `python3 tasks.py pictures`."""

import tempfile
from pathlib import Path

from PIL import Image

from . import server as api
from .demo import show_progress, with_comfyui
from .workflow import WORKFLOWS, as_prompt, for_nano, names, nodes, read

ASSETS = WORKFLOWS.parent / "assets"
# Of a thumbnail at most.
WIDTH, HEIGHT = 768, 512
MOST_BYTES = 60_000


def for_installed(graph, server):
    """The workflow as it is where its model is installed, else for the nano family."""
    [loader] = nodes(graph, "KleinKitLoader")
    installed = loader["widgets_values"][0] in api.get(server, "/models/diffusion_models")
    return graph if installed else for_nano(graph)


def run(server, name):
    """Run a workflow; the pictures that it saves and shows, in the order of its nodes."""
    prompt = as_prompt(for_installed(read(name), server))
    outcome = api.queue(server, prompt, show_progress(prompt), timeout=None)
    if outcome.error:
        raise RuntimeError(f"{name}: " + "\n".join(api.sentences(outcome.error)))
    ordered = dict(sorted(outcome.outputs.items(), key=lambda item: int(item[0])))
    return [Image.open(path).convert("RGB") for path in api.pictures(server, outcome._replace(outputs=ordered))]


def thumbnail(pictures):
    """Pictures side by side, as large as a thumbnail may be."""
    # Cells of the nano family stay sharp.
    same = [picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT),
                           Image.Resampling.NEAREST if picture.height < HEIGHT else Image.Resampling.LANCZOS)
            for picture in pictures]
    row = Image.new("RGB", (sum(picture.width for picture in same), HEIGHT))
    for i, picture in enumerate(same):
        row.paste(picture, (sum(before.width for before in same[:i]), 0))
    scale = min(1, WIDTH / row.width)
    return row.resize((round(row.width * scale), round(HEIGHT * scale)), Image.Resampling.LANCZOS)


def save(picture, path):
    """Save a JPEG as good as `MOST_BYTES` allow."""
    for quality in range(90, 0, -10):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break


def main(arguments):
    with (tempfile.TemporaryDirectory(prefix="kleinkit-", ignore_cleanup_errors=True) as base,
          with_comfyui(Path(base)) as server):
        for name in names():
            save(thumbnail(run(server, name)), WORKFLOWS / f"{name}.jpg")
