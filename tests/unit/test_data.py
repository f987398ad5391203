"""Data sets: real, the same each time, and of the sizes they declare."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from harness.errors import UsageError
from harness.workload.data import DATASETS, Data


@pytest.fixture(scope="module")
def text() -> Data:
    return DATASETS["python-source"].load(None)


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_what_it_declares_to_be(name: str) -> None:
    known = DATASETS[name]
    data = known.load(None)
    for inputs, targets, size in (
        (data.train_inputs, data.train_targets, known.train_size),
        (data.test_inputs, data.test_targets, known.test_size),
    ):
        assert inputs.shape == (size, *known.input_shape)
        assert targets.shape in ((size,), inputs.shape)
        assert targets.dtype == torch.int64
        assert targets.min() >= 0
        assert targets.max() < known.classes


def test_each_target_of_text_is_the_byte_after_its_input(text: Data) -> None:
    assert torch.equal(text.train_inputs[:, 1:], text.train_targets[:, :-1])
    whole = b"".join(path.read_bytes() for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for row in (text.train_inputs[5], text.test_targets[7]):
        assert bytes(row.tolist()) in whole


def test_text_is_read_the_same_each_time(text: Data) -> None:
    again = DATASETS["python-source"].load(None)
    assert torch.equal(text.train_inputs, again.train_inputs)
    assert torch.equal(text.test_targets, again.test_targets)


def test_text_is_tested_on_files_that_were_not_trained_on(tmp_path: Path) -> None:
    for number in range(20):  # every tenth is kept for the test
        (tmp_path / f"m{number:02}.py").write_text(chr(ord("a") + number) * 250_000)
    data = DATASETS["python-source"].load(tmp_path)
    assert set(data.test_inputs.unique().tolist()) == {ord("a"), ord("k")}
    assert {ord("a"), ord("k")}.isdisjoint(data.train_inputs.unique().tolist())
    assert len(data.train_inputs.unique()) == 18


def test_a_folder_with_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text("pass\n")
    with pytest.raises(UsageError, match=r"train\.data_dir: found .*; allowed: a folder with at least \d+ bytes"):
        DATASETS["python-source"].load(tmp_path)


def test_clothes_in_colour_are_the_same_clothes_padded() -> None:
    grey, colour = (DATASETS[name].load(None) for name in ("fashion-mnist", "fashion-mnist-rgb"))
    assert torch.equal(colour.train_inputs[:9, 2, 2:30, 2:30], grey.train_inputs[:9, 0])
    assert torch.equal(colour.train_targets, grey.train_targets[:10000])
    assert (colour.train_inputs[:, :, :2] == grey.train_inputs.min()).all()
