"""How fast this machine's processor computes a model: tried, in a fraction of a second, for estimates alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from harness.workload.models import MODELS, cross_entropy

FEWEST, MOST, ENOUGH_S = 4, 30, 0.3
"""How many passes are timed, of which the best counts: until they have taken so long together, since on a busy machine
most are slow. The first one, which takes memory, is not among them."""

MOST_FLOPS = 4e9
"""Operations of a pass, at most: some tenths of a second. Of larger batches fewer samples are computed."""


@cache
def flops_per_sample(model: str) -> int:
    """Floating point operations of a forward and backward pass on one sample."""
    return MODELS[model].flops_per_sample()


@cache
def passes_s(model: str, batch_size: int) -> float | None:
    """Processor time of a forward and backward pass of a batch on one thread, in seconds.

    None: a single sample of the model takes too long to try it.
    """
    samples = min(batch_size, int(MOST_FLOPS / flops_per_sample(model)))
    if not samples:
        return None
    with _one_thread(), torch.random.fork_rng(devices=[]):
        network, example = MODELS[model].build(), MODELS[model].example(samples)
        # Not zeros: a processor foresees where those branch.
        inputs = torch.randn_like(example) if example.is_floating_point() else example.random_(MODELS[model].classes)
        with torch.no_grad():
            targets = network(inputs).argmax(-1)

        def pass_s() -> float:
            network.zero_grad()
            began_s = time.process_time()
            cross_entropy(network(inputs), targets).backward()
            return time.process_time() - began_s

        pass_s()
        taken_s = [pass_s() for _ in range(FEWEST)]
        while sum(taken_s) < ENOUGH_S and len(taken_s) < MOST:
            taken_s.append(pass_s())
    return min(taken_s) * batch_size / samples


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
