"""A pilot of a user's own script: look at it, predict, put to the test, search, decide; and later look again."""

from __future__ import annotations

from collections.abc import Iterator

from harness import provenance
from harness.analysis.pilot import drift, forecast
from harness.analysis.pilot.drift import Check
from harness.analysis.pilot.learning import told_of_repeats
from harness.analysis.pilot.verdict import phases, verdict
from harness.errors import MeasurementError, UsageError
from harness.files import locked, make_folder
from harness.record.pilot import Job, Pilot, Training
from harness.run.pilot.bench import Bench
from harness.run.pilot.found import Found
from harness.run.pilot.planned import to_be_tested
from harness.run.pilot.request import Request, Tell
from harness.run.pilot.smallest import smallest_setting

ATTEMPTS = 3
"""Looks at the job before a recheck says that it has drifted: a machine may be busy for a while."""


def pilot(request: Request, tell: Tell) -> Pilot:
    """All of it.

    Raises:
        UsageError: another pilot is using its folder, the command is not there, or this machine cannot carry the links.
        MeasurementError: the script cannot be attached to, it fails, or there is no time for one look.
    """
    make_folder(request.out)
    with locked(request.out):
        return _pilot(request, tell)


def _pilot(request: Request, tell: Tell) -> Pilot:
    made_by = provenance.collect([*request.command_line])  # it says when the pilot began
    bench = Bench(request, tell)
    job = bench.job()
    found = Found(request, job)
    ranked = forecast.predictions(found.forecast)
    bench.train_in_turns(found, to_be_tested(bench, request, ranked))
    dense = [training for training in found.trainings if training.label == request.plain]
    if not dense:
        raise _without_dense(bench, request, job)
    if not any(training.has_learnt for training in dense):
        raise MeasurementError(
            f"{request.plain} has no loss that others could be compared with: it diverged with every seed, "
            "or the script calls backward on no scalar"
        )
    probes, left_open = smallest_setting(bench, found)
    outcomes = found.outcomes()
    decided = verdict(outcomes, request.plain, request.sixteen, request.tolerance, found.forecast)
    return Pilot(
        command=request.command,
        folder=str(request.folder),
        cluster=request.on,
        network=request.network,
        per_node=request.per_node,
        tolerance=request.tolerance,
        steps=request.steps,
        seeds=request.seeds,
        plain_label=request.plain,
        sixteen_label=request.sixteen,
        job=found.forecast.job,
        predictions=tuple(ranked),
        trainings=tuple(found.trainings),
        beyond_s=found.forecast.beyond_s,
        probes=probes,
        outcomes=tuple(outcomes),
        verdict=decided,
        phases=phases(decided, outcomes, request.tolerance),
        left_out=(*bench.left_out, *filter(None, [left_open]), *told_of_repeats(found.trainings)),
        unsuited=request.unsuited,
        took_s=bench.passed_s,
        provenance=made_by,
    )


def _without_dense(bench: Bench, request: Request, job: Job) -> MeasurementError:
    """What is said where there is nothing to compare with. A training that no budget holds is not begun next time."""
    goes_on = bench.is_in_budget(request.method(request.plain), job)
    helps = "the same command again, which goes on" if goes_on else "only a greater --budget: one training takes longer"
    reasons = " ".join(bench.left_out)
    return MeasurementError(
        f"no training by {request.plain}, which all is compared with: {reasons} What helps: {helps}"
    )


def recheck(before: Pilot, request: Request, tell: Tell) -> list[Check]:
    """The same short measurements again, and what each says of the pilot; where one fails, what the others said.

    Args:
        request: as the pilot's was; its network is what the links are now.

    Raises:
        UsageError: see ``pilot``; nothing has drifted by then.
    """
    make_folder(request.out)
    with locked(request.out):
        return _recheck(before, request, tell)


def _recheck(before: Pilot, request: Request, tell: Tell) -> list[Check]:
    bench = Bench(request, tell)
    checks: list[Check] = []
    again: list[Training] = []
    try:
        if request.network != before.network:
            checks += drift.of_network(before.network, request.network)
            checks += drift.of_break_even(before, request.network)
        job, told = _looked_at_again(before.job, bench)
        checks += told
        for training in _trained_again(before, job, bench):
            again.append(training)  # one by one: those that ended before another failed stay
        if not again:
            answer: drift.Answer = "cannot tell" if bench.links_changed else "drifted"
            checks.append(Check("training", answer, " ".join(bench.left_out)))
    except (UsageError, MeasurementError) as error:
        if isinstance(error, UsageError) and drift.answer(checks) != "drifted":
            raise
        checks.append(Check("the rest" if checks else "all of it", "cannot tell", str(error)))
    return checks + (drift.of_verdict(before, again) if again else [])


def _looked_at_again(before: Job, bench: Bench) -> tuple[Job, list[Check]]:
    """The job as it is now, and what has become of it. Of another model one look tells enough."""
    attempts: list[Job] = []
    checks: list[Check] = []
    for attempt in range(ATTEMPTS):
        attempts.append(bench.job(attempt))
        model, computation = checks = drift.of_job(before, attempts)
        if model.answer == "drifted" or computation.answer == "holds":
            break
    return attempts[-1], checks


def _trained_again(before: Pilot, job: Job, bench: Bench) -> Iterator[Training]:
    """Trainings with the recommended method, and with what it was held against, as they end; none without the first."""
    both = before.verdict.method, drift.compared_with(before).method
    wanted = {each.label: each for each in both}
    seed = min(each.seed for each in before.trainings if each.label == before.verdict.label)
    made = {each.label: each.steps for each in before.trainings if each.seed == seed}
    for method in wanted.values():
        training = bench.train(method, seed, job, made.get(method.label))
        if training is not None:
            yield training
        elif method.label == before.verdict.label:
            return
