"""Measure what guidance does to pictures whose truth is known: `python tasks.py nano --study`."""

import argparse
import importlib
import os
from pathlib import Path

from ..harness.inside import enter
from . import edit_study, paired
from .build import build
from .publish import publish, publish_losses
from .train import STATE, train


def installed():
    """`(a function role → model, path of the text encoder)` of the nano family, loaded by Klein Loader; no cfg is ignored."""
    files = build(STATE / "models", Path(os.environ["COMFYUI_PATH"]))
    loader = importlib.import_module("..nodes.loader", __package__).KleinKitLoader

    def load(role):
        return loader.execute(files[role].name, "auto", "auto", "auto", "default", "allow", True)[0]

    return load, files["text_encoder"]


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--study", action="store_true")
    prompts, seeds = paired.WHOLE
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--table", choices=[*paired.TABLES, edit_study.RESULTS])
    parser.add_argument("--rows", nargs="*", default=())
    options = parser.parse_args(arguments)
    unknown = set(options.rows).difference(edit_study.TABLES, *edit_study.TABLES.values(), *paired.TABLES.values())
    if unknown:
        parser.error(f"no row is called {', '.join(sorted(unknown))}: see nano/paired.py and nano/edit_study.py")
    enter(STATE)
    if options.train:
        train()
        publish_losses()
    if not options.study:
        return
    load, text_encoder = installed()
    if options.table != edit_study.RESULTS:
        tables = [options.table] if options.table else paired.TABLES
        paired.run(tables, load, text_encoder, options.prompts, options.seeds, options.rows)
    if options.table in (None, edit_study.RESULTS):
        count = min(options.prompts, edit_study.COUNT)
        edit_study.run(options.rows or edit_study.TABLES, load, text_encoder, count, options.seeds)
    publish()
