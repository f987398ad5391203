"""A pilot of a user's own script: look at it, predict, put to the test, search, decide; and later look again.

Every command that runs has a folder of its own, named by all that makes it this experiment: what is there already is
not run again. Before each the time that is left is looked at; what has no room is left out, and said so.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from harness import attach, provenance
from harness.analysis.pilot import drift, forecast, learning, search
from harness.analysis.pilot.drift import Check
from harness.analysis.pilot.forecast import Forecast
from harness.analysis.pilot.verdict import phases, swept_parameter, verdict
from harness.attach.attachment import Attachment
from harness.attach.findings import Looked, Step
from harness.attach.orders import LOOK_STEPS, SETTLING_STEPS, TIMED_STEPS
from harness.attach.reading import RankFindings
from harness.cluster import registry
from harness.errors import MeasurementError, UsageError
from harness.files import as_name, make_folder
from harness.messages import Output
from harness.network.topology import Topology
from harness.plan.estimate import NETWORK_S
from harness.plan.expected import state_of
from harness.plugins import short
from harness.provenance import cpu_model
from harness.record.execution import FILE as RECORD
from harness.record.execution import Execution
from harness.record.pilot import Fit, Job, Outcome, Pilot, Probe, Training
from harness.run.attached import FINDINGS, execute_attached
from harness.run.command import Job as CommandJob
from harness.scenario.properties import UNSHAPED
from harness.scenario.schema import MethodSpec
from harness.units import format_time
from harness.workload.profile import SCHEMA as PROFILE_SCHEMA
from harness.workload.profile import Codec, Gradient, Profile

ATTACHED_WORKERS = 2

MOST_LONGER = 5.0
"""Times the steps of the plain all-reduces that a method with shorter ones makes at most."""

MOST_PROBES = 4
"""Settings that are tried in search of the smallest that keeps the loss."""

ATTEMPTS = 3
"""Looks at the job before a recheck says that it has drifted: a machine may be busy for a while."""

LEAST_FORWARD_S = 1e-6
FEWEST_STEADY = 3
"""Steps that a pace is made of, at least."""

Tell = Callable[[str], None]
"""Hears what is about to happen, a line each."""


@dataclass(frozen=True)
class Request:
    """What a pilot is asked for."""

    command: tuple[str, ...]
    folder: Path
    """In which it runs."""
    environment: Mapping[str, str]
    network: Topology
    on: str
    """Kind of cluster."""
    methods: tuple[MethodSpec, ...]
    """All that may be recommended, the plain ones among them."""
    plain: str
    """Label of the all-reduce in 32 bits."""
    sixteen: str
    """Label of the 16-bit one."""
    tolerance: float
    steps: int
    seeds: int
    tested: int
    """How many methods are put to the test beside the plain ones."""
    budget_s: float | None
    out: Path
    command_line: tuple[str, ...]

    def method(self, label: str) -> MethodSpec:
        """The method of a label."""
        return next(method for method in self.methods if method.label == label)


def stages(request: Request) -> list[tuple[str, int, int, int]]:
    """What will be run: a stage's name, its commands, and of each the workers and steps; the search at most."""
    workers, count = request.network.workers, request.tested + len({request.plain, request.sixteen})
    return [
        ("look at the job and its gradients", 1, ATTACHED_WORKERS, LOOK_STEPS),
        ("put to the test, and learn", count * request.seeds, workers, request.steps),
        ("search for the smallest setting", MOST_PROBES * request.seeds, workers, request.steps),
    ]


