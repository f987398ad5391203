"""Ranks of a process group on this machine's loopback, for what is timed without a network."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from harness import programs
from harness.errors import MeasurementError, in_one_line
from harness.messages import GLOO
from harness.worker.process import prepare_process

T = TypeVar("T")


def in_processes(job: Callable[..., T], workers: int, *arguments: Any) -> list[T]:
    """What ``job(*arguments)`` returns in each of so many processes at once, which form a process group on loopback.

    Raises:
        MeasurementError: one of them failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, job.__module__, "torch._dynamo"])  # which DDP and optimizers import
    with tempfile.TemporaryDirectory(prefix="pacbench-profile-") as folder:
        meeting = str(Path(folder) / "store")
        # The server of forks is started by `python -c`, which looks for everything in the current folder first. Its
        # forks go back to where this process is.
        # They hear Ctrl-C on a terminal, too: it is for this process to end them then.
        with _working_in(Path(folder)), _without_other_variables(), programs.signals_held_back():
            forkserver.ensure_running()
        try:
            with (
                ProcessPoolExecutor(workers, context, programs.leave_signals_to_parent) as pool,
                programs.ending_children_if_it_fails(),
            ):
                jobs = [pool.submit(_on_rank, rank, workers, meeting, job, arguments) for rank in range(workers)]
                return [each.result() for each in jobs]
        except Exception as error:
            reason = in_one_line(error)
            raise MeasurementError(f"the profile cannot be made: {reason}") from None


def in_new_processes(job: Callable[..., list[T]], workers: int, repeats: int, *arguments: Any) -> list[list[T]]:
    """The same, so many times anew: what each process returned, of all times."""
    return [of_rank for _ in range(repeats) for of_rank in in_processes(job, workers, *arguments)]


@contextmanager
def _without_other_variables() -> Iterator[None]:
    """What the server of forks begins with, its ranks have: no more than workers of a run."""
    before = dict(os.environ)
    programs.forget_other_variables()
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _on_rank(rank: int, workers: int, meeting: str, job: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    prepare_process()  # as workers do
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(GLOO, init_method=f"file://{meeting}", rank=rank, world_size=workers)
    try:
        return job(*arguments)
    finally:
        dist.destroy_process_group()
