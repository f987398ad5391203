"""What a model calls its weights."""

from __future__ import annotations

import torch
from torch import nn


def plain_name(name: str) -> str:
    """A parameter's name without what ``torch.compile`` adds to it."""
    return name.replace("_orig_mod.", "")


def sparse_embeddings(model: nn.Module) -> dict[torch.Tensor, str]:
    """The weights whose gradients are sparse tensors, which DDP keeps apart, with their names."""
    return {
        module.weight: f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
    }


def refuse_sparse_embeddings(model: nn.Module, complaint: str) -> None:
    """Refuse a model that has some.

    Args:
        complaint: what the method cannot do, up to ``a sparse embedding``.

    Raises:
        ValueError: it has.
    """
    if sparse := sparse_embeddings(model):
        name = plain_name(next(iter(sparse.values())))
        raise ValueError(f"{complaint} a sparse embedding ({name}): make it with sparse=False")