def pilot(request: Request, tell: Tell) -> Pilot:
    """All of it.

    Raises:
        UsageError: the command is not there, or this machine cannot carry the links.
        MeasurementError: the script cannot be attached to, it fails, or there is no time for one look.
    """
    bench = _Bench(request, tell)
    job = bench.job()
    found = _Found(request, job)
    ranked = forecast.predictions(found.forecast)
    labels = forecast.to_be_tested(ranked, (request.plain, request.sixteen), request.tested)
    bench.train_in_turns(found, [request.method(label) for label in labels])
    if not any(training.label == request.plain for training in found.trainings):
        raise MeasurementError(
            "the budget has no room for a training by the plain all-reduce, which all is compared with"
        )
    probes = _search(bench, found)
    outcomes = found.outcomes()
    decided = verdict(outcomes, request.plain, request.sixteen, request.tolerance, found.forecast)
    return Pilot(
        command=request.command,
        folder=str(request.folder),
        cluster=request.on,
        network=request.network,
        tolerance=request.tolerance,
        steps=request.steps,
        seeds=request.seeds,
        plain_label=request.plain,
        sixteen_label=request.sixteen,
        job=found.forecast.job,
        predictions=tuple(ranked),
        trainings=tuple(found.trainings),
        probes=tuple(probes),
        outcomes=tuple(outcomes),
        verdict=decided,
        phases=phases(decided, outcomes, request.tolerance),
        left_out=tuple(bench.left_out),
        took_s=bench.passed_s,
        provenance=provenance.collect([*request.command_line]),
    )


def recheck(before: Pilot, request: Request, tell: Tell) -> list[Check]:
    """The same short measurements again, and what each says of the pilot.

    Args:
        request: as the pilot's was; its network is what the links are now.

    Raises:
        UsageError, MeasurementError: see ``pilot``.
    """
    bench = _Bench(request, tell)
    attempts: list[Job] = []
    checks: list[Check] = []
    for attempt in range(ATTEMPTS):
        attempts.append(bench.job(attempt))
        checks = drift.of_job(before.job, attempts)
        if all(check.answer == "holds" for check in checks):
            break
    if request.network != before.network:
        checks.append(drift.of_network(before.network, request.network))
    sixteen = next((each.method for each in before.trainings if each.label == before.sixteen_label), None)
    wanted = {each.label: each for each in (before.verdict.method, sixteen) if each is not None}
    seed = min(each.seed for each in before.trainings if each.label == before.verdict.label)
    made = {each.label: each.steps for each in before.trainings if each.seed == seed}
    again = [bench.train(method, seed, attempts[-1], made.get(method.label)) for method in wanted.values()]
    if again[0] is None:
        return [*checks, Check("training", "drifted", " ".join(bench.left_out))]
    return checks + drift.of_verdict(before, [each for each in again if each is not None])


def again(before: Pilot, network: Topology, environment: Mapping[str, str], out: Path) -> Request:
    """What a recheck asks for: what the pilot did, for the methods that its verdict is about.

    Args:
        network: what the links are now.
    """
    labels = (before.plain_label, before.sixteen_label, before.verdict.label)
    known = {fit.method.label: fit.method for fit in before.job.fits}
    return Request(
        command=before.command,
        folder=Path(before.folder),
        environment=environment,
        network=network,
        on=before.cluster,
        methods=tuple(known[label] for label in dict.fromkeys(labels)),
        plain=before.plain_label,
        sixteen=before.sixteen_label,
        tolerance=before.tolerance,
        steps=before.steps,
        seeds=1,
        tested=1,
        budget_s=None,
        out=out,
        command_line=(),
    )


class _Found:
    """What is known so far."""

    def __init__(self, request: Request, job: Job) -> None:
        self._request = request
        self.job = job
        self.trainings: list[Training] = []

    @property
    def forecast(self) -> Forecast:
        """Predictions for the job as it is known."""
        return Forecast(self.job, self._request.network)

    def outcomes(self) -> list[Outcome]:
        """What all trainings show."""
        asked = self._request
        return learning.outcomes(self.trainings, asked.plain, asked.sixteen, asked.tolerance, self.forecast)

    def add_setting(self, base: MethodSpec, other: MethodSpec) -> None:
        """Take a setting that nobody looked at to cost on the device what its sibling does."""
        codec = self.job.profile.codec(base, ATTACHED_WORKERS)
        if codec is not None:
            codecs = (*self.job.profile.codecs, codec.model_copy(update={"params": other.params}))
            self.job = self.job.model_copy(update={"profile": self.job.profile.model_copy(update={"codecs": codecs})})
        sibling = self.job.fit(base.label)
        unseen = {"method": other, "nmse": None, "cosine": None, "progress": None}
        self.job = self.job.model_copy(update={"fits": (*self.job.fits, sibling.model_copy(update=unseen))})


