"""What methods cost beside the wire: timed on made-up gradients and real collectives over loopback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines._stopwatch import Stopwatch
from harness.plan.expected import state_of
from harness.plan.status import first_steady_step
from harness.plugins import short
from harness.scenario.schema import MethodSpec
from harness.worker.local_ranks import in_new_processes
from harness.worker.profile_request import BUCKET_BYTES, ProfileRequest, Timed
from harness.workload.pace import Pace
from harness.workload.profile import Codec, Profile, unlike
from harness.workload.replay import Materials, Replayed, make_materials


def measure_codecs(profile: Profile, request: ProfileRequest) -> tuple[Codec, ...]:
    """Time the methods that have a codec of their own, on gradients of the profile's shapes.

    Not those that choose by what their links are: each choice costs something else, and here are no links.
    """
    methods = [method for method in unlike(request.methods) if not state_of(method).learns_by_the_links]
    if not methods:
        return ()
    timed = in_new_processes(_time_codecs, request.workers, request.repeats, profile, request, methods)
    return tuple(
        Codec(
            method=short(method.name),
            params=method.params,
            workers=request.workers,
            **_codec_together(of_ranks, request),
        )
        for method, of_ranks in zip(methods, zip(*timed, strict=True), strict=True)
    )


def _time_codecs(profile: Profile, request: ProfileRequest, methods: Sequence[MethodSpec]) -> list[list[Timed]]:
    made = make_materials(profile).on(torch.device(request.device))
    return [_time_codec(profile, made.with_own_weights(), method, request) for method in methods]


def _time_codec(profile: Profile, made: Materials, method: MethodSpec, request: ProfileRequest) -> list[Timed]:
    """Real steps of a method on made-up gradients, in which only the codec and the optimizer take time."""
    model = Replayed(profile, made, Pace(0.0), dist.get_rank())
    ddp = DistributedDataParallel(
        model, bucket_cap_mb=BUCKET_BYTES / 2**20, gradient_as_bucket_view=True, init_sync=False
    )
    optimizer = request.build_optimizer(model.parameters(), method.optimizer)
    state, stopwatch = state_of(method).without_warmup(), Stopwatch()  # the steady state alone is timed
    stopwatch.clock = request.clock
    state.stopwatch = stopwatch
    handle = baselines.register(ddp, state, optimizer=optimizer, loss=lambda: _made_up_loss(model))
    steady_from_step = first_steady_step(state)
    rows = []
    for step in range(steady_from_step + request.steps * state.agrees_every):
        dist.barrier()
        stopwatch.clock.restart()
        ddp().backward()
        synchronised = stopwatch.clock.mark()
        optimizer.step()
        optimizer.zero_grad()
        end = stopwatch.clock.mark()
        row = {"optimizer_s": stopwatch.clock.seconds(end) - stopwatch.clock.seconds(synchronised)}
        codec = stopwatch.by_thread()
        if state.is_streaming:  # it encodes in some steps, and decodes in others
            row |= {name: seconds for name, seconds in codec.items() if seconds}
        elif state.step % state.agrees_every == 0:
            row |= codec
        if step >= steady_from_step:
            rows.append(row)
    dist.barrier()
    handle.remove()  # the next method needs the memory
    return rows


def _made_up_loss(model: Replayed) -> torch.Tensor:
    """A loss that has a Hessian, which GraSP asks for: which weights it prunes does not matter here."""
    return torch.stack([weight.square().sum() for weight in model.parameters()]).sum()


def _codec_together(of_ranks: Sequence[list[Timed]], request: ProfileRequest) -> Timed:
    """What is typical of all steps of all processes; of encoding and decoding, of all steps that synchronise."""
    rows = [row for rank in of_ranks for row in rank]
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: request.typical(row[name] for row in rows if name in row) for name in names}
    return {"encode_s": 0.0, "beside_s": 0.0, "decode_s": 0.0} | found
