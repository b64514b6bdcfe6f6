"""The pack's nodes, one file a topic, each ending in `NODES`."""

from comfy_api.latest import ComfyExtension

from . import guidance, loader, probe, routes, scheduler, study


class KleinKit(ComfyExtension):
    async def on_load(self):
        routes.add()

    async def get_node_list(self):
        return [*loader.NODES, *scheduler.NODES, *guidance.NODES, *probe.NODES, *study.NODES]


async def comfy_entrypoint():
    return KleinKit()