class _Bench:
    """Where commands are run, one after the other, within a budget."""

    def __init__(self, request: Request, tell: Tell) -> None:
        self._request, self._tell = request, tell
        self._began_s = time.monotonic()
        self._overheads_s: list[float] = []
        self._without_room: dict[str, list[int]] = {}
        self._failed: list[str] = []
        make_folder(request.out)

    @property
    def left_out(self) -> list[str]:
        """What had no room in the budget, or failed, a sentence each."""
        seeds = [
            f"{label} ({'seed' if len(own) == 1 else 'seeds'} {', '.join(map(str, own))})"
            for label, own in self._without_room.items()
        ]
        return [*([f"No room in the budget had {'; '.join(seeds)}."] if seeds else []), *self._failed]

    @property
    def passed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    @property
    def _left_s(self) -> float:
        return math.inf if self._request.budget_s is None else self._request.budget_s - self.passed_s

    def job(self, attempt: int = 0) -> Job:
        """The user's job, looked at.

        Args:
            attempt: which look at it; each is a command of its own.

        Raises:
            MeasurementError: the script cannot be attached to, fails, or takes longer than the budget.
        """
        request = self._request
        look = tuple((method.name, method.params) for method in request.methods)
        attachment = Attachment(seed=attempt, steps=LOOK_STEPS, look=look)
        unshaped = Topology.model_validate({"workers": ATTACHED_WORKERS, "link": {"rate": UNSHAPED}})
        self._tell(f"looking at the job: {LOOK_STEPS} steps on {ATTACHED_WORKERS} workers, unshaped")
        found, folder = self._run("job", unshaped, attachment)
        if found.ending == "timed out":
            raise MeasurementError(
                f"the budget of {format_time(request.budget_s or 0.0)} ended while the script was looked at: "
                "one look takes longer than that"
            )
        if why := _why_not(found):
            raise MeasurementError(f"the script cannot be looked at: {why}")
        return job_of(attach.read(folder / FINDINGS), request.methods, found.wall_time_s)

    def train_in_turns(self, found: _Found, methods: Sequence[MethodSpec]) -> None:
        """Train with each method, seed by seed, as long as there is room."""
        for seed in range(self._request.seeds):
            for method in methods:
                training = self.train(method, seed, found.job)
                if training is not None:
                    found.trainings.append(training)

    def train(self, method: MethodSpec, seed: int, job: Job, steps: int | None = None) -> Training | None:
        """The script with a method on the emulated network; None where there is no room, or it failed.

        Args:
            steps: how many; None: as many as the 16-bit all-reduce makes in that time, or what was asked for if that is
                more.

        Raises:
            MeasurementError: it failed as the user has it, without a method.
        """
        request = self._request
        is_plain = method.label == request.plain
        attachment = Attachment(
            method=None if is_plain else method.name,
            params={} if is_plain else method.params,
            seed=seed,
            shifts_seeds=True,
            steps=steps or self._steps(method, job),
        )
        what = f"{method.label}, seed {seed}"
        folder = self._folder(method.label, request.network, attachment)
        needs_s = self._expected_s(method, job)
        if not _is_done(folder) and needs_s > self._left_s:
            self._without_room.setdefault(method.label, []).append(seed)
            return None
        self._tell(f"training: {what}, about {format_time(needs_s)}")
        found, folder = self._run(method.label, request.network, attachment)
        why = _why_not(found)
        if found.ending == "timed out":
            self._without_room.setdefault(method.label, []).append(seed)
            return None
        if why and is_plain:
            raise MeasurementError(f"the script fails on this network: {why}")
        if why:
            self._failed.append(f"{what}: {why}.")
            return None
        try:
            training = training_of(method, seed, found, folder.relative_to(request.out))
        except MeasurementError as error:
            if is_plain:
                raise
            self._failed.append(f"{error}.")
            return None
        self._overheads_s.append(max(0.0, NETWORK_S + training.wall_s - training.steps * training.pace_s))
        return training

    def _steps(self, method: MethodSpec, job: Job) -> int:
        known = Forecast(job, self._request.network)
        shorter = known.pace_s(self._request.method(self._request.sixteen)) / known.pace_s(method)
        is_plain = method.label in (self._request.plain, self._request.sixteen)
        return self._request.steps if is_plain else round(self._request.steps * min(MOST_LONGER, max(1.0, shorter)))

    def _expected_s(self, method: MethodSpec, job: Job) -> float:
        """What a training will take about: its steps as predicted, and the rest as it was until now."""
        overhead_s = fmean(self._overheads_s) if self._overheads_s else job.overhead_s
        return overhead_s + self._steps(method, job) * Forecast(job, self._request.network).pace_s(method)

    def _run(self, label: str, network: Topology, attachment: Attachment) -> tuple[Execution, Path]:
        """Run a command, unless it has been; its record and folder."""
        request, folder = self._request, self._folder(label, network, attachment)
        if _is_done(folder):
            return Execution.load(folder), folder
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        timeout_s = None if request.budget_s is None else max(1.0, self._left_s)
        job = CommandJob(request.command, request.folder, request.environment, timeout_s=timeout_s)
        cluster = registry.make_for_commands(request.on)
        with (folder / "output.txt").open("w", encoding="utf-8") as output:

            def hear(said: Output) -> None:
                output.writelines(f"{said.node} | {line}\n" for line in said.lines)

            found = execute_attached(cluster, network, job, attachment, hear, request.command_line, folder)
        found.save(folder)
        return found, folder

    def _folder(self, label: str, network: Topology, attachment: Attachment) -> Path:
        request = self._request
        parts = (
            provenance.code_digest(),
            *request.command,
            str(request.folder),
            *files_digest(request.command, request.folder),
            network.model_dump_json(),
            attachment.model_dump_json(),
        )
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
        return request.out / "runs" / f"{as_name(label)[:60]}-{digest}"


