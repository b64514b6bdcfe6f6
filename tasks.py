#!/usr/bin/env python3
"""KleinKit's tasks."""
import os
from pathlib import Path


def find_comfyui():
    return Path(os.environ["COMFYUI_PATH"]) if os.environ.get("COMFYUI_PATH") else None
