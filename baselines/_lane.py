"""A second lane for collectives, beside the backward pass and in the same order on every rank."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._state import MethodState


class Lane:
    """A thread with a process group of its own, for methods that need one collective's result to begin the next.

    On a GPU it works on the bucket's stream: what the hook has done there comes first, and memory needs no care.

    A Future's callback must not begin a collective: callbacks run as results arrive, so ranks would begin them in
    different orders and add up numbers that do not belong together. Here jobs begin one after the other in the order
    in which DDP hands over its buckets, which is the same on every rank, while the backward pass goes on beside them.
    The own group keeps them apart from what the main thread sends meanwhile.

    Making one is collective: every rank of ``process_group`` must do so.
    """

    def __init__(self, process_group: dist.ProcessGroup, device: torch.device) -> None:
        # A group that not all ranks make is named by its ranks. If one of that name is gone, a rank may find in the
        # store the addresses at which its peers listened then, and connects to nobody.
        is_of_all = process_group is dist.group.WORLD
        group = dist.new_group(
            dist.get_process_group_ranks(process_group),
            backend=dist.get_backend(process_group),
            timeout=process_group._get_backend(device).options._timeout,  # the user's, which new_group forgets
            use_local_synchronization=not is_of_all,
        )
        self.process_group = cast(dist.ProcessGroup, group)
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collectives")

    def submit(self, job: Callable[[], Future[torch.Tensor]]) -> Future[torch.Tensor]:
        """What ``job`` will return, or raise. Its last collective may still be under way when it returns."""
        on_gpu = self._device.type == "cuda"
        result: Future[Any] = Future(devices=[self._device] if on_gpu else None)
        stream = torch.cuda.stream(torch.cuda.current_stream(self._device)) if on_gpu else nullcontext()

        def settle(done: Future[torch.Tensor]) -> None:
            try:
                result.set_result(done.value())
            except Exception as error:
                result.set_exception(error)

        def run() -> None:
            try:
                with stream:
                    job().add_done_callback(settle)
            except Exception as error:
                result.set_exception(error)

        self._thread.submit(run)
        # DDP understands an error only when a callback raised it: an exception that was set reads as a result to it.
        return result.then(lambda done: done.value())

    def meet(self) -> None:
        """Go on when all ranks have come. In the lane's thread. On a GPU nobody waits, since the host would."""
        if self._device.type == "cpu":
            dist.barrier(self.process_group)

    def close(self) -> None:
        """End the thread, and the group with it."""
        self._thread.shutdown()
        dist.destroy_process_group(self.process_group)


class LaneState(MethodState):
    """Base of a ``State`` whose collectives depend on each other."""

    at_once = 1

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.lane = Lane(self.process_group, self.device)

    def leave(self) -> None:
        self.lane.close()
        super().leave()


def settled(result: torch.Tensor) -> Future[torch.Tensor]:
    """A Future that has its result already."""
    future: Future[Any] = Future(devices=[result.device] if result.device.type == "cuda" else None)
    future.set_result(result)
    return future
