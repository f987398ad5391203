"""Pruning: which weights matter most, how many to keep when, and that all ranks prune the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist


def cubic_density(density: float, event: int, events: int) -> float:
    """The density after that many of the pruning events: it falls from 1 to ``density``, fast first, slow at the end.

    Zhu and Gupta, To prune, or not to prune (arXiv 1710.01878).
    """
    return density + (1 - density) * (1 - event / events) ** 3


def most_important(importance: Sequence[torch.Tensor], density: float) -> list[torch.Tensor]:
    """Masks (bool, shaped like the tensors) of that share of all entries together whose value is greatest.

    Of equal ones the first are kept. A NaN is kept, lest it hide.
    """
    together = torch.cat([part.flatten() for part in importance])
    wanted = max(1, round(density * together.numel()))
    least = kth_largest_(together, wanted)
    masks = [part.le(least).logical_not_().contiguous() for part in importance]
    missing = wanted - sum(int(mask.count_nonzero()) for mask in masks)
    for part, mask in zip(importance, masks, strict=True):
        if missing > 0:
            equal = part.flatten().eq(least).nonzero().view(-1)[:missing]
            mask.view(-1).index_fill_(0, equal, True)
            missing -= equal.numel()
    return masks


def kth_largest_(values: torch.Tensor, k: int) -> float:
    """The value of (n,) that k - 1 others are not below; on a CPU the values are out of order afterwards.

    torch's own selections on a CPU pair each value with its place, which takes twice as long and six times the memory.
    """
    place = values.numel() - k
    if values.device.type != "cpu":
        return float(values.kthvalue(place + 1).values)
    array = values.to(torch.promote_types(values.dtype, torch.float32)).numpy()
    array.partition(place)
    return float(array[place])


def hessian_gradient(
    loss: torch.Tensor, weights: Sequence[torch.Tensor], process_group: dist.ProcessGroup | None = None
) -> list[torch.Tensor]:
    """H g for GraSP: this rank's Hessian of ``loss``, a scalar, times the mean gradient of all ranks; collective.

    The mean of what the ranks return is H g of the mean of their losses. The loss must come from the model itself, not
    from its DDP wrapper, whose hooks would synchronise it.
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    means = mean_over_ranks([gradient.detach() for gradient in gradients], process_group)
    curved = [(own, mean) for own, mean in zip(gradients, means, strict=True) if own.requires_grad]
    if not curved:  # a gradient that does not depend on the weights
        return [torch.zeros_like(weight) for weight in weights]
    own, mean = zip(*curved, strict=True)
    return list(torch.autograd.grad(own, weights, grad_outputs=mean, materialize_grads=True))


def mean_over_ranks(
    tensors: Sequence[torch.Tensor], process_group: dist.ProcessGroup | None = None
) -> list[torch.Tensor]:
    """The mean of each tensor over all ranks, in one collective."""
    together = torch.cat([tensor.flatten() for tensor in tensors]).div_(dist.get_world_size(process_group))
    dist.all_reduce(together, group=process_group)
    return shaped_like(tensors, together)


def shaped_like(models: Sequence[torch.Tensor], together: torch.Tensor) -> list[torch.Tensor]:
    """Parts of ``together`` (n,) in the shapes of the models, which have n entries in all."""
    parts = together.split([model.numel() for model in models])
    return [part.view(model.shape) for part, model in zip(parts, models, strict=True)]


def prove_equal(masks: Sequence[torch.Tensor], process_group: dist.ProcessGroup) -> None:
    """Compare the masks of all ranks, by a hash; collective.

    Raises:
        RuntimeError: they differ. Were they used, ranks would add up gradients of different weights.
    """
    digest = hashlib.blake2b(digest_size=7)
    for mask in masks:
        digest.update(mask.cpu().numpy().data)
    own = int.from_bytes(digest.digest(), "big")
    extremes = torch.tensor([own, -own], device=masks[0].device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=process_group)
    greatest, least = extremes[0], -extremes[1]
    if greatest != least:
        raise RuntimeError("the ranks' pruning masks differ, because their weights do: they must start from the same")
