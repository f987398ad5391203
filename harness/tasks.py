"""What nodes do that needs no torch: probing links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import linkprobe
from harness.agent import Send
from harness.network import SWITCH, Topology, worker_number


def probe_links(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Measure all links between the workers, which answer, and the switch, which asks and sends ``readings``."""
    if node == SWITCH:
        readings = linkprobe.measure(Topology.model_validate(spec["topology"]))
        send({"kind": "result", "readings": readings.model_dump_json()})
    else:
        linkprobe.answer(worker_number(node))


def probe_ceiling(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Measure what the machine carries when nothing is shaped; the switch sends ``ceiling_bps``, a worker's share."""
    if node == SWITCH:
        send({"kind": "result", "ceiling_bps": linkprobe.measure_ceiling(Topology.model_validate(spec["topology"]))})
    else:
        linkprobe.answer(worker_number(node))