def files_digest(command: Sequence[str], folder: Path) -> list[str]:
    """Hashes of the files that a command names: of a script that has changed nothing is known."""
    found = []
    for word in command:
        path = folder / word
        if len(word) < 4096 and os.path.isfile(path) and path.stat().st_size < 10_000_000:
            found.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def _is_done(folder: Path) -> bool:
    """Whether a command has run to its end there."""
    if not (folder / RECORD).is_file():
        return False
    try:
        return _why_not(Execution.load(folder)) is None
    except UsageError:
        return False


def _why_not(found: Execution) -> str | None:
    """Why a command's findings cannot be used; None: they can."""
    if found.ending != "finished":
        return f"{found.ending}, {found.reason}"
    if found.drift:
        return f"the links had changed after it: {'; '.join(found.drift)}"
    return found.training.shortfall if found.training else "nothing was observed"


def job_of(ranks: Sequence[RankFindings], methods: Sequence[MethodSpec], wall_s: float) -> Job:
    """What all ranks of a look found, put together.

    Args:
        wall_s: what the command took.

    Raises:
        MeasurementError: the script ended before the look was over.
    """
    first = ranks[0]
    if first.gradients is None or first.distribution is None or len(first.looked) < len(methods) or not first.model:
        steps = min(rank.steps_done for rank in ranks)
        raise MeasurementError(f"the script ended after {steps} steps; a look takes {LOOK_STEPS}")
    timed = [rank.steps[SETTLING_STEPS : SETTLING_STEPS + TIMED_STEPS] for rank in ranks]
    gradients = _gradients(ranks)
    backward_s = gradients[-1].ready_s
    optimizer_s = _typical(timed, lambda step: step.step_s - step.ready_s - step.exposed_s)
    looked = [[rank.looked[place] for rank in ranks] for place in range(len(methods))]
    plain_s = next((_mean(own, "optimizer_s") for own in looked if own[0].refused is None), 0.0)
    codecs = [
        _codec(method, own, max(0.0, optimizer_s) - plain_s)
        for method, own in zip(methods, looked, strict=True)
        if own[0].refused is None
    ]
    profile = Profile.model_validate(
        {
            "schema": PROFILE_SCHEMA,
            "model": "the script's",
            "batch_size": first.gradients.batch_size,
            "device": cpu_model() if first.model.device == "cpu" else first.model.device,
            "source": "measured",
            "made_by": "pacbench pilot",
            "workers": len(ranks),
            "forward_s": max(LEAST_FORWARD_S, _typical(timed, lambda step: step.ready_s) - backward_s),
            "backward_s": backward_s,
            "optimizer_s": max(0.0, optimizer_s),
            "optimizer": first.model.optimizer,
            "gradients": tuple(gradients),
            "codecs": tuple(codecs),
        }
    )
    steps_s = [_typical([[step] for step in of_step], _without_network_s) for of_step in zip(*timed, strict=True)]
    spread = first.distribution
    return Job(
        profile=profile,
        between_s=_typical(timed, lambda step: step.between_s or 0.0),
        bucket_bytes=first.gradients.bucket_bytes,
        compute_s=tuple(steps_s),
        non_zero=spread.non_zero,
        holding_90=spread.holding_90,
        holding_99=spread.holding_99,
        fits=tuple(_fit(method, own, plain_s) for method, own in zip(methods, looked, strict=True)),
        overhead_s=NETWORK_S + max(0.0, wall_s - sum(step.step_s + (step.between_s or 0.0) for step in first.steps)),
    )


