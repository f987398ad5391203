"""What a pilot would run, and how long that would take; nothing is started."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from harness.analysis.pilot import forecast
from harness.attach.orders import LOOK_STEPS
from harness.files import is_file
from harness.record.pilot import FILE, Fit, Job, Predicted, load
from harness.run.pilot.bench import Bench
from harness.run.pilot.request import ATTACHED_WORKERS, MOST_PROBES, Request
from harness.scenario.schema import MethodSpec


class Stage(NamedTuple):
    """Commands of one kind."""

    name: str
    commands: int
    ranks: int
    steps: tuple[int, int]
    """Of each command: the fewest, and the most."""
    about_s: float | None
    """What all of them take, as predicted; None: nothing is known of the job yet."""


def planned(request: Request) -> list[Stage]:
    """What will be run: of methods, steps and settings the most, where nothing tells them.

    Raises:
        UsageError: the file that an earlier pilot has left in the folder cannot be read.
    """
    bench = Bench(request, lambda line: None)
    plain = len({request.plain, request.sixteen})
    count = plain + request.tested
    tests = probes = request.steps, bench.most_steps
    looked_s: float | None = None
    tested_s: float | None = None
    searched_s: float | None = None
    if known := _known(request, bench):
        job, beyond_s = known
        looked_s = job.overhead_s + LOOK_STEPS * median(job.compute_s)
        ranked = forecast.predictions(request.forecast(job))
        trainings = [bench.expected(method, job, beyond_s) for method in to_be_tested(bench, request, ranked)]
        count, tests, others = len(trainings), _steps(trainings), trainings[plain:]
        tested_s = request.seeds * sum(seconds for _, seconds in trainings)
        if others:
            probes, searched_s = _steps(others), MOST_PROBES * request.seeds * max(seconds for _, seconds in others)
    ranks = request.per_node * request.network.workers
    return [
        Stage("look at the job and its gradients", 1, ATTACHED_WORKERS, (LOOK_STEPS, LOOK_STEPS), looked_s),
        Stage("put to the test, and learn", count * request.seeds, ranks, tests, tested_s),
        Stage("search for the smallest setting", MOST_PROBES * request.seeds, ranks, probes, searched_s),
    ]


def to_be_tested(bench: Bench, request: Request, ranked: Sequence[Predicted]) -> list[MethodSpec]:
    """The methods that a pilot trains with, by what was predicted of them: the plain ones first."""
    in_reach = {method.label for method in bench.in_reach(request.methods)}
    promising = [each for each in ranked if each.label in in_reach]
    labels = forecast.to_be_tested(promising, (request.plain, request.sixteen), request.tested)
    return [request.method(label) for label in labels]


def _known(request: Request, bench: Bench) -> tuple[Job, float] | None:
    """The job as it was looked at, also by a pilot that has not come to its end; and what steps take beyond the model.

    A method that nobody has looked at yet is taken to be exact, and to cost the device nothing.
    """
    before = load(request.out / FILE) if is_file(request.out / FILE) else None
    if before and before.command != request.command:
        before = None
    job = bench.known_job() or (before.job if before else None)
    if job is None:
        return None
    fits = {fit.method.label: fit for fit in job.fits}
    unseen = {each.label: Fit(method=each, refused=None, progress=1.0) for each in request.methods}
    own = tuple({**unseen, **fits}[each.label] for each in request.methods)
    return job.model_copy(update={"fits": own}), before.beyond_s if before else 0.0


def _steps(trainings: Sequence[tuple[int, float]]) -> tuple[int, int]:
    made = [steps for steps, _ in trainings]
    return min(made), max(made)
