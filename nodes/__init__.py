"""The pack's nodes, one file a topic, each ending in `NODES`."""

from . import guidance, loader, probe, scheduler, study

NODES = [*loader.NODES, *scheduler.NODES, *guidance.NODES, *probe.NODES, *study.NODES]
