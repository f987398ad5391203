"""A data set of one's own: scikit-learn's digits, each moved by up to a pixel, so that position tells less."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from harness.workload.data import Data, dataset

TRAIN_SIZE, TEST_SIZE = 1437, 360


@dataset(train_size=TRAIN_SIZE, test_size=TEST_SIZE, input_shape=(1, 8, 8), classes=10)
def shifted_digits(folder: Path | None) -> Data:
    """Handwritten digits, 8x8 grey, moved by up to a pixel each way: 1437 to train on, 360 to test."""
    digits = load_digits()  # it comes with scikit-learn; a set with files of its own looks for them in the folder
    dice = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.images), generator=dice)
    images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1)
    targets = torch.tensor(digits.target, dtype=torch.int64)[order]
    shifts = torch.randint(-1, 2, (len(images), 2), generator=dice).tolist()
    images = torch.stack([image.roll(shift, dims=(1, 2)) for image, shift in zip(images, shifts, strict=True)])
    images = (images - images.mean()) / images.std()
    return Data(images[:TRAIN_SIZE], targets[:TRAIN_SIZE], images[TRAIN_SIZE:], targets[TRAIN_SIZE:])
