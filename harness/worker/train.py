"""A rank: from its place in the cluster to a process group, DDP, a communication hook and a metered training loop.

It runs inside the cluster and knows nothing of clusters, reports or stores. Importing this module imports torch and all
that DDP needs: the agent does so once, before it forks.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch._dynamo  # DDP imports it when it is made, which would cost every worker over a second
import torch.distributed as dist

from harness.messages import BACKEND_VARIABLE, GLOO, HANDED, AllReduced, FirstCollective, Send
from harness.network.addresses import worker_number
from harness.network.link_requests import LinkRequests
from harness.plan.code import check_code
from harness.plan.trial import Trial
from harness.scenario.schema import Train
from harness.worker.meter import Recorder
from harness.worker.process import prepare_process
from harness.worker.saving import wait_for_signal
from harness.worker.timed import Paced, Replay
from harness.worker.training import Training, data_of
from harness.workload import replay

PEER_TIMEOUT = timedelta(seconds=60)
"""How long a collective waits for a peer, and as many times longer as the trial runs slower. The trial's own limit is
kept outside, where a hang cannot reach it."""

REPETITIONS = 3


def preload(settings: Train) -> None:
    """Load a data set, or make what a replay is made of, before the fork, so that all workers share one copy."""
    if settings.replay:
        replay.materials(settings.replay, settings.gradient_density, settings.times_smaller)
    else:
        data_of(settings.dataset, settings.data_dir)


def train(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Train one trial on this rank.

    Args:
        spec: ``trial``, the Trial as JSON; ``interface``, the shaped one; ``meeting_address`` and ``port``, where the
            ranks meet; maybe ``start_file``, to be made when training begins; maybe ``link_requests``, where to ask for
            slower links; maybe ``backend``, where no variable says it; maybe what this rank has saved, to go on from.
    """
    trial = Trial.model_validate(spec["trial"])
    check_code(trial.plugins, trial.case, trial.method)
    rank, world_size = worker_number(node), trial.case.cluster.workers
    settings = trial.case.train
    kind = Replay if settings.replay else Paced if settings.pace else Training
    backend = os.environ.get(BACKEND_VARIABLE) or spec.get("backend", GLOO)
    wait_for_signal()
    patience = max(1.0, trial.slowing.greatest) * PEER_TIMEOUT
    with process_group(rank, world_size, spec, backend, patience, sleeps=settings.profile is not None):
        training = kind(trial, rank, world_size, Recorder(send), send)
        training.interface = spec["interface"]
        training.start_file = Path(spec["start_file"]) if rank == 0 and "start_file" in spec else None
        training.ask_for_links = LinkRequests(Path(spec["link_requests"])) if "link_requests" in spec else None
        if HANDED in spec:
            training.resume(spec[HANDED])
        training.run()


def time_all_reduce(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Time a large all-reduce, repeated; rank 0 sends the median ``seconds``.

    Args:
        spec: ``bytes`` of the tensor, ``workers``, and what ``process_group`` asks for.
    """
    rank = worker_number(node)
    with process_group(rank, spec["workers"], spec):
        tensor = torch.ones(spec["bytes"] // 4)
        dist.all_reduce(tensor[: tensor.numel() // 10])  # connections, and TCP's first look at the path
        send(FirstCollective())
        seconds = []
        for _ in range(REPETITIONS):
            dist.barrier()
            start = perf_counter()
            dist.all_reduce(tensor)
            seconds.append(perf_counter() - start)
        if rank == 0:
            send(AllReduced(seconds=statistics.median(seconds)))


@contextmanager
def process_group(
    rank: int,
    world_size: int,
    place: Mapping[str, Any],
    backend: str = GLOO,
    patience: timedelta = PEER_TIMEOUT,
    sleeps: bool = False,
) -> Iterator[None]:
    """The default group of all workers, on the shaped interface and nowhere else.

    Args:
        place: ``interface``, and ``meeting_address`` and ``port``, where the ranks meet.
        sleeps: see ``prepare_process``.
    """
    prepare_process(sleeps)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = place["interface"]
    os.environ["NCCL_IB_DISABLE"] = "1"  # what goes over Infiniband passes the interface by whose bytes are counted
    meeting = f"tcp://{place['meeting_address']}:{place['port']}"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world_size, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()
