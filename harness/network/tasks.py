"""What nodes do that needs no torch: probing links."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from harness.messages import CeilingMeasured, LinksMeasured, Send
from harness.network import measure, neighbours, responder
from harness.network.addresses import worker_number
from harness.network.topology import Topology


def probe_links(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Measure all links of ``topology``: every node answers, the last switch asks as well and sends ``readings``."""
    topology = Topology.model_validate(spec["topology"])
    if node == topology.switches[-1]:
        threading.Thread(target=responder.answer, daemon=True).start()
        readings = measure.measure(topology, spec.get("counted"))
        send(LinksMeasured(readings=readings.model_dump_json()))
    else:
        responder.answer()


def probe_ceiling(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Measure what the machine carries when nothing is shaped; the switch sends ``ceiling_bps``, a worker's share."""
    topology = Topology.model_validate(spec["topology"])
    if node == topology.switches[-1]:
        threading.Thread(target=responder.answer, daemon=True).start()
        send(CeilingMeasured(ceiling_bps=measure.measure_ceiling(topology)))
    else:
        responder.answer()


def probe_hosts(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Measure the links between hosts, as they are: each answers at its own ``address``, and the first one asks.

    Args:
        spec: ``addresses`` of all, in order; ``mtu_bytes`` of their links; ``up_bps`` and ``down_bps``, if shaped.
    """
    if worker_number(node) == 0:
        threading.Thread(target=responder.answer, args=(spec["address"],), daemon=True).start()
        readings = neighbours.measure(spec["addresses"], spec["mtu_bytes"], spec["up_bps"], spec["down_bps"])
        send(LinksMeasured(readings=readings.model_dump_json()))
    else:
        responder.answer(spec["address"])
