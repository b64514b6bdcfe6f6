"""The pack's nodes, one file a topic, each ending in `NODES`."""

from . import guidance, inpaint, loader, probe, references, scheduler, study

NODES = [
    *loader.NODES,
    *scheduler.NODES,
    *references.NODES,
    *inpaint.NODES,
    *guidance.NODES,
    *probe.NODES,
    *study.NODES,
]
