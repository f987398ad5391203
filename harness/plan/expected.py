"""What is known of a trial before it runs: its network, the bytes it sends, the time it cannot beat, its memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from baselines import MethodState
from baselines._calls import AllGather
from harness.methods import blamed, method_named
from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.collectives import MESSAGE_S, Network, own_bytes
from harness.scenario.schema import DENSE, Case, MethodSpec, Train
from harness.workload import profile as profiles
from harness.workload import replay
from harness.workload.models import MODELS
from harness.workload.profile import Profile

SHRINKS = (2, 4, 8, 16, 32, 64)
"""How many times smaller tensors may be where nobody says."""

MOST_BENT = 0.025
"""Share by which a predicted step may be longer or shorter with smaller tensors on thinner links: messages' headers do
not shrink with them."""

MOST_UNLIKE = 0.02
"""Share by which a step's bytes may differ from what they are told to be, where tensors are smaller than they are told.

Some differ: of tensors whose sizes cannot be divided, of what a method sends for each of them, and of Gloo's own
messages.
"""


@dataclass(frozen=True)
class Expected:
    """See the module. Bytes are payload of a worker, times are undilated seconds."""

    topology: Topology
    """Network that the case asks for."""
    thinned: Topology
    """The same, or one whose links carry as many times fewer bytes as a replay's tensors hold (``train.shrink``)."""
    built_topology: Topology
    """Network that is built: that one, or a slower one where time is dilated."""
    profile: Profile | None
    """Profile by which time is kept, in replays and paced trainings; None: this machine keeps it, or the run is yet to
    make one."""
    wire_bytes_per_step: float
    """Payload that each worker sends in a steady step, by the method's formula."""
    lower_bound_s_per_step: float
    """Least time that those bytes need on the case's links; 0 where they are unshaped."""
    predicted_step_s: float | None
    """What a steady step is expected to take, overlap included; None without a profile."""
    memory_bytes: int | None
    """Memory of all workers of a replay; None for real training."""


@cache
def expect(case: Case, method: MethodSpec, dilation: float) -> Expected:
    """Work out once what all trials of a method on a case have in common.

    Raises:
        UsageError: the profile cannot be read.
    """
    shrink = shrink_of(case, method)
    thinned = thinned_topology_of(case, shrink)
    profile = _profile_of(case)
    return Expected(
        topology=topology_of(case),
        thinned=thinned,
        built_topology=thinned.slowed(dilation),
        profile=profile,
        wire_bytes_per_step=wire_bytes(case, method),
        lower_bound_s_per_step=lower_bound_s(case, method),
        predicted_step_s=_predicted_step_s(case, method, profile, shrink, dilation) if profile else None,
        memory_bytes=_memory_bytes(case, method, profile, shrink),
    )


def _profile_of(case: Case) -> Profile | None:
    return profiles.read(known) if (known := case.train.known_profile) else None


def train_of(case: Case, method: MethodSpec) -> Train:
    """What a method trains with on a case: its own learning rate and optimizer, and tensors of the size they have."""
    return method.settings(case.train).model_copy(update={"shrink": shrink_of(case, method)})


@cache
def shrink_of(case: Case, method: MethodSpec) -> int:
    """How many times smaller than is told tensors, buckets and links' rates are."""
    if case.train.shrink is not None:
        return case.train.shrink
    profile = _profile_of(case)
    if profile is None or not case.can_shrink:
        return 1
    whole_s, sent_bytes = _predicted_step_s(case, method, profile), wire_bytes(case, method)
    gloo_share = gloo_bytes(case, method, profile) / sent_bytes if sent_bytes else 0.0

    def is_like_the_whole(shrink: int) -> bool:
        return (
            case.complaint_of_thinner_links(shrink) is None
            and unlike_bytes(case, method, shrink) + shrink * gloo_share <= MOST_UNLIKE
            and abs(_predicted_step_s(case, method, profile, shrink) / whole_s - 1) <= MOST_BENT
        )

    return max(takewhile(is_like_the_whole, SHRINKS), default=1)


