"""The buckets that DDP will have from its second backward pass on, or its third, before that.

DDP begins with all gradients in one bucket and regroups them by the order in which they got ready. What a method makes
of a gradient may depend on its bucket. A training that is resumed may be past that already. Then its first bucket is
cut into those that later steps will have, and it goes on as if it had never been interrupted, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


class Bucket:
    """What a method sees of DDP's bucket when that cannot be used as it is."""

    def __init__(self, buffer: torch.Tensor, members: list[torch.Tensor], index: int = 0, is_last: bool = True) -> None:
        self._buffer, self._members, self._index, self._is_last = buffer, members, index, is_last

    def buffer(self) -> torch.Tensor:
        """The members' gradients (n,), one after the other."""
        return self._buffer

    def parameters(self) -> list[torch.Tensor]:
        """The members."""
        return self._members

    def gradients(self) -> list[torch.Tensor]:
        """The members' gradients, flat."""
        return list(self._buffer.split([member.numel() for member in self._members]))

    def index(self) -> int:
        """Its place among the buckets of a backward pass."""
        return self._index

    def is_last(self) -> bool:
        """Whether it is the last of them."""
        return self._is_last


class Regrouping:
    """Watches one backward pass for the order in which gradients get ready."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp
        self._ready: dict[torch.Tensor, None] = {}
        weights = [weight for weight in ddp.module.parameters() if weight.requires_grad]
        self._watches = [weight.register_post_accumulate_grad_hook(self._note) for weight in weights]

    def _note(self, weight: torch.Tensor) -> None:
        self._ready[weight] = None

    def end(self) -> None:
        """Watch no more."""
        for watch in self._watches:
            watch.remove()

    def apply(
        self, bucket: dist.GradBucket, synchronise: Callable[[Any], Future[torch.Tensor]]
    ) -> Future[torch.Tensor]:
        """Synchronise a bucket, which holds all gradients, as those that DDP will make of it."""
        whole = bucket.buffer()
        parts = dict(zip(bucket.parameters(), whole.split([m.numel() for m in bucket.parameters()]), strict=True))
        groups = self._groups(bucket.parameters())
        last = len(groups) - 1
        futures = [
            synchronise(Bucket(torch.cat([parts[member] for member in group]), group, index, index == last))
            for index, group in enumerate(groups)
        ]
        return torch.futures.collect_all(futures).then(partial(_put_back, whole, parts, groups))

    def _groups(self, members: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        order = self._order(members)
        places = list(range(len(order)))
        groups, _ = _compute_bucket_assignment_by_size(order, bucket_caps(self._ddp), [False] * len(order), places)
        return [[order[place] for place in group] for group in groups]

    def _order(self, members: list[torch.Tensor]) -> list[torch.Tensor]:
        """By which DDP will group them: that in which rank 0 got them ready, as another rank may take another way."""
        place_of = {member: place for place, member in enumerate(members)}
        ready = [place_of[weight] for weight in self._ready if weight in place_of]
        places = torch.tensor(list(dict.fromkeys([*ready, *place_of.values()])), device=members[0].device)
        group = self._ddp.process_group
        dist.broadcast(places, dist.get_global_rank(group, 0), group=group)
        return [members[place] for place in places.tolist()]


def will_regroup(ddp: DistributedDataParallel, bucket: dist.GradBucket) -> bool:
    """Whether this is DDP's first bucket, with everything in it, which it will cut."""
    is_whole = bucket.index() == 0 and bucket.is_last()
    return is_whole and (ddp.static_graph or not ddp.find_unused_parameters)


def rounds_of_one_bucket(ddp: DistributedDataParallel) -> int:
    """Backward passes until DDP regroups: of a static graph it looks at the second one for the order."""
    return 2 if ddp.static_graph else 1


def bucket_caps(ddp: DistributedDataParallel) -> list[int]:
    """Sizes in bytes of the first bucket, and of all others."""
    if listed := getattr(ddp, "bucket_bytes_cap_list", None):  # of torch 2.11 and later
        return list(listed)
    return [_DEFAULT_FIRST_BUCKET_BYTES if closes_first_early(ddp) else ddp.bucket_bytes_cap, ddp.bucket_bytes_cap]


def closes_first_early(ddp: DistributedDataParallel) -> bool:
    """Whether its first bucket is a small one, as where nobody gave a size."""
    return bool(getattr(ddp, "bucket_bytes_cap_default", False))


def _put_back(
    whole: torch.Tensor,
    parts: dict[torch.Tensor, torch.Tensor],
    groups: list[list[torch.Tensor]],
    done: Future[list[Future[torch.Tensor]]],
) -> torch.Tensor:
    for group, future in zip(groups, done.value(), strict=True):
        for member, mean in zip(group, future.value().split([m.numel() for m in group]), strict=True):
            parts[member].copy_(mean)
    return whole
