"""A command whose scripts are attached to: what it needs for that, what is heard of it, and what its ranks found."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from harness import attach
from harness.attach import RankFindings, Step
from harness.attach.attachment import CODE, Attachment
from harness.attach.findings import Metric as ToldMetric
from harness.cluster.protocol import CommandCluster
from harness.files import writing
from harness.messages import Output
from harness.methods import digest, method_named
from harness.network.addresses import WORKER_INTERFACE
from harness.network.bounds import FRAME_HEADER_BYTES
from harness.network.topology import Topology
from harness.plain import visible
from harness.plan.status import first_steady_step
from harness.plugins import file_of, short
from harness.record.execution import Execution
from harness.record.observed import Metric, ObservedStep, Training
from harness.run.command import Hear, Job, execute
from harness.scenario.schema import DENSE

if TYPE_CHECKING:
    from baselines import MethodState

FINDINGS = "findings"
"""Folder of a record in which ranks write."""

MOST_POINTS = 20_000
"""Of a record's curve: every step of the longest training that a pilot asks for."""


def execute_attached(
    cluster: CommandCluster,
    topology: Topology,
    job: Job,
    attachment: Attachment,
    hear: Hear,
    command_line: Sequence[str],
    folder: Path,
) -> Execution:
    """As ``command.execute``, with something put into the command's scripts, and what was found there in the record.

    Args:
        attachment: what goes into its scripts, and what is looked for in their output; maybe nothing.
        folder: the record's.

    Raises:
        UsageError: there is no such method, or its parameters are not what it takes.
        MeasurementError: what the ranks wrote cannot be read.
    """
    if attachment.enters_scripts:
        job = attached(job, attachment, folder)
    output = MetricsInOutput(attachment.metric, hear)
    found = execute(cluster, topology, job, output, command_line)
    found = found.model_copy(update={"metrics": tuple(output.found)})
    return with_findings(found, attachment, folder) if attachment.enters_scripts else found


def attached(job: Job, attachment: Attachment, folder: Path) -> Job:
    """The same command, attached to, with a folder for what its ranks find.

    Args:
        folder: the record's.

    Raises:
        UsageError: there is no such method, or its parameters are not what it takes.
    """
    if job.per_node == 1:
        attachment = attachment.model_copy(update={"interface": WORKER_INTERFACE})
    findings = folder / FINDINGS
    more = attach.environment(attachment, findings, users={})
    with writing(findings):
        findings.mkdir()
    if os.getuid() == 0:  # in containers the command runs as the owner of its folder
        owner = os.stat(job.folder)
        os.chown(findings, owner.st_uid, owner.st_gid)
    plugin = file_of(attachment.method) if attachment.method else None
    return replace(job, more={**job.more, **more}, reads=(*CODE, *([plugin] if plugin else [])), writes=findings)


class MetricsInOutput:
    """Hears what ranks print, passes it on, and keeps the metrics that rank 0 prints to stdout.

    Args:
        pattern: see ``attach.metrics_in``; None: there are no metrics.
    """

    def __init__(self, pattern: str | None, hear: Hear) -> None:
        self.found: list[Metric] = []
        self._pattern, self._hear = pattern, hear

    def __call__(self, said: Output) -> None:
        """Hear some lines."""
        self._hear(said)
        if self._pattern and said.rank == 0 and not said.to_stderr:
            self.found += [
                Metric(name=name, value=_finite(value), steps=None)
                for line in said.lines
                for name, value in attach.metrics_in(line, self._pattern).items()
            ]


def with_findings(execution: Execution, attachment: Attachment, folder: Path) -> Execution:
    """The record of a command that was ``attached``, with what its ranks found.

    Raises:
        MeasurementError: what they wrote cannot be read.
    """
    ranks = attach.read(folder / FINDINGS)
    shortfall = attach.shortfall(folder / FINDINGS, execution.workers * execution.per_node)
    told = [metric for rank in ranks if rank.rank == 0 for metric in rank.metrics]
    return execution.model_copy(
        update={
            "training": _Account(ranks, attachment, execution.workers).training(shortfall),
            "metrics": (*_metrics(told), *execution.metrics),
        }
    )


