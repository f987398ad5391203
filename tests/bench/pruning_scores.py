"""Which weights to keep, and when to choose them: PacTrain's pruning by magnitude and by two scores of GraSP.

    nox -s pruning_scores -- --out results/reference/pruning_scores.csv     # a quarter of an hour

One process, Fashion-MNIST. Each training is pruned once, by the method's own code, and goes on to its end. GraSP's
score is taken on the batch of the moment, or as its authors' code takes it (Wang et al., ICLR 2020, arXiv 2002.07376):
on as many samples of each class, and with the classes' scores divided by a temperature. A row for each training.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import baselines
from baselines.pactrain import State
from harness.workload.data import DATASETS, Data
from harness.workload.models import MODELS

STEPS, BATCH_SIZE, LR = 160, 64, 0.05
DENSITY = 0.2
AUTHORS_SAMPLES, AUTHORS_TEMPERATURE = 100, 200.0


@dataclass(frozen=True)
class Choice:
    """How the weights to keep are chosen."""

    prune: str
    """As the method's parameter; ``none`` keeps all."""
    after_steps: int = 0
    samples_per_class: int = 0
    """On which the score is taken; 0 takes the batch of the moment."""
    temperature: float = 1.0
    scope: str = "global"

    @property
    def state(self) -> State:
        """The method that does it."""
        if self.prune == "none":
            return State(density=1.0, warmup_steps=0)
        return State(density=DENSITY, warmup_steps=self.after_steps, prune=self.prune, scope=self.scope)


def choices() -> list[Choice]:
    """All that are compared."""
    as_authors = {"samples_per_class": AUTHORS_SAMPLES, "temperature": AUTHORS_TEMPERATURE}
    found = [Choice("none")]
    for after_steps in (0, STEPS // 10, STEPS // 2):
        found += [
            Choice("magnitude", after_steps),
            Choice("grasp", after_steps),
            Choice("grasp", after_steps, **as_authors),
            Choice("grasp", after_steps, scope="layer"),
            Choice("grasp-magnitude", after_steps),
            Choice("grasp-magnitude", after_steps, **as_authors),
        ]
    return found


def train(name: str, choice: Choice, seed: int, data: Data) -> dict[str, float]:
    """One training: its accuracy on the test set, and the density of the layer that is left with least."""
    torch.manual_seed(seed)
    model = MODELS[name].build()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    dice = torch.Generator().manual_seed(seed)
    batches = [torch.randint(len(data.train_inputs), (BATCH_SIZE,), generator=dice) for _ in range(STEPS + 1)]
    some_of_each = _some_of_each_class(data.train_targets, choice.samples_per_class, dice)
    state = choice.state

    def score_loss() -> Tensor:
        chosen = some_of_each if choice.samples_per_class else batches[state.step]
        return cross_entropy(model(data.train_inputs[chosen]) / choice.temperature, data.train_targets[chosen])

    with baselines.register(ddp, state, optimizer=optimizer, loss=score_loss):
        for batch in batches[:-1]:
            cross_entropy(ddp(data.train_inputs[batch]), data.train_targets[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    least = min(float((weight != 0).double().mean()) for weight in model.parameters() if weight.ndim >= 2)
    return {"accuracy": _accuracy(model, data), "least_layer_density": least}


def _some_of_each_class(targets: Tensor, count: int, dice: torch.Generator) -> Tensor:
    """Places of so many samples of each class, drawn at random."""
    shuffled = torch.randperm(len(targets), generator=dice)
    return torch.cat([shuffled[targets[shuffled] == each][:count] for each in targets.unique()])


@torch.no_grad()
def _accuracy(model: nn.Module, data: Data) -> float:
    model.eval()
    parts = zip(data.test_inputs.split(500), data.test_targets.split(500), strict=True)
    right = sum(int((model(inputs).argmax(1) == targets).sum()) for inputs, targets in parts)
    return right / len(data.test_targets)


def main() -> None:
    """Train all, write the rows, and print the mean of each choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the rows, as CSV")
    parser.add_argument("--models", default="fashion-cnn,fashion-resnet", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    data = DATASETS["fashion-mnist"].load(None)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trainings = list(itertools.product(asked.models.split(","), choices(), range(asked.seeds)))
        rows = [
            {"model": model, **asdict(choice), "seed": seed, **train(model, choice, seed, data)}
            for model, choice, seed in tqdm(trainings)
        ]
        dist.destroy_process_group()
    trained = pd.DataFrame(rows)
    trained.to_csv(asked.out, index=False)
    compared = ["model", *asdict(Choice("none"))]
    print(trained.groupby(compared, sort=False)["accuracy"].agg(["mean", "min", "max"]).to_string())


if __name__ == "__main__":
    main()
