"""What links carried while a command ran: counters before, on the way and after, as the record of each direction."""

from __future__ import annotations

from collections.abc import Iterable

from harness.messages import QueueCount, Traffic
from harness.network.bounds import FRAME_HEADER_BYTES
from harness.network.topology import Topology
from harness.network.wires import Queue
from harness.record.execution import LinkTraffic, Sample

MOST_SAMPLES = 8192
"""Of one direction. A command that runs longer keeps every second one: counters only grow, so rates stay true."""


class Counting:
    """Counters of all nodes of a topology.

    Args:
        first: of every node, just before the command starts.
    """

    def __init__(self, topology: Topology, first: Iterable[Traffic]) -> None:
        self._queues = list(topology.queues())
        self._first = {traffic.node: traffic for traffic in first}
        self._last = dict(self._first)
        self._began_s = min(traffic.at_s for traffic in self._first.values())
        self._samples: dict[Queue, list[Sample]] = {queue: [] for queue in self._queues}
        for traffic in self._first.values():
            self.add(traffic)

    def add(self, traffic: Traffic) -> None:
        """Hear a node's counters once more."""
        self._last[traffic.node] = traffic
        for queue in self._queues:
            if queue.node == traffic.node:
                samples = self._samples[queue]
                samples.append(self._sample(queue, traffic))
                if len(samples) > MOST_SAMPLES:
                    del samples[1:-1:2]

    def links(self) -> tuple[LinkTraffic, ...]:
        """What each direction of each link has carried, between its first counters and its last."""
        return tuple(self._link(queue) for queue in self._queues)

    def retransmits(self, node: str) -> int:
        """Segments that a node sent again."""
        return self._last[node].retransmits - self._first[node].retransmits

    def _sample(self, queue: Queue, traffic: Traffic) -> Sample:
        count = traffic.queues[queue.interface]
        return Sample(
            time_s=traffic.at_s - self._began_s,
            wire_bytes=count.wire_bytes - self._first_count(queue).wire_bytes,
            backlog_bytes=count.backlog_bytes,
        )

    def _first_count(self, queue: Queue) -> QueueCount:
        return self._first[queue.node].queues[queue.interface]

    def _link(self, queue: Queue) -> LinkTraffic:
        first, last = self._first_count(queue), self._last[queue.node].queues[queue.interface]
        wire_bytes, packets = last.wire_bytes - first.wire_bytes, last.packets - first.packets
        return LinkTraffic(
            link=queue.link,
            direction=queue.direction,
            worker=queue.worker,
            rate_bps_asked=queue.pipe.rate_bps,
            wire_bytes=wire_bytes,
            payload_bytes=wire_bytes - FRAME_HEADER_BYTES * packets,
            packets=packets,
            drops=last.drops - first.drops,
            samples=tuple(self._samples[queue]),
        )
