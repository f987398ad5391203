"""A training script for a model that has none: plain torch under DDP, such as a user would write.

    torchrun --nproc-per-node=2 harness/start.py harness.worker.script --model tiny_net.py:tiny_net --dataset digits

Nothing in it knows of methods or measurements. It goes on until somebody ends it, as ``pacbench pilot`` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NoReturn, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.errors import UsageError
from harness.scenario.optimisation import Optimizer
from harness.scenario.schema import Train
from harness.scenario.section import checked_section
from harness.workload import optimizers
from harness.workload.data import DATASETS
from harness.workload.models import MODELS, cross_entropy


def main() -> None:
    """Train without an end."""
    options = parsed()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    data = DATASETS[options.dataset].load(None)
    model = DistributedDataParallel(MODELS[options.model].build())
    kind = Optimizer.model_validate({"name": options.optimizer})
    settings = optimizers.settings_of(kind, options.lr, options.momentum, options.weight_decay)
    optimizer = optimizers.build(kind, model.parameters(), settings)
    for batch in batches(len(data.train_inputs), options.batch_size, dist.get_rank(), dist.get_world_size()):
        optimizer.zero_grad()
        cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch]).backward()
        optimizer.step()


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options.

    Args:
        words: of a command line; None: this process's.

    Raises:
        UsageError: there is no such option, or a value is none that it takes; or the model does not take the data.
    """
    parser = _Parser(prog="pacbench pilot --model MODEL --dataset DATASET --")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--batch-size", type=int, default=32, help="of a rank")
    parser.add_argument("--optimizer", choices=get_args(Optimizer.model_fields["name"].annotation), default="sgd")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, help="0.9, and none with adamw")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    options = parser.parse_args(words)
    if options.momentum is None:
        options.momentum = 0.0 if options.optimizer == "adamw" else 0.9
    settings = {name: getattr(options, name) for name in ("optimizer", "lr", "momentum", "weight_decay")}
    checked_section(Train, settings, "command line")
    model, data = MODELS[options.model], DATASETS[options.dataset].in_folder(None)
    if not model.fits(data):
        takes = f"one of {model.input_shape} with at most {model.classes} classes, which the model takes"
        raise UsageError.at("command line", "--dataset", f"{data.input_shape}, {data.classes} classes", takes)
    if not 1 <= options.batch_size <= data.train_size:
        raise UsageError.at("command line", "--batch-size", options.batch_size, f"1 to {data.train_size}")
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"command line: {message}")


def batches(size: int, batch_size: int, rank: int, ranks: int) -> Iterator[Tensor]:
    """Indices (batch_size,) int64 of a rank's samples, step by step without an end.

    All ranks shuffle alike, by torch's seed, and each takes its part.
    """
    dice = torch.Generator().manual_seed(torch.initial_seed())
    left = torch.empty(0, dtype=torch.int64)
    together = batch_size * ranks
    while True:
        while len(left) < together:
            left = torch.cat([left, torch.randperm(size, generator=dice)])
        yield left[rank:together:ranks]
        left = left[together:]