def _without_network_s(step: Step) -> float:
    return step.step_s - step.exposed_s + (step.between_s or 0.0)


def _typical(timed: Sequence[Sequence[Step]], seconds: Callable[[Step], float]) -> float:
    return median(seconds(step) for steps in timed for step in steps)


def _gradients(ranks: Sequence[RankFindings]) -> list[Gradient]:
    """Each parameter's gradient, at the mean of the ranks' times, in the order in which they are ready."""
    times: dict[str, list[float]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank in ranks:
        for name, shape, ready_s in rank.gradients.parameters if rank.gradients else []:
            times.setdefault(name, []).append(ready_s)
            shapes[name] = tuple(shape)
    means_s = {name: fmean(own) for name, own in times.items()}
    return [
        Gradient(parameter=name, shape=shapes[name], ready_s=means_s[name])
        for name in sorted(means_s, key=lambda each: means_s[each])
    ]


def _mean(looked: Sequence[Looked], name: str) -> float:
    return fmean(getattr(each, name) for each in looked)


def _codec(method: MethodSpec, looked: Sequence[Looked], beyond_s: float) -> Codec:
    """What a method costs in the script.

    Args:
        beyond_s: what a step of the script's optimizer takes beyond a shadow's: clipping, say.
    """
    parts: dict[str, Any] = {name: _mean(looked, name) for name in ("encode_s", "beside_s", "decode_s")}
    optimizer_s = max(0.0, _mean(looked, "optimizer_s") + beyond_s)
    return Codec(method=short(method.name), params=method.params, workers=len(looked), optimizer_s=optimizer_s, **parts)


def _fit(method: MethodSpec, looked: Sequence[Looked], plain_s: float) -> Fit:
    if looked[0].refused is not None:
        return Fit(method=method, refused=looked[0].refused)
    codec_s = sum(_mean(looked, name) for name in ("encode_s", "beside_s", "decode_s"))
    gradient = {
        name: _mean(looked, name) if looked[0].nmse is not None else None for name in ("nmse", "cosine", "progress")
    }
    return Fit(
        method=method,
        refused=None,
        codec_s=codec_s + max(0.0, _mean(looked, "optimizer_s") - plain_s),
        held_bytes=max(each.held_bytes for each in looked),
        **gradient,
    )


def training_of(method: MethodSpec, seed: int, found: Execution, record: Path) -> Training:
    """What a record tells of a training.

    Raises:
        MeasurementError: it ended before its steady state.
    """
    seen = found.training
    if seen is None or seen.step_s is None or seen.exposed_s is None or seen.steady_from_step is None:
        steps = seen.steps if seen else 0
        raise MeasurementError(f"{method.label}: the script ended after {steps} steps, before its steady state")
    steady = seen.curve[seen.steady_from_step - 1 :]
    if len(steady) < FEWEST_STEADY:
        raise MeasurementError(
            f"{method.label}: {seen.steps} steps have no steady state, which begins at step {seen.steady_from_step}"
        )
    memory = [use.peak_memory_bytes for use in found.uses if use.peak_memory_bytes is not None]
    return Training(
        label=method.label,
        method=method,
        seed=seed,
        steps=seen.steps,
        pace_s=(steady[-1].time_s - steady[0].time_s) / (len(steady) - 1),
        exposed_s=seen.exposed_s,
        compute_s=seen.step_s - seen.exposed_s,
        encode_s=seen.encode_s,
        decode_s=seen.decode_s,
        sent_bytes=seen.sent_bytes,
        formula_bytes=seen.formula_bytes,
        peak_memory_bytes=max(memory, default=None),
        losses=tuple(step.loss for step in seen.curve),
        wall_s=found.wall_time_s,
        record=str(record),
    )


def _search(bench: _Bench, found: _Found) -> list[Probe]:
    """Settings of the most promising method that has one, down to the smallest that keeps the loss."""
    leader = _leader(found)
    if leader is None:
        return []
    base, parameter, first = leader
    tried = {first: _is_within(found, base.label)}
    probes: list[Probe] = []
    while len(probes) < MOST_PROBES and (value := search.next_value(tried)) is not None:
        method = base.model_copy(
            update={"params": {**base.params, parameter: value}, "label": f"{base.name}, {parameter} {value:.3g}"}
        )
        known, before = found.job, len(found.trainings)
        found.add_setting(base, method)
        bench.train_in_turns(found, [method])
        if len(found.trainings) == before:
            found.job = known
            break
        own = next(each for each in found.outcomes() if each.label == method.label)
        tried[value] = _is_within(found, method.label)
        difference = own.loss_difference.value if own.loss_difference else None
        probes.append(
            Probe(label=method.label, parameter=parameter, value=value, difference=difference, within=tried[value])
        )
    return probes


def _leader(found: _Found) -> tuple[MethodSpec, str, float] | None:
    """Of the methods that were trained and have a share to set, the soonest; with its share."""

    def how_soon(outcome: Outcome) -> tuple[bool, float]:
        return outcome.time_to_loss_s is None, outcome.time_to_loss_s or outcome.pace_s

    for outcome in sorted(found.outcomes(), key=how_soon):
        parameter = swept_parameter(outcome)
        if parameter is not None:
            return outcome.method, parameter, float(getattr(state_of(outcome.method), parameter))
    return None


def _is_within(found: _Found, label: str) -> bool:
    """Whether it came to dense's loss, within the tolerance, with every seed."""
    return next(each for each in found.outcomes() if each.label == label).time_to_loss_s is not None
