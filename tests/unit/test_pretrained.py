"""Pre-training: once for what decides it, from there every method starts, and one that does not converge is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.errors import MeasurementError, UsageError
from harness.plan import plan
from harness.plan.trial import Trial
from harness.run import pretrained
from harness.scenario.load import load
from harness.workload.models import MODELS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def trials(*settings: str, lr: float = 0.05, steps: int = 12) -> list[Trial]:
    asked = f"train.pretrain={{steps={steps}, lr={lr}}}"
    return list(plan.make(load("quickstart", ["train.pace=none", "rounds=1", asked, *settings]), "fake").trials)


def test_all_methods_of_a_seed_start_from_weights_that_were_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    make = pretrained._make
    monkeypatch.setattr(pretrained, "_make", lambda trial, file: (made.append(file), make(trial, file)))
    ready = pretrained.with_pretrained_weights(trials())
    (file,) = {trial.case.train.checkpoint for trial in ready}
    assert made == [Path(str(file))]
    assert [trial.id for trial in ready] == [trial.id for trial in trials()]
    once = torch.load(str(file), weights_only=True)
    torch.manual_seed(0)
    drawn = MODELS["digits-cnn"].build().state_dict()
    assert all(not torch.equal(once[name], drawn[name]) for name in drawn)
    Path(str(file)).unlink()
    pretrained.with_pretrained_weights(trials()[:1])
    again = torch.load(str(file), weights_only=True)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert [path.name for path in Path(str(file)).parent.iterdir()] == [Path(str(file)).name]


def test_whatever_decides_the_weights_has_a_file_of_its_own() -> None:
    others = [
        "seed=1",
        "train.batch_size=24",
        "train.weight_decay=0.01",
        "train.augment=crop-flip",
        "cluster.workers=2",
    ]
    files = [pretrained.weights_file(trials(*settings)[0]) for settings in ([], *([other] for other in others))]
    files.append(pretrained.weights_file(trials(steps=13)[0]))
    assert len(set(files)) == len(files)
    same = pretrained.weights_file(trials("train.steps=70", "train.lr=0.3", "link.rate=1gbit")[0])
    assert same == files[0]


@pytest.mark.parametrize("lr", [1e9, 30.0])
def test_a_pre_training_that_does_not_converge_is_one_line(lr: float) -> None:
    with pytest.raises(
        MeasurementError, match=r"train\.pretrain: it did not converge: its test loss was 2\.\d+"
    ) as told:
        pretrained.with_pretrained_weights(trials(lr=lr)[:1])
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 5
    assert not pretrained.weights_file(trials(lr=lr)[0]).exists()


def test_a_replay_has_nothing_to_pre_train() -> None:
    settings = ["train.replay=fashion-cnn-cpu", "train.target=none"]
    with pytest.raises(UsageError, match=r"train\.pretrain: found .*none with train\.replay"):
        plan.make(load("convergence", [*settings, "train.pace=none", "train.pretrain={steps=1, lr=0.1}"]), "fake")
