"""What a profile computes on."""

from __future__ import annotations

import pytest
import torch

from harness.profiler import Order, samples
from harness.workload.data import DATASETS
from harness.workload.models import MODELS


def batch(model: str, dataset: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    order = Order(model, 8, "cpu", workers=1, steps=1, methods=(), made_by="a test", dataset=dataset)
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
