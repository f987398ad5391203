"""The buckets that DDP will have from its second backward pass on, or its third, before that.

DDP begins with all gradients of a dtype in one bucket and regroups them by the order in which they got ready. What a
method makes of a gradient may depend on its bucket, and dice on the order of buckets. A training that is resumed may be
past that already. Then its first buckets are held back until all are there, and cut into those that later steps will
have. So it goes on as if it had never been interrupted, to the last bit.
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
    """Watches one backward pass for the order in which gradients get ready, and synchronises its buckets regrouped."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp
        self._ready: dict[torch.Tensor, None] = {}
        weights = [weight for weight in ddp.module.parameters() if weight.requires_grad]
        self._watches = [weight.register_post_accumulate_grad_hook(self._note) for weight in weights]
        self._sparse: list[torch.Tensor] = []
        """Weights whose gradients are sparse: each has a bucket to itself, before and after."""
        self._held: list[dist.GradBucket] = []
        device = weights[0].device
        self._done: Future[Any] = Future(devices=[device] if device.type == "cuda" else None)

    def _note(self, weight: torch.Tensor) -> None:
        self._ready[weight] = None

    def synchronise(
        self, bucket: dist.GradBucket, at_once: Callable[[Any], Future[torch.Tensor]]
    ) -> Future[torch.Tensor]:
        """What becomes of a bucket of DDP. All that are not sparse are held back until the last one has come.

        Args:
            at_once: synchronises a bucket as it is.
        """
        if bucket.buffer().is_sparse:
            self._sparse += bucket.parameters()
            done = at_once(bucket)
        else:
            self._held.append(bucket)
            done = self._done.then(partial(_given, bucket.buffer()))
        if bucket.is_last():
            self._end(at_once)
        return done

    def _end(self, at_once: Callable[[Any], Future[torch.Tensor]]) -> None:
        for watch in self._watches:
            watch.remove()
        parts = {member: part for bucket in self._held for member, part in zip(*_split(bucket), strict=True)}
        buckets = self._regrouped(parts) if self._are_first_ones() else self._held
        synchronised = torch.futures.collect_all([at_once(bucket) for bucket in buckets])
        synchronised.add_done_callback(partial(_put_back, self._done, parts, buckets))

    def _are_first_ones(self) -> bool:
        """Whether DDP has not cut its buckets yet: each holds everything of its dtype."""
        dtypes = [bucket.buffer().dtype for bucket in self._held]
        return len({*dtypes}) == len(dtypes)

    def _regrouped(self, parts: dict[torch.Tensor, torch.Tensor]) -> list[Bucket]:
        groups = [group for group in self._groups([*parts, *self._sparse]) if group[0] in parts]
        last = len(groups) - 1
        return [
            Bucket(torch.cat([parts[member] for member in group]), group, index, index == last)
            for index, group in enumerate(groups)
        ]

    def _groups(self, members: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        order = self._order(members)
        sparse = {*self._sparse}
        is_sparse, places = [weight in sparse for weight in order], list(range(len(order)))
        groups, _ = _compute_bucket_assignment_by_size(order, bucket_caps(self._ddp), is_sparse, places)
        return [[order[place] for place in group] for group in groups]

    def _order(self, members: list[torch.Tensor]) -> list[torch.Tensor]:
        """By which DDP will group them: that in which rank 0 got them ready, as another rank may take another way."""
        place_of = {member: place for place, member in enumerate(members)}
        ready = [place_of[weight] for weight in self._ready if weight in place_of]
        places = torch.tensor(list(dict.fromkeys([*ready, *place_of.values()])), device=members[0].device)
        group = self._ddp.process_group
        dist.broadcast(places, dist.get_global_rank(group, 0), group=group)
        return [members[place] for place in places.tolist()]


def will_regroup(ddp: DistributedDataParallel) -> bool:
    """Whether DDP cuts its first buckets, all of which it then hands over."""
    leaves_out = getattr(ddp, "skip_all_reduce_unused_params", False)
    return bool(ddp.static_graph or not ddp.find_unused_parameters) and not leaves_out


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


def _split(bucket: Any) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    members = bucket.parameters()
    return members, bucket.buffer().split([member.numel() for member in members])


def _given(buffer: torch.Tensor, done: Future[Any]) -> torch.Tensor:
    done.value()
    return buffer


def _put_back(
    done: Future[Any],
    parts: dict[torch.Tensor, torch.Tensor],
    buckets: list[Any],
    synchronised: Future[list[Future[torch.Tensor]]],
) -> None:
    try:
        for bucket, future in zip(buckets, synchronised.value(), strict=True):
            members = bucket.parameters()
            for member, mean in zip(members, future.wait().split([m.numel() for m in members]), strict=True):
                parts[member].copy_(mean)
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result([*parts.values()])  # on a GPU those who come after wait for what is in a result
