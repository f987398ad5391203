"""Codec work piece by piece, so that what is written is still in the core's cache when it is read again."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ENTRIES = 1 << 17
"""In one piece: half a megabyte of fp32. A multiple of 128, as bits, words and QSGD's buckets want."""


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of the tensors, which have one length, cut alike along it; on a GPU, which has no need of it, whole.

    Scratch memory of a piece's size is recycled by the allocator, while that of a whole gradient is mapped afresh, page
    by page, which costs more than most codecs' arithmetic.
    """
    if tensors[0].is_cuda:
        yield tensors
    else:
        yield from zip(*(tensor.split(ENTRIES) for tensor in tensors), strict=True)


def by_rows(*matrices: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same of matrices that have as many rows, cut between them."""
    if matrices[0].is_cuda:
        yield matrices
    else:
        rows = max(1, ENTRIES // max(matrix.shape[1] for matrix in matrices))
        yield from zip(*(matrix.split(rows) for matrix in matrices), strict=True)


def scratch(tensor: torch.Tensor) -> torch.Tensor:
    """Room for any one of a tensor's pieces, for work that would otherwise be mapped anew for each."""
    return torch.empty_like(tensor if tensor.is_cuda else tensor[:ENTRIES])
