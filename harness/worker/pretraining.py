"""Pre-training: one process trains a model as dense workers would together, so that all trials start from its weights.

It reads a trial's case from stdin as JSON, with a seed and the file to write, and ends with one line where the training
does not converge.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from harness.errors import MeasurementError, PacbenchError, UsageError
from harness.files import write_whole
from harness.scenario.schema import Case
from harness.start import lead_to_own_packages
from harness.workload import optimizers
from harness.workload.augment import crop_and_flip
from harness.workload.data import DATASETS, Data
from harness.workload.datasets import EVALUATION_BATCH
from harness.workload.models import MODELS, autocast, cross_entropy


def pretrain(case: Case, seed: int) -> nn.Module:
    """The model after ``train.pretrain``, on batches as large as those of all workers together.

    Raises:
        MeasurementError: the test loss is not finite in the end, or not below its start.
    """
    train, asked = case.train, case.train.pretrain
    assert asked
    data = DATASETS[train.dataset].load(Path(train.data_dir) if train.data_dir else None)
    torch.manual_seed(seed)
    model = MODELS[train.model].build()
    settings = optimizers.settings_of(train.optimizer, asked.lr, train.momentum, train.weight_decay)
    optimizer = optimizers.build(train.optimizer, model.parameters(), settings)
    before = loss_on_test_set(model, data)
    batches = _batches(len(data.train_targets), case.cluster.workers * train.samples_per_step, seed)
    for step, batch in enumerate(itertools.islice(batches, asked.steps)):
        inputs = data.train_inputs[batch]
        if train.augment:
            inputs = crop_and_flip(inputs, (seed, step))
        with autocast(train.autocast, "cpu"):
            loss = cross_entropy(model(inputs), data.train_targets[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = loss_on_test_set(model, data)
    if not (math.isfinite(after) and after < before):
        raise MeasurementError(
            f"scenario: train.pretrain: it did not converge: its test loss was {before:.3g} and is {after:.3g} after "
            f"{asked.steps} steps with lr {asked.lr:g} (seed {seed}); another lr, or more steps, may help"
        )
    return model


@torch.no_grad()
def loss_on_test_set(model: nn.Module, data: Data) -> float:
    """The mean cross entropy on the test set, in nats."""
    model.eval()
    total = 0.0
    parts = zip(data.test_inputs.split(EVALUATION_BATCH), data.test_targets.split(EVALUATION_BATCH), strict=True)
    for inputs, targets in parts:
        total += cross_entropy(model(inputs), targets, reduction="sum").item()
    model.train()
    return total / data.test_targets.numel()


def _batches(samples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of samples, each epoch in a new order."""
    dice = torch.Generator().manual_seed(seed)
    batches = BatchSampler(RandomSampler(range(samples), generator=dice), batch_size, drop_last=True)
    if not len(batches):
        raise UsageError.at("scenario", "train.batch_size", batch_size, f"at most {samples} samples of all workers")
    while True:
        yield from batches


def main() -> None:
    """Pre-train what is asked for on stdin, and write its ``state_dict()`` by one rename."""
    lead_to_own_packages()
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)  # sums depend on how many threads share them
    file = Path(asked["file"])
    try:
        model = pretrain(Case.model_validate_json(json.dumps(asked["case"])), asked["seed"])
        content = io.BytesIO()
        torch.save(model.state_dict(), content)
        write_whole(file, content.getvalue())
    except PacbenchError as error:
        sys.exit(str(error))
