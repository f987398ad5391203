"""What a data set is, and all there are by name: those of this package, and plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.plugins import Catalogue, Plugin

EVALUATION_BATCH = 500
"""Samples of a test set that are looked at together."""


@dataclass(frozen=True)
class Data:
    """What a model is given, and what it should say.

    Images: inputs (N, C, H, W) float32, roughly of zero mean and unit deviation; targets (N,) int64, their classes.
    Text: inputs (N, T) int64, T tokens in a row; targets (N, T) int64, to each token the next one.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def on(self, device: torch.device) -> Data:
        """The same in a device's memory."""
        return Data(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Dataset:
    """A data set by name: how to load it from an optional folder, and how many samples it has."""

    name: str
    summary: str
    load: Callable[[Path | None], Data]
    train_size: int
    test_size: int
    input_shape: tuple[int, ...]
    classes: int
    look: Look | None = None
    """Of a data set that is whatever lies in a folder: how many samples are there to train on and to test, and how many
    classes. Its sizes above are 0."""

    def in_folder(self, data_dir: str | None) -> Dataset:
        """The same as it is in a folder.

        Raises:
            UsageError: it needs a folder, and there is none of its layout.
        """
        if self.look is None:
            return self
        train_size, test_size, classes = self.look(Path(data_dir) if data_dir else None)
        return replace(self, train_size=train_size, test_size=test_size, classes=classes)

    @property
    def is_text(self) -> bool:
        """Whether a sample is a row of tokens, each with a next one to be said; else it is an image with a class."""
        return len(self.input_shape) == 1


DECLARED = "__pacbench__"
"""The attribute of a function that holds what a decorator has declared of it."""

Look = Callable[[Path | None], tuple[int, int, int]]
Loader = Callable[[Path | None], Data]


def dataset(
    name: str = "",
    *,
    train_size: int = 0,
    test_size: int = 0,
    input_shape: tuple[int, ...],
    classes: int,
    look: Look | None = None,
) -> Callable[[Loader], Loader]:
    """Declare what the decorated loader loads; the first line of its docstring describes it in lists.

    In this package it is entered under ``name``. In a plug-in no name is needed: its file or its package names it.
    """

    def enter(load: Loader) -> Loader:
        summary = (load.__doc__ or "").partition("\n")[0]
        declared = Dataset(name, summary, load, train_size, test_size, input_shape, classes, look)
        if load.__module__.rpartition(".")[0] == __package__:
            DATASETS[name] = declared
        setattr(load, DECLARED, declared)
        return load

    return enter


def _of_plugin(plugin: Plugin) -> Dataset:
    """The data set that a plug-in declares; what its loader raises names its file and line."""
    load: Any = plugin.get()
    declared = vars(load).get(DECLARED) if hasattr(load, "__dict__") else None
    if not isinstance(declared, Dataset):
        sizes = "train_size=..., test_size=..., input_shape=..., classes=..."
        raise plugin.error(f"{plugin.attribute} has no @dataset({sizes}) above it")
    plugin.check_call(load, "folder")
    plugin.check_declared_shape(declared.input_shape, declared.classes)

    def load_and_check(folder: Path | None) -> Data:
        with plugin.blamed():
            found = load(folder)
        if complaint := _complaint(found, declared):
            raise plugin.error(f"{plugin.attribute} gives {complaint}")
        return found  # type: ignore[no-any-return]

    return replace(declared, name=plugin.name, load=load_and_check)


def _complaint(found: object, declared: Dataset) -> str | None:
    """What is wrong with loaded data, if anything is: found and allowed."""
    if not isinstance(found, Data):
        return f"{type(found).__name__}; allowed: a harness.workload.data.Data"
    input_type = torch.int64 if declared.is_text else torch.float32
    for part, size in (("train", declared.train_size), ("test", declared.test_size)):
        target_shape = (size, *(declared.input_shape if declared.is_text else ()))
        for field, shape, dtype in (
            (f"{part}_inputs", (size, *declared.input_shape), input_type),
            (f"{part}_targets", target_shape, torch.int64),
        ):
            given = getattr(found, field)
            kind = (tuple(given.shape), given.dtype) if isinstance(given, Tensor) else type(given).__name__
            if kind != (shape, dtype):
                return f"{field} as {kind}; allowed: {(shape, dtype)}, as it declares"
        targets = getattr(found, f"{part}_targets")
        if not 0 <= int(targets.min()) <= int(targets.max()) < declared.classes:
            return f"{part}_targets from {targets.min()} to {targets.max()}; allowed: 0 to {declared.classes - 1}"
    return None


DATASETS: Catalogue[Dataset] = Catalogue("dataset", _of_plugin)
