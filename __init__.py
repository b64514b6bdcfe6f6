"""KleinKit: a loader, sigmas and guidance for FLUX.2 [klein] in ComfyUI."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
