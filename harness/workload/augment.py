"""Augmentation of images that repeats bit for bit: chance is drawn by numbers that a rank and a step have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4
"""Zeros on every side, as for CIFAR in He et al., CVPR 2016, section 4.2. Zero is the mean of standardised images."""


def crop_and_flip(images: Tensor, entropy: Sequence[int]) -> Tensor:
    """Each image cut at random, in its own size, from itself with ``PADDING``; half of them mirrored.

    Args:
        images: (N, C, H, W).
        entropy: the same numbers draw the same chance, on any device.
    """
    count, _, height, width = images.shape
    dice = np.random.default_rng(list(entropy))
    down, right = (torch.from_numpy(dice.integers(0, 2 * PADDING + 1, (count, 1))) for _ in range(2))
    mirrored = torch.from_numpy(dice.integers(0, 2, (count, 1)).astype(bool))
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = pad(images, (PADDING,) * 4).permute(0, 2, 3, 1)
    each, row, column = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]
    return padded[tuple(index.to(images.device) for index in (each, row, column))].permute(0, 3, 1, 2).contiguous()
