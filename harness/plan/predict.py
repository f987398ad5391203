"""What a step will take: a profile's computation, a method's codec, and its bytes on the links, overlapped as DDP does.

The device computes and encodes, bucket by bucket in the order in which gradients are ready; each bucket's bytes then
cross the links (``collectives.py``), one bucket after the other or two at once, while the backward pass goes on; what
has arrived is decoded, on the same device. What a measurement has beyond it is noise, contention, or a wrong profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from baselines import MethodState
from baselines._calls import Call
from harness.plan.collectives import Network
from harness.scenario.schema import MethodSpec
from harness.workload.profile import Codec, Profile

ROUNDING_S = 1e-12


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together."""

    shapes: list[tuple[int, ...]]
    ready_s: float
    """When the last of them is, from the start of the backward pass."""
    share: float
    """Share of all entries that is in it."""


def buckets(profile: Profile, bucket_bytes: int, first_bucket_bytes: int | None = None) -> Iterator[Bucket]:
    """As DDP groups gradients from its second step on: in the order of readiness, closed by the one that fills it.

    Args:
        first_bucket_bytes: by which the first one is full; None: as the others.
    """
    shapes: list[tuple[int, ...]] = []
    size, full_bytes = 0, bucket_bytes if first_bucket_bytes is None else first_bucket_bytes
    for place, gradient in enumerate(profile.gradients, start=1):
        shapes.append(gradient.shape)
        size += 4 * gradient.numel
        if size >= full_bytes or place == len(profile.gradients):
            yield Bucket(shapes, gradient.ready_s, size / (4 * profile.numel))
            shapes, size, full_bytes = [], 0, bucket_bytes


class Job(NamedTuple):
    """Collectives that follow one another."""

    ready_s: float
    """When the first may begin."""
    calls: Sequence[Call]


@dataclass(frozen=True)
class Schedule:
    """A step in the steady state, before anything is known of the links: what they will carry, and from when on."""

    jobs: list[list[Job]]
    """What each bucket sends."""
    decode_s: list[float]
    """Decoding of each bucket."""
    computed_s: float
    """When the backward pass has ended, with all that is encoded in it."""
    optimizer_s: float
    silent_s: float
    """For how long the links have been silent when the first bucket comes."""
    at_once: int
    """Jobs that may be under way together."""
    every: int = 1
    """Steps in which all jobs are begun, each in one of them."""
    hidden_s: float | None = None
    """For how long a job is under way before anybody waits for it, where jobs begin as steps end; None: all begin in
    the backward pass."""

    def step_s(self, network: Network) -> float:
        """Seconds of a step; the mean, where only one in several synchronises."""
        jobs = [job for own in self.jobs for job in own]
        if self.hidden_s is not None:
            waited_s = self._waited_s(network, jobs, self.hidden_s)
            return self.computed_s + waited_s / self.every + self.optimizer_s
        ended_s = iter(on_the_network_s(network, jobs, self.at_once, self.silent_s))
        now_s = self.computed_s
        for own, decode_s in zip(self.jobs, self.decode_s, strict=True):
            arrived_s = max(next(ended_s) for _ in own)
            now_s = max(now_s, arrived_s) + decode_s
        return now_s + self.optimizer_s

    def _waited_s(self, network: Network, jobs: Sequence[Job], hidden_s: float) -> float:
        """What ranks wait in all for jobs that they began and went on without; all that follows comes so much later."""
        waited_s = [0.0] * len(jobs)
        for _ in jobs:  # each time at least one more wait is the last word
            late_s = [
                sum(_waited_before(jobs[:place], waited_s, job.ready_s - hidden_s)) for place, job in enumerate(jobs)
            ]
            begun = [job._replace(ready_s=job.ready_s + each_s) for job, each_s in zip(jobs, late_s, strict=True)]
            ended_s = on_the_network_s(network, begun, self.at_once, self.silent_s)
            due_s = [job.ready_s + hidden_s + sum(waited_s[:place]) for place, job in enumerate(jobs)]
            found_s = [max(0.0, end - due) for end, due in zip(ended_s, due_s, strict=True)]
            if found_s == waited_s:
                break
            waited_s = found_s
        return sum(waited_s)


def _waited_before(jobs: Sequence[Job], waited_s: Sequence[float], ready_s: float) -> Iterator[float]:
    """What was waited for those of some jobs that were ready by then."""
    return (each_s for job, each_s in zip(jobs, waited_s, strict=False) if job.ready_s <= ready_s + ROUNDING_S)


def step_s(
    profile: Profile,
    method: MethodSpec,
    state: MethodState,
    network: Network,
    bucket_bytes: int,
    first_bucket_bytes: int | None = None,
) -> float:
    """Seconds of a step in the steady state. A codec that the profile does not know is taken to cost nothing."""
    return schedule(profile, method, state, network.workers, bucket_bytes, first_bucket_bytes).step_s(network)


