"""What a profile computes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import traps

from harness.errors import UsageError
from harness.worker.profile_request import ProfileRequest
from harness.worker.profiler import samples
from harness.workload.data import DATASETS
from harness.workload.models import MODELS


def batch(model: str, dataset: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    order = ProfileRequest(model, 8, "cpu", workers=1, steps=1, methods=(), made_by="a test", dataset=dataset)
    return samples(order, MODELS[model].build())


@pytest.mark.parametrize("model", ["digits-cnn", "byte-lm"])
def test_samples_are_not_foreseeable_and_have_targets_of_the_models_shape(model: str) -> None:
    inputs, targets = batch(model)
    assert inputs.shape == (8, *MODELS[model].input_shape)
    assert len(inputs.unique()) > inputs.numel() // 4
    assert targets.shape == MODELS[model].build()(inputs).shape[:-1]


def test_samples_are_a_data_sets_if_one_is_named() -> None:
    inputs, targets = batch("digits-cnn", "digits")
    digits = DATASETS["digits"].load(None)
    assert torch.equal(inputs, digits.train_inputs[:8])
    assert torch.equal(targets, digits.train_targets[:8])


def test_its_processes_run_nothing_of_the_current_folder(tmp_path: Path) -> None:
    """They are multiprocessing's, which starts Python in ways of its own."""
    here = traps.lay(tmp_path / "here")
    command = ("profile", "digits-cnn", "--workers", "2", "--steps", "1", "-o", "made.json")
    done = subprocess.run(
        [*traps.console_script(tmp_path / "bin"), *command],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert traps.sprung(here) == []
    assert done.returncode == 0, done.stderr
    assert (here / "made.json").is_file()


def test_a_data_set_is_looked_for_where_it_is_said_to_be(tmp_path: Path) -> None:
    request = ProfileRequest("fashion-cnn", 8, "cpu", 1, 1, (), "a test", "fashion-mnist", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"train\.data_dir: found .*a folder with train-images"):
        samples(request, MODELS["fashion-cnn"].build())
