"""Data sets of text: bytes in rows, to each the next one."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.errors import UsageError
from harness.files import files_below
from harness.workload.datasets import DATASETS, Data, dataset

TEXT_LENGTH = 64
ROW_BYTES = TEXT_LENGTH + 1
TEST_FILE_EVERY = 10
"""Whole files are kept for the test, so that it asks of code that was never seen."""


@dataset("python-source", train_size=32768, test_size=512, input_shape=(TEXT_LENGTH,), classes=256)
def python_source(folder: Path | None) -> Data:
    """Bytes of the Python standard library's modules, 64 in a row: 32768 rows to train on, 512 of other files to test.

    It is the library of the Python that runs, or all ``.py`` files right in the scenario's folder. Another version of
    Python has a slightly other text; trials record the version.
    """
    where = folder or Path(sysconfig.get_path("stdlib"))
    sources = sorted(where.glob("*.py"))
    known = DATASETS["python-source"]
    test = _rows(sources[::TEST_FILE_EVERY], known.test_size, where)
    train = _rows([each for place, each in enumerate(sources) if place % TEST_FILE_EVERY], known.train_size, where)
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


def _rows(sources: Sequence[Path], count: int, where: Path) -> Tensor:
    """Rows of text (count, TEXT_LENGTH + 1) int64, evenly spread over these files; the last byte is only a target."""
    text = b"".join(path.read_bytes() for path in sources)
    length = ROW_BYTES
    found = len(text) // length
    if found < count:
        allowed = f"a folder with at least {count * length} bytes of Python in each part of its .py files"
        raise UsageError.at("scenario", "train.data_dir", str(where), f"{allowed}; {len(text)} are there")
    rows = torch.from_numpy(np.frombuffer(text, np.uint8, found * length).reshape(found, length).astype(np.int64))
    return rows[torch.linspace(0, found - 1, count).long()]


def _text_files(folder: Path | None) -> tuple[list[Path], list[Path]]:
    """A folder's text files, below it too, in their order: those to train on, and every tenth to test."""
    found = files_below(folder) if folder else []
    train, test = [path for place, path in enumerate(found) if place % TEST_FILE_EVERY], found[::TEST_FILE_EVERY]
    if not all(sum(path.stat().st_size for path in part) >= ROW_BYTES for part in (train, test)):
        allowed = f"a folder with at least two files of text of {ROW_BYTES} bytes or more"
        raise UsageError.at("scenario", "train.data_dir", folder and str(folder), allowed)
    return train, test


def _look_at_text(folder: Path | None) -> tuple[int, int, int]:
    """Rows to train on and to test, and what a byte may be."""
    train, test = (sum(path.stat().st_size for path in part) // ROW_BYTES for part in _text_files(folder))
    return train, test, 256


@dataset("text-folder", input_shape=(TEXT_LENGTH,), classes=256, look=_look_at_text)
def text_folder(folder: Path | None) -> Data:
    """Bytes of all files in the folder train.data_dir, 64 in a row; every tenth file is kept for the test."""
    train_size, test_size, _ = _look_at_text(folder)
    train_files, test_files = _text_files(folder)
    assert folder
    train, test = _rows(train_files, train_size, folder), _rows(test_files, test_size, folder)
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])