def schedule(
    profile: Profile,
    method: MethodSpec,
    state: MethodState,
    workers: int,
    bucket_bytes: int,
    first_bucket_bytes: int | None = None,
) -> Schedule:
    """All of a step that no link changes. A codec that the profile does not know is taken to cost nothing."""
    codec = profile.codec(method, workers) or _free(method, workers, profile)
    meetings = len(state.calls(profile.shapes, workers)) if state.is_streaming else 1
    encode_s = (codec.encode_s + codec.beside_s) * meetings / state.agrees_every
    decode_s = codec.decode_s * meetings / state.agrees_every
    if state.syncs_in_end_step:
        return _synchronised_at_its_end(profile, state, workers, encode_s + decode_s, codec.optimizer_s)
    now_s = profile.forward_s
    passed_s = 0.0
    ready: list[tuple[float, Bucket]] = []
    for bucket in buckets(profile, bucket_bytes, first_bucket_bytes):
        now_s += bucket.ready_s - passed_s + encode_s * bucket.share
        passed_s = bucket.ready_s
        ready.append((now_s, bucket))
    return Schedule(
        jobs=[_jobs(state, bucket, ready_s, workers) for ready_s, bucket in ready],
        decode_s=[decode_s * bucket.share for _, bucket in ready],
        computed_s=now_s + profile.backward_s - passed_s,
        optimizer_s=codec.optimizer_s,
        silent_s=codec.optimizer_s + ready[0][0] + decode_s * ready[-1][1].share,
        at_once=state.at_once,
    )


def on_the_network_s(network: Network, jobs: Sequence[Job], at_once: int, silent_s: float) -> list[float]:
    """When each job has ended, if so many at once may be under way, and begin in order.

    Those that are under way together share the network: each goes on as if alone, until both together would need more
    than there is of the busiest queue; then that is shared fairly.

    Args:
        silent_s: for how long the links have been silent when the first begins.
    """
    ended_s = [0.0] * len(jobs)
    waiting = list(enumerate(jobs))
    active: list[_Active] = []
    now_s, last_s = 0.0, jobs[0].ready_s - silent_s
    while waiting or active:
        if not active:
            now_s = max(now_s, waiting[0][1].ready_s)
        while waiting and len(active) < at_once and waiting[0][1].ready_s <= now_s:
            number, job = waiting.pop(0)
            active.append(_Active(number, list(job.calls), network, now_s - last_s if not active else 0.0))
        speed_of = speeds([each.busy_share for each in active])
        until_s = min(each.left_s / speed for each, speed in zip(active, speed_of, strict=True))
        if waiting and len(active) < at_once:
            until_s = min(until_s, waiting[0][1].ready_s - now_s)
        now_s += until_s
        for each, speed in zip(list(active), speed_of, strict=True):
            if each.has_ended(until_s * speed):
                active.remove(each)
                ended_s[each.number], last_s = now_s, now_s - each.rested_s
    return ended_s


class _Active:
    """A job under way."""

    def __init__(self, number: int, calls: list[Call], network: Network, idle_s: float) -> None:
        self.number = number
        self._calls, self._network = calls, network
        self.rested_s = idle_s
        self._begin()

    def _begin(self) -> None:
        timing = self._network.timing(self._calls.pop(0), self.rested_s)
        self.left_s, self.rested_s = timing.took_s, timing.rested_s
        self.busy_share = timing.busy_s / timing.took_s if timing.took_s else 0.0

    def has_ended(self, worked_s: float) -> bool:
        """Whether its last collective has, now that so many of its own seconds have passed."""
        self.left_s -= worked_s
        while self.left_s <= ROUNDING_S:
            if not self._calls:
                return True
            self._begin()
        return False


def speeds(busy_shares: Sequence[float]) -> list[float]:
    """How fast jobs go on that share the busiest queue fairly, of how fast each would alone.

    Who needs least of it gets that first; the others share what is left (max-min fairness, as in ``network/flows.py``).

    Args:
        busy_shares: the share of its time in which each would keep that queue busy alone.
    """
    found, left = [1.0] * len(busy_shares), 1.0
    hungriest_last = sorted((share, number) for number, share in enumerate(busy_shares))
    for place, (share, number) in enumerate(hungriest_last):
        given = min(share, left / (len(busy_shares) - place))
        left -= given
        if share > 0:
            found[number] = given / share
    return found


def _jobs(state: MethodState, bucket: Bucket, ready_s: float, workers: int) -> list[Job]:
    """Of a method with a lane each collective waits for the one before; the others' begin together."""
    calls = state.calls(bucket.shapes, workers)
    return [Job(ready_s, calls)] if state.at_once == 1 else [Job(ready_s, [call]) for call in calls]


def _synchronised_at_its_end(
    profile: Profile, state: MethodState, workers: int, codec_s: float, optimizer_s: float
) -> Schedule:
    """Steps that end with a synchronisation now and then: one in several does, or some, in which a part is sent."""
    computed_s = profile.forward_s + profile.backward_s + codec_s
    calls = state.calls(profile.shapes, workers)
    meetings = [[call] for call in calls] if state.is_streaming else [calls]
    apart_s = (computed_s + optimizer_s) * state.agrees_every / len(meetings)
    return Schedule(
        jobs=[[Job(computed_s + number * apart_s, each)] for number, each in enumerate(meetings)],
        decode_s=[0.0] * len(meetings),
        computed_s=computed_s,
        optimizer_s=optimizer_s,
        silent_s=apart_s,
        at_once=state.at_once,
        every=state.agrees_every,
        hidden_s=(computed_s + optimizer_s) * state.hidden_steps,
    )


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
