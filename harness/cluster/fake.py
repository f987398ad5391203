"""A cluster that measures nothing: its workers recite a script. For tests of everything from plan to report.

The default script is a caricature that is easy to recognise: steps take the lower bound plus a fixed computation, with
seeded noise; accuracy saturates. Rows carry ``cluster = "fake"`` and reports say so in large letters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness.messages import Events, Exit, Message, QueueUse, Trained
from harness.network.addresses import WORKER_INTERFACE, worker_name
from harness.network.bounds import FRAME_HEADER_BYTES
from harness.network.readings import LinkReading, Readings
from harness.network.topology import Topology
from harness.plan.expected import lower_bound_s, state_of
from harness.plan.machine import this_machine
from harness.plan.status import first_steady_step
from harness.plan.trial import Trial
from harness.scenario.schema import NO_LIMITS, Resources, Train

COMPUTE_S = 0.01
CODEC_S = 0.001
ADDED_S = 0.001
"""What its machine adds to a step where a run looks for a dilation."""

MEAN_NOISE = 1.06
"""How much longer than its bound communication takes, in the mean."""

UNSHAPED_BPS = 5e9
RTT_S = 1e-4

Script = Callable[[Trial], Iterator[Message]]


def recite(trial: Trial) -> Iterator[Message]:
    """What workers say of an uneventful trial."""
    train, workers = trial.case.train, trial.case.cluster.workers
    steady_from_step = first_steady_step(state_of(trial.method))
    steady_steps = train.steps - steady_from_step
    payload = round(trial.expected.wire_bytes_per_step * steady_steps)
    step_s = [_step_s(trial, step) + _added_s(trial, step) for step in range(train.steps)]
    for worker in range(workers):
        rows: list[tuple[int, float, str, float]] = []
        clock_s = 0.0
        for step, seconds in enumerate(step_s):
            clock_s += seconds
            phases = {"step_s": seconds, "compute_s": COMPUTE_S, "encode_s": CODEC_S, "decode_s": 0.0}
            phases |= {"overrun_s": 0.0} if trial.expected.profile else {}
            phases["comm_s"] = seconds - COMPUTE_S - CODEC_S
            rows.extend((step, clock_s, kind, value) for kind, value in phases.items())
            done = step + 1
            if worker == 0 and (done % train.eval_every == 0 or done == train.steps):
                accuracy = 0.97 - 0.87 * math.exp(-5 * done / train.steps)
                rows.append((done, clock_s, "accuracy", accuracy))
                rows.append((done, clock_s, "test_loss", -math.log(accuracy)))
        yield Events(node=worker_name(worker), rows=rows)
        yield Trained(
            node=worker_name(worker),
            steps=train.steps,
            steady_from_step=steady_from_step,
            diverged=False,
            payload_bytes=payload,
            header_bytes=payload // 1448 * FRAME_HEADER_BYTES,
            retransmits=0,
            smoothed_rtt_s=RTT_S,
            cwnd_packets=10.0,
            queues={WORKER_INTERFACE: QueueUse(drops=0, most_backlog_bytes=0)},
            train_time_s=clock_s,
            evaluation_time_s=0.0,
            yardstick_s=1e-3,
            peak_memory_bytes=300_000_000,
            own_memory_bytes=100_000_000,
            held_memory_bytes=1_000_000,
            parameter_hash="0" * 16,
            parameters_identical=True,
        )
        yield Exit(node=worker_name(worker), code=0)


def _step_s(trial: Trial, step: int) -> float:
    """A step's time. Its noise is the same whatever the code is, so that tests of statistics do not hang on chance.

    No noise is in steps that run slower than the others, and in short trials, which a run looks for a dilation by.
    """
    bound_s = lower_bound_s(trial.case, trial.method, step)
    if trial.is_probe or trial.slowing.at(step) > trial.dilation:
        return COMPUTE_S + CODEC_S + MEAN_NOISE * bound_s
    noise = MEAN_NOISE + random.Random(f"{trial.method.label}/{trial.round}/{step}").uniform(-0.02, 0.02)
    return COMPUTE_S + CODEC_S + noise * bound_s


def _added_s(trial: Trial, step: int) -> float:
    """What the machine adds to a step."""
    return ADDED_S / trial.slowing.at(step) if trial.found else 0.0


class FakeCluster:
    """See the module.

    Args:
        script: what the workers say of a trial; may raise TaskTimeoutError or end early, as real ones do.
    """

    name = "fake"
    machine = this_machine()._replace(changes_links=True, is_here=False)

    def __init__(self, script: Script = recite) -> None:
        self._script = script

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was made."""

    def check_kind(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """Any link and any limit can be recited."""

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """Any rate, too."""

    def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
        """Links that are exactly what was asked."""
        links = tuple(
            LinkReading(
                worker=queue.worker,
                link=queue.link,
                direction=queue.direction,
                rate_bps_asked=queue.pipe.rate_bps,
                rate_bps_measured=queue.pipe.rate_bps or UNSHAPED_BPS,
            )
            for queue in topology.queues()
        )
        asked_s = tuple(topology.rtt_s(w, (w + 1) % topology.workers) for w in range(topology.workers))
        self._readings = Readings(
            links=links, rtt_s=tuple(RTT_S + seconds for seconds in asked_s), rtt_s_asked=asked_s, took_s=0.0
        )
        return self._readings

    def verify(self) -> Readings:
        """They stay so."""
        return self._readings

    def share_file(self, file: Path) -> None:
        """Nobody reads."""

    def preload(self, train: Train | None = None) -> None:
        """Nothing is loaded."""

    def signal(self, number: int) -> None:
        """Nobody hears."""

    def image_digest(self) -> str:
        """No image."""
        return ""

    def provenance(self) -> dict[str, Any]:
        """Nothing beyond this machine."""
        return {}

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """Recite the script of the spec's trial."""
        return self._script(Trial.model_validate(spec["trial"]))
