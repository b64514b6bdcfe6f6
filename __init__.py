"""KleinKit: a loader, sigmas and guidance for FLUX.2 [klein] in ComfyUI."""

from .compat import is_new_enough

if is_new_enough():
    from comfy_api.latest import ComfyExtension

    from . import nodes
    from .previews import routes

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

    class KleinKit(ComfyExtension):
        async def on_load(self) -> None:
            routes.add()

        async def get_node_list(self) -> list:
            return nodes.NODES

    async def comfy_entrypoint() -> KleinKit:
        return KleinKit()
else:
    # A pack without nodes, in the form that every ComfyUI knows.
    NODE_CLASS_MAPPINGS = {}
    __all__ = ["NODE_CLASS_MAPPINGS"]