def _metrics(told: Iterable[ToldMetric]) -> Iterator[Metric]:
    return (Metric(name=visible(metric.name), value=_finite(metric.value), steps=metric.steps) for metric in told)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Account:
    """What all ranks found, put together.

    Args:
        links: how many there are: where ranks are more, none has its own, and no counter tells what it sent.
    """

    def __init__(self, ranks: Sequence[RankFindings], attachment: Attachment, links: int) -> None:
        self._ranks = ranks
        self._attachment = attachment
        self._model = next((rank.model for rank in ranks if rank.model), None)
        self._has_own_links = self._model is not None and self._model.world_size == len(ranks) == links
        self._steps = [rank.steps for rank in ranks]
        self._count = min(map(len, self._steps), default=0)

    def training(self, shortfall: str | None) -> Training:
        """All of it."""
        asked = self._attachment
        done = min((rank.steps_done for rank in self._ranks), default=0)
        plain = {
            "method": short(asked.method),
            "method_code": digest(asked.method) if asked.method else None,
            "params": asked.params,
            "seed": asked.seed,
            "steps_asked": asked.steps,
        }
        return Training.model_validate({**plain, "steps": done, "shortfall": shortfall, **self._seen()})

    def _seen(self) -> dict[str, object]:
        if not self._model or not self._count:
            return {}
        buckets, curve, steady = self._ranks[0].buckets, self._curve, self._curve[self._means_from :]
        return {
            "world_size": self._model.world_size,
            "device": self._model.device,
            "optimizer": self._model.optimizer,
            "parameters": sum(map(math.prod, self._shapes)),
            "buckets_bytes": tuple(buckets.sizes_bytes) if buckets else (),
            "steady_from_step": self._steady_from,
            **{name: self._mean(name) for name in ("step_s", "forward_s", "encode_s", "decode_s")},
            "exposed_s": None if self._state.syncs_in_end_step else self._mean("exposed_s"),
            "first_loss": curve[0].loss,
            "last_loss": curve[-1].loss,
            "formula": short(self._method),
            "sent_bytes": mean_of_known(step.sent_bytes for step in steady),
            "formula_bytes": mean_of_known(step.formula_bytes for step in steady),
            "curve": curve[:: -(-len(curve) // MOST_POINTS)],
        }

    @property
    def _method(self) -> str:
        return self._attachment.method or DENSE.name

    @cached_property
    def _shapes(self) -> list[list[int]]:
        assert self._model
        return [shape for _, shape in self._model.parameters]

    @cached_property
    def _state(self) -> MethodState:
        return method_named(self._method).State(**self._attachment.params)

    @cached_property
    def _steady_from(self) -> int:
        return first_steady_step(self._state)

    @cached_property
    def _means_from(self) -> int:
        return means_from(self._steady_from, self._count, self._state.agrees_every)

    @cached_property
    def _curve(self) -> tuple[ObservedStep, ...]:
        return tuple(map(self._step, range(self._count)))

    def _step(self, number: int) -> ObservedStep:
        each, first = [steps[number] for steps in self._steps], [steps[0] for steps in self._steps]
        return ObservedStep(
            step=number,
            time_s=fmean(one.at_s - (start.at_s - start.step_s) for one, start in zip(each, first, strict=True)),
            step_s=fmean(one.step_s for one in each),
            loss=mean_of_known(one.loss for one in each),
            sent_bytes=self._sent_bytes(number),
            formula_bytes=self._formula_bytes(number),
        )

    def _sent_bytes(self, number: int) -> float | None:
        if not self._has_own_links or number == 0:
            return None
        return mean_of_known(_payload_bytes(steps[number - 1], steps[number]) for steps in self._steps)

    def _formula_bytes(self, number: int) -> float:
        """Of a method whose bytes depend on the gradients' values, what it noted for those it met."""
        if number in self._noted_bytes:
            return self._noted_bytes[number] / len(self._ranks)
        assert self._model
        return float(self._state.wire_bytes(self._shapes, self._model.world_size, number))

    @cached_property
    def _noted_bytes(self) -> dict[int, float]:
        """By step, of all ranks together."""
        found: dict[int, float] = {}
        for note in (note for rank in self._ranks for note in rank.notes if note.name == "formula_bytes"):
            found[note.step] = found.get(note.step, 0.0) + note.value
        return found

    def _mean(self, name: str) -> float | None:
        """Of a time of each step."""
        return mean_of_known(
            getattr(step, name) for steps in self._steps for step in steps[self._means_from : self._count]
        )


def _payload_bytes(before: Step, after: Step) -> float | None:
    """What left a link between the ends of two steps."""
    if before.sent is None or after.sent is None:
        return None
    (bytes_before, packets_before), (bytes_after, packets_after) = before.sent, after.sent
    return float(bytes_after - bytes_before - FRAME_HEADER_BYTES * (packets_after - packets_before))


def means_from(steady_from: int, steps: int, period: int) -> int:
    """From which step on means are taken: the last ones, in whole periods from one meeting of all ranks to the next.

    Else those who meet seldom would have met too often in them, or too rarely. Where there is no whole one, all are.
    """
    steady = steps - steady_from
    return steps - (steady // period * period or steady)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """None where none is known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
