"""KleinKit: a loader, sigmas and guidance for FLUX.2 [klein] in ComfyUI."""

from .release import is_new_enough

if is_new_enough():
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
else:
    # A pack without nodes, in the form that every ComfyUI knows.
    NODE_CLASS_MAPPINGS = {}
    __all__ = ["NODE_CLASS_MAPPINGS"]
