"""Memory that crosses from one of a GPU's streams to another."""

from __future__ import annotations

import torch


def used_here(*tensors: torch.Tensor) -> None:
    """Have tensors that another stream made outlive what this stream was asked to do with them, though they be freed.

    torch runs what ``Future.then`` is given on streams of its own. To those it makes known what the Future holds, but
    not what the function brings along, and the allocator would give that memory back to the stream that made it while
    this one is still reading (see ``torch.Tensor.record_stream``).
    """
    for tensor in tensors:
        if tensor.device.type == "cuda":
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
