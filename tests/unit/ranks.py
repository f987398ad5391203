"""Real ranks for tests: processes on this machine that share a Gloo group, and what tests let them do.

``Ranks`` starts them once and runs many checks on them. A check is a function of a test module: it is sent by name.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import SERVER
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import baselines
from harness.worker.process import use_batch_scheduling

COLLECTIVE_TIMEOUT = timedelta(seconds=20)
CHECK_TIMEOUT_S = 240

CHECKS_OF_A_GROUP = 30
"""Then its processes are replaced: each process group that a check made keeps a polling thread for every peer."""


class Ranks:
    """So many processes of one process group."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._checks = 0

    def run(self, check: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``check(*arguments)`` returns on each rank.

        Raises:
            AssertionError: it raised on some rank, with that rank's traceback, or took too long.
        """
        if self._checks % CHECKS_OF_A_GROUP == 0:
            self.close()
        if not self._processes:
            self._start()
        self._checks += 1
        try:
            for pipe in self._pipes:
                pipe.send_bytes(pickle.dumps((check, arguments)))
            answers = [self._answer(pipe) for pipe in self._pipes]
        except (AssertionError, OSError, EOFError):
            self.close()  # the group may be broken; the next check gets a new one
            raise
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure]
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return [result for result, _ in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        if self._folder:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pacbench-ranks-")
        store = Path(self._folder.name) / "store"
        for rank in range(self.world_size):
            ours, theirs = SERVER.Pipe()
            process = SERVER.Process(target=_serve, args=(rank, self.world_size, str(store), theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    @staticmethod
    def _answer(pipe: Connection) -> tuple[Any, str | None]:
        if not pipe.poll(CHECK_TIMEOUT_S):
            raise AssertionError(f"a rank gave no answer within {CHECK_TIMEOUT_S} s")
        return pickle.loads(pipe.recv_bytes())


def _serve(rank: int, world_size: int, store: str, pipe: Connection) -> None:
    use_batch_scheduling()  # as workers do: with more ranks than processors Gloo's threads take most of them otherwise
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )
    while True:
        try:
            check, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:  # the test process is gone
            return
        try:
            answer = check(*arguments), None
        except BaseException:
            answer = None, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))


class Given(nn.Module):
    """A model whose gradients are the tensors that it is given."""

    def __init__(self, *shapes: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(tuple(shape), generator=generator, dtype=dtype)) for shape in shapes
        )

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        return sum((weight * gradient).sum() for weight, gradient in zip(self.weights, gradients, strict=True))


SHAPES = ((7, 11), (5,), (3, 4, 2, 2), (13,), (20, 9), (6, 6))
SMALL_BUCKETS_MB = 4 * 50 / 2**20  # several buckets for SHAPES


def gradients(step: int, rank: int, shapes: Sequence[Sequence[int]] = SHAPES, **options: Any) -> list[Tensor]:
    """Normal numbers that differ by step and rank, and are the same wherever they are drawn."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(tuple(shape), generator=generator, **options) for shape in shapes]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Training:
    """A model under DDP, synchronised by a method or by a plain hook, that keeps how DDP grouped its gradients."""

    def __init__(
        self,
        method: baselines.MethodState | Callable[..., Any],
        *,
        shapes: Sequence[Sequence[int]] = SHAPES,
        dtype: torch.dtype = torch.float32,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        settings: dict[str, Any] | None = None,
        bucket_cap_mb: float = SMALL_BUCKETS_MB,
        model: Given | None = None,
        groups: Callable[[list[nn.Parameter]], list[dict[str, Any]]] | None = None,
        **ddp_options: Any,
    ) -> None:
        self.model = model or Given(*shapes, dtype=dtype)
        self.ddp = DistributedDataParallel(self.model, bucket_cap_mb=bucket_cap_mb, **ddp_options)
        self.weights = list(self.model.parameters())
        self.optimizer = optimizer(groups(self.weights) if groups else self.weights, **(settings or {"lr": 0.1}))
        self.layouts: list[list[tuple[int, ...]]] = []
        register = self.ddp.register_comm_hook
        self.ddp.register_comm_hook = lambda state, hook: register(state, self._watched(hook))
        if isinstance(method, baselines.MethodState):
            self.handle = baselines.register(self.ddp, method, optimizer=self.optimizer)
        else:
            self.ddp.register_comm_hook(None, method)

    def _watched(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        places = {id(weight): place for place, weight in enumerate(self.weights)}

        def watched(state, bucket):  # type: ignore[no-untyped-def]
            self.layouts[-1].append(tuple(places[id(weight)] for weight in bucket.parameters()))
            return hook(state, bucket)

        return watched

    def begin_step(self, to_none: bool = True) -> None:
        """Forget the gradients of the last step; what follows is watched as a step of its own."""
        self.layouts.append([])
        self.optimizer.zero_grad(set_to_none=to_none)

    def step(self, gradients: Sequence[Tensor]) -> Tensor:
        """What DDP made of these gradients of this rank, flat in the order of registration."""
        self.begin_step()
        self.ddp(gradients).backward()
        result = flat([weight.grad for weight in self.weights if weight.grad is not None]).clone()
        self.optimizer.step()
        return result


def assert_regrouped(layouts: list[list[tuple[int, ...]]]) -> None:
    """DDP puts all parameters into one bucket at first, and into several, in another order, after the first step."""
    (everything,), several = layouts[0], layouts[1]
    assert len(several) > 2
    assert sorted(sum(several, ())) == sorted(everything)
    assert sum(several, ()) != everything
