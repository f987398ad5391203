"""What a step will take: a profile's computation, a method's codec, and its bytes on the links, overlapped as DDP does.

The device computes and encodes, bucket by bucket in the order in which gradients are ready; each bucket's bytes then
cross the links, one bucket after the other, while the backward pass goes on; what has arrived is decoded, on the same
device. Ideal but for packets' headers and a latency a message: what a measurement has beyond it is noise, contention,
or a wrong profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baselines import MethodState
from harness.network.bounds import wire_share
from harness.network.topology import Topology
from harness.scenario.schema import MethodSpec
from harness.workload.profile import Codec, Profile

MESSAGE_S = 2e-4
"""From one worker's sending to its neighbour's answer, beside bytes and delays: two processes are woken."""


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together."""

    shapes: list[tuple[int, ...]]
    ready_s: float
    """When the last of them is, from the start of the backward pass."""
    share: float
    """Share of all entries that is in it."""


def buckets(profile: Profile, bucket_bytes: int) -> Iterator[Bucket]:
    """As DDP groups gradients from its second step on: in the order of readiness, closed by the one that fills it."""
    shapes: list[tuple[int, ...]] = []
    size = 0
    for place, gradient in enumerate(profile.gradients, start=1):
        shapes.append(gradient.shape)
        size += 4 * gradient.numel
        if size >= bucket_bytes or place == len(profile.gradients):
            yield Bucket(shapes, gradient.ready_s, size / (4 * profile.numel))
            shapes, size = [], 0


def step_s(
    profile: Profile,
    method: MethodSpec,
    state: MethodState,
    topology: Topology,
    bucket_bytes: int,
    message_s: float = MESSAGE_S,
) -> float:
    """Seconds of a step in the steady state. A codec that the profile does not know is taken to cost nothing."""
    codec = profile.codec(method, topology.workers) or _free(method, topology.workers, profile)
    encode_s = (codec.encode_s + codec.beside_s) / state.agrees_every
    decode_s = codec.decode_s / state.agrees_every
    now_s = profile.forward_s
    ready_s = sent_s = 0.0
    arrived: list[tuple[float, float]] = []
    for bucket in buckets(profile, bucket_bytes):
        now_s += bucket.ready_s - ready_s + encode_s * bucket.share
        ready_s = bucket.ready_s
        sent_s = max(sent_s, now_s) + _on_the_links_s(state, bucket, topology, message_s)
        arrived.append((sent_s, decode_s * bucket.share))
    now_s += profile.backward_s - ready_s
    for arrived_s, decoding_s in arrived:
        now_s = max(now_s, arrived_s) + decoding_s
    return now_s + codec.optimizer_s


def _on_the_links_s(state: MethodState, bucket: Bucket, topology: Topology, message_s: float) -> float:
    p, headers = topology.workers, wire_share(topology.link)
    payload, busiest = (bytes_of(bucket.shapes, p) for bytes_of in (state.wire_bytes, state.busiest_bytes))
    hop_s = max(sum(queue.pipe.delay_s for queue in topology.path(w, (w + 1) % p)) for w in range(p))
    return topology.bound_s(payload * headers, busiest * headers) + 2 * (p - 1) * (message_s + hop_s)


def _free(method: MethodSpec, workers: int, profile: Profile) -> Codec:
    return Codec(
        method=method.name,
        params=method.params,
        workers=workers,
        encode_s=0.0,
        beside_s=0.0,
        decode_s=0.0,
        optimizer_s=profile.optimizer_s,
    )