def gloo_bytes(case: Case, method: MethodSpec, profile: Profile) -> float:
    """What Gloo itself sends of a worker in a step, beside the method's bytes: it does not shrink with tensors."""
    workers = case.cluster.workers
    step = predict.schedule(profile, method, state_of(method), workers, case.train.bucket_bytes)
    calls = (call for jobs in step.jobs for job in jobs for call in job.calls)
    return sum(own_bytes(call, workers) for call in calls) / step.every


def unlike_bytes(case: Case, method: MethodSpec, shrink: int) -> float:
    """Share by which a replay's bytes differ from what they are told to be, with tensors so many times smaller."""
    shrunk = profiles.read(str(case.train.replay)).shrunk(shrink)
    with blamed(method.name):
        told = shrink * state_of(method).wire_bytes(shrunk.shapes, case.cluster.workers)
    whole = wire_bytes(case, method)
    return abs(told - whole) / whole if whole else told


def wire_bytes(case: Case, method: MethodSpec, step: int | None = None) -> float:
    """Payload bytes that each worker sends in a step, by the method's formula; in the steady state without a step."""
    shapes = shapes_of(case.train.model)
    with blamed(method.name):
        return state_of(method).wire_bytes(shapes, case.cluster.workers, step)


def lower_bound_s(case: Case, method: MethodSpec, step: int | None = None) -> float:
    """The least time that a step's bytes need on the case's network; 0 where nothing limits them."""
    shapes = shapes_of(case.train.model)
    with blamed(method.name):
        busiest_bytes = state_of(method).busiest_bytes(shapes, case.cluster.workers, step)
    return topology_of(case).bound_s(wire_bytes(case, method, step), busiest_bytes)


def communication_over_computation(case: Case) -> float:
    """How many times as long as the profile's passes and optimizer a dense step's bytes take on the case's links."""
    profile = profiles.read(str(case.train.known_profile))
    computed_s = case.train.accumulate * (profile.forward_s + profile.backward_s) + profile.optimizer_s
    return lower_bound_s(case, DENSE) / computed_s


def state_of(method: MethodSpec) -> MethodState:
    """A fresh, unbound state with the method's parameters."""
    return method_named(method.name).State(**method.params)


@cache
def topology_of(case: Case) -> Topology:
    """The network that a case asks for."""
    return Topology(workers=case.cluster.workers, link=case.link, fabric=case.fabric)


@cache
def thinned_topology_of(case: Case, shrink: int) -> Topology:
    """The same with links as much thinner as a replay's tensors are smaller."""
    return topology_of(case).slowed(1.0, shrink)


@cache
def shapes_of(model: str) -> list[tuple[int, ...]]:
    """Shapes of the model's parameters."""
    return MODELS[model].shapes()


def _memory_bytes(case: Case, method: MethodSpec, profile: Profile | None, shrink: int) -> int | None:
    if profile is None or not case.train.replay:
        return None
    state, workers, shrunk = state_of(method), case.cluster.workers, profile.shrunk(shrink)
    calls = state.calls(shapes_of(case.train.model), workers)
    gathered = sum(workers * call.payload_bytes for call in calls if isinstance(call, AllGather)) / shrink
    return replay.memory_bytes(shrunk, workers, state.most_copies, round(gathered))


def _predicted_step_s(
    case: Case, method: MethodSpec, profile: Profile, shrink: int = 1, dilation: float = 1.0
) -> float:
    """What a step of the steady state is expected to take, with the tensors and on the links that it really has."""
    train = case.train
    earlier_s = (train.accumulate - 1) * (profile.forward_s + profile.backward_s)  # passes that send nothing
    network = network_of(thinned_topology_of(case, shrink), dilation)
    bucket_bytes = round(train.bucket_bytes / shrink)
    return earlier_s + predict.step_s(profile.shrunk(shrink), method, state_of(method), network, bucket_bytes)


@cache
def network_of(topology: Topology, dilation: float) -> Network:
    """A network as it is told, all methods' collectives on it.

    Where time is dilated, it is told as measured: what wakes processes is this machine, which dilation does not slow.
    """
    return Network(topology, MESSAGE_S / dilation, dilation)
