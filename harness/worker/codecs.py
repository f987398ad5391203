"""What methods cost beside the wire: timed on made-up gradients and real collectives over loopback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines._state import Stopwatch
from harness.plan.expected import state_of
from harness.plan.trial import UNSETTLED_STEPS
from harness.scenario.schema import MethodSpec
from harness.worker.local_ranks import in_processes
from harness.worker.profile_request import BUCKET_BYTES, SGD, ProfileRequest, Timed
from harness.workload.pace import Pace
from harness.workload.profile import Codec, Profile
from harness.workload.replay import Materials, Replayed, make_materials


def measure_codecs(profile: Profile, request: ProfileRequest) -> tuple[Codec, ...]:
    """Time each of the methods, on gradients of the profile's shapes."""
    if not request.methods:
        return ()
    timed = in_processes(_time_codecs, request.workers, profile, request)
    return tuple(
        Codec(method=method.name, params=method.params, workers=request.workers, **_codec_together(of_ranks, request))
        for method, of_ranks in zip(request.methods, zip(*timed, strict=True), strict=True)
    )


class _ThreadStopwatch(Stopwatch):
    """Tells apart what holds up the backward pass."""

    def by_thread(self) -> dict[str, float]:
        """Seconds since the last lap."""
        seconds = {"encode_s": 0.0, "beside_s": 0.0, "decode_s": 0.0}
        backward_thread = self._bucket_ready[1] if self._bucket_ready else None
        for phase, start, end, thread in self._spans:
            if phase == "encode" and thread != backward_thread:
                phase = "beside"
            if phase != "end_step":
                seconds[f"{phase}_s"] += self.clock.seconds(end) - self.clock.seconds(start)
        self.lap()
        return seconds


def _time_codecs(profile: Profile, request: ProfileRequest) -> list[list[Timed]]:
    made = make_materials(profile).on(torch.device(request.device))
    return [_time_codec(profile, made, method, request) for method in request.methods]


def _time_codec(profile: Profile, made: Materials, method: MethodSpec, request: ProfileRequest) -> list[Timed]:
    """Real steps of a method on made-up gradients, in which only the codec and the optimizer take time."""
    model = Replayed(profile, made, Pace(0.0), dist.get_rank())
    ddp = DistributedDataParallel(
        model, bucket_cap_mb=BUCKET_BYTES / 2**20, gradient_as_bucket_view=True, init_sync=False
    )
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    state, stopwatch = state_of(method), _ThreadStopwatch()
    stopwatch.clock = request.clock
    state.stopwatch = stopwatch
    baselines.register(ddp, state, optimizer=optimizer)
    steady_from_step = max(state.steady_from_step, UNSETTLED_STEPS)
    rows = []
    for step in range(steady_from_step + request.steps):
        dist.barrier()
        stopwatch.clock.restart()
        ddp().backward()
        synchronised = stopwatch.clock.mark()
        optimizer.step()
        optimizer.zero_grad()
        end = stopwatch.clock.mark()
        row = {"optimizer_s": stopwatch.clock.seconds(end) - stopwatch.clock.seconds(synchronised)}
        row |= stopwatch.by_thread()
        if step >= steady_from_step:
            rows.append(row)
    return rows


def _codec_together(of_ranks: Sequence[list[Timed]], request: ProfileRequest) -> Timed:
    """What is typical of all steps of all processes."""
    rows = [row for rank in of_ranks for row in rank]
    return {name: request.typical(row[name] for row in rows) for name in rows[0]}
