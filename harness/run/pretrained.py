"""Weights that trials start from: pre-trained once for each seed, off the clock, and kept by what decides them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from harness import programs
from harness.errors import MeasurementError
from harness.files import as_name, files_below, is_file, make_folder
from harness.plan.trial import Trial
from harness.plugins import short
from harness.provenance import trial_digest
from harness.scenario.optimisation import DECIDE_PRETRAINING
from harness.workload.data import cache


def with_pretrained_weights(trials: Iterable[Trial]) -> list[Trial]:
    """The trials; those that ask for a pre-training start from its file. They keep their ids.

    Raises:
        MeasurementError: a pre-training does not converge, or cannot be run.
    """
    return [_with_weights(trial) if trial.case.train.pretrain else trial for trial in trials]


def _with_weights(trial: Trial) -> Trial:
    file = weights_file(trial)
    if not is_file(file):
        _make(trial, file)
    train = trial.case.train.model_copy(update={"checkpoint": str(file)})
    return trial.model_copy(update={"case": trial.case.model_copy(update={"train": train})})


def weights_file(trial: Trial) -> Path:
    """Where the weights are kept: under a digest of all that decides them."""
    train = trial.case.train
    decides = {
        "train": train.model_dump(mode="json", include=DECIDE_PRETRAINING),
        "workers": trial.case.cluster.workers,
        "seed": trial.seed,
        "code": trial_digest(),
        "data": _listing(train.data_dir),
        "versions": [platform.python_version(), version("torch"), version("torchvision")],
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return cache() / "pretrained" / f"{as_name(short(train.model))}-{digest[:16]}.pt"


def _listing(data_dir: str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a folder's files: other data have others."""
    if data_dir is None:
        return []
    files = ((path, path.stat()) for path in files_below(Path(data_dir)))
    return [(str(path.relative_to(data_dir)), found.st_size, found.st_mtime_ns) for path, found in files]


def _make(trial: Trial, file: Path) -> None:
    """Pre-train in a Python of its own, of which nothing stays in memory."""
    make_folder(file.parent)
    asked = {"case": trial.case.model_dump(mode="json", by_alias=True), "seed": trial.seed, "file": str(file)}
    done = programs.run(
        programs.python("harness.worker.pretraining"), input=json.dumps(asked).encode(), capture_output=True
    )
    if done.returncode:
        raise MeasurementError(f"pre-training: {programs.why_it_failed(done)}")
