"""Numbers as codes of equal bins, of which each is read as the mean of what fell into it.

The uniform quantisation of hivemind, which INTELLECT-1 (arXiv 2412.01152) and SparseLoCo (arXiv
2508.15706) took over. All bins together are six standard deviations wide; what lies beyond belongs to the outermost.
Rounding is to the nearest, but because bins are read as means, the sum of all numbers is kept.
"""

from __future__ import annotations

import math

import torch

from baselines._pieces import pieces

SIGMAS = 6
"""Deviations that all bins together are wide, as in the code of both."""

LANES = 1024
"""Sums of each bin that a GPU has: its threads would wait for each other at one."""


def binned(values: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The bins (n,), uint8, of ``values`` (n,), and what each bin means (bins,), of their dtype; 0 if it is empty.

    What is not finite makes a bin, or all of them, mean something that is not finite.
    """
    centre = values.mean() if values.numel() else values.new_zeros(())
    sigma = torch.linalg.vector_norm(values - centre) / math.sqrt(max(values.numel() - 1, 1))
    width = (sigma * (SIGMAS / bins)).clamp_(min=torch.finfo(values.dtype).tiny)
    codes = torch.empty_like(values, dtype=torch.uint8)
    lanes = LANES if values.is_cuda else 1
    sums, counts = values.new_zeros(lanes * bins), values.new_zeros(lanes * bins)
    for some, some_codes in pieces(values, codes):
        places = some.sub(centre).div_(width).add_(bins // 2).nan_to_num_(nan=0).round_().clamp_(0, bins - 1)
        some_codes.copy_(places)
        places = places.int()
        if values.is_cuda:
            places.add_(torch.arange(len(some), device=some.device, dtype=torch.int32).remainder_(lanes).mul_(bins))
        sums.index_add_(0, places, some)
        counts.index_add_(0, places, torch.ones_like(some))
    sums, counts = (each.view(lanes, bins).sum(0) for each in (sums, counts))
    return codes, sums.div_(counts.clamp_(min=1))


def add_binned(values: torch.Tensor, codes: torch.Tensor, means: torch.Tensor) -> None:
    """Add to ``values`` (n,) what their codes (n,), uint8, mean."""
    for some, some_codes in pieces(values, codes):
        some.add_(means.index_select(0, some_codes.int()))
