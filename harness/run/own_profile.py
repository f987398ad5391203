"""Profiles as files, which workers can be given: named ones are found, and one of this machine is made for a run.

A profile of this machine (``train.pace = "self"``) says what a step takes a worker that has a core to itself: in the
processor's time, the best of several steps, so that it is the same on a busy machine. It is stored with the run, and
whoever resumes the run goes on by it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from harness import programs
from harness.errors import MeasurementError, PacbenchError
from harness.plan.expected import expect
from harness.plan.trial import Trial
from harness.plugins import short
from harness.record.store import Store
from harness.scenario.schema import SELF
from harness.start import lead_to_own_packages
from harness.worker.profile_request import ProfileRequest
from harness.workload import profile as profiles

STEPS = 10
"""How many steps are timed, of which the best counts."""

REQUEST = TypeAdapter(ProfileRequest)


def with_profile_files(trials: Iterable[Trial], store: Store) -> list[Trial]:
    """The trials, each with its profile as a file. They keep their ids: what they are to do is the same.

    Raises:
        UsageError: there is no such profile.
        MeasurementError: the one of this machine cannot be made.
    """
    return [_with_profile_file(trial, store) for trial in trials]


def _with_profile_file(trial: Trial, store: Store) -> Trial:
    case, train = trial.case, trial.case.train
    if train.profile is None:
        return trial
    file = _own(trial, store) if train.pace == SELF else _known(train.profile, store)
    named = {"replay" if train.replay else "pace": str(file)}
    return trial.model_copy(update={"case": case.model_copy(update={"train": train.model_copy(update=named)})})


def _known(profile: str, store: Store) -> Path:
    """The file of a profile that is there; of a share of its device it is made, and kept with the run."""
    name, percent = profiles.split(profile)
    if percent == 100:
        return profiles.find(name)
    shown = f"{Path(name).stem}@{percent}%"
    return store.profile(shown, lambda: profiles.read(profile).as_json())


def _own(trial: Trial, store: Store) -> Path:
    """The file of this machine's profile for what the trial computes, which is made where the run has none."""
    train, workers = trial.case.train, trial.case.cluster.workers
    request = ProfileRequest(
        model=train.model,
        batch_size=train.batch_size,
        device="cpu",
        workers=workers,
        steps=STEPS,
        methods=store.scenario().methods,
        made_by="pacbench run, for train.pace = self",
        dataset=train.dataset,
        in_processor_time=True,
        data_dir=train.data_dir,
        optimizer=train.optimizer.name,
        autocast=train.autocast,
    )
    how = "-".join(word for word in (train.optimizer.name, train.autocast) if word and word != "sgd")
    workload = f"{short(train.model)}-{train.batch_size}-{short(train.dataset)}-{workers}"
    return store.own_profile(f"{workload}-{how}" if how else workload, partial(_made, request))


def _made(request: ProfileRequest) -> str:
    """What the profile's file is to hold. It is measured in a Python of its own, of which nothing stays in memory.

    Here, multiprocessing would run the main script again, which may be a user's that has called us.
    """
    asked = REQUEST.dump_json(request)
    done = programs.run(programs.python(__name__), input=asked, capture_output=True)
    if done.returncode:
        raise MeasurementError(f"the profile of this machine cannot be made: {programs.why_it_failed(done)}")
    profiles.read.cache_clear()  # a run that was removed may have had a folder of the same name
    expect.cache_clear()
    made: str = done.stdout.decode()
    return made


def main() -> None:
    """Measure what is asked for on stdin, and print it."""
    from harness.worker.profiler import measure

    lead_to_own_packages()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a plug-in prints is no part of the profile
    try:
        made = measure(REQUEST.validate_json(sys.stdin.buffer.read())).as_json()
        with os.fdopen(answer, "w") as stdout:
            stdout.write(made)
    except PacbenchError as error:
        sys.exit(str(error))
