"""Optimizers, schedules, accumulation and autocast: what a scenario may say, and what workers then compute."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks

from harness.errors import UsageError
from harness.messages import Message, Trained
from harness.plan import plan
from harness.plan.trial import Trial
from harness.scenario.load import load
from harness.scenario.optimisation import Schedule
from harness.scenario.schema import Train
from harness.worker import meter
from harness.worker.meter import Recorder, Transport, WireBytes
from harness.worker.training import Training

pytestmark = pytest.mark.methods

SMALL = (
    "rounds=1",
    "link.rate=unshaped",
    "cluster.workers=2",
    "train.pace=none",
    "train.steps=4",
    "train.batch_size=8",
)


@pytest.fixture(scope="module")
def ranks() -> Any:
    with contextlib.closing(Ranks(2)) as made:
        yield made


def trials(*settings: str, methods: tuple[str, ...] = ("dense",)) -> dict[str, Trial]:
    made = plan.make(load("quickstart", [*SMALL, *settings], methods), "fake")
    return {trial.method.name: trial for trial in made.trials}


def trained(trial_as_json: str) -> tuple[str, list[float], list[float]]:
    """On a rank of a test: the trained parameters' hash, the losses of the steps, and the rates that they had."""
    meter.wire_bytes = lambda _: WireBytes(0, 0)  # there is no shaped interface here
    meter.transport = lambda: Transport(0, None, None)
    trial, heard = Trial.model_validate_json(trial_as_json), list[Message]()
    rank = torch.distributed.get_rank()
    training = Training(trial, rank, 2, Recorder(heard.append), heard.append)
    rates: list[float] = []
    training.optimizer.register_step_post_hook(lambda made, *_: rates.append(made.param_groups[0]["lr"]))
    training.run()
    losses = [row[3] for message in heard for row in getattr(message, "rows", []) if row[2] == "loss"]
    (result,) = (message for message in heard if isinstance(message, Trained))
    assert result.parameters_identical
    return result.parameter_hash, losses, rates


def run(ranks: Ranks, *settings: str, method: str = "dense") -> tuple[str, list[float], list[float]]:
    trial = trials("train.batch_size=8", *settings, methods=(method,))[method]
    return ranks.run(trained, trial.model_dump_json(by_alias=True))[0]


def test_what_is_not_said_of_adamw_is_as_torch_has_it() -> None:
    theirs = torch.optim.AdamW([torch.zeros(1)]).defaults
    ours = Train.model_validate({"optimizer": "adamw"})
    assert (ours.lr, ours.weight_decay) == (theirs["lr"], theirs["weight_decay"])
    assert (ours.optimizer.betas, ours.optimizer.eps) == (theirs["betas"], theirs["eps"])
    assert Train.model_validate_json(ours.model_dump_json(by_alias=True)) == ours


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.optimizer=lion"], r"train\.optimizer\.name: found 'lion'; allowed: 'sgd', 'nesterov' or 'adamw'"),
        (["train.optimizer=adamw", "train.momentum=0.9"], r"train\.momentum: found 0\.9; allowed: 0 with adamw"),
        (["train.optimizer=nesterov", "train.momentum=0.0"], r"momentum: found 0; allowed: above 0 with nesterov"),
        (
            ["train.optimizer={name='sgd', eps=1e-6}"],
            r"betas, eps: found with 'sgd'; allowed: with 'adamw'",
        ),
        (["train.schedule=linear"], r"train\.schedule\.kind: found 'linear'"),
        (["train.schedule={warmup_steps=4}"], r"schedule\.warmup_steps: found 4; allowed: fewer than train\.steps, 4"),
        (["train.autocast=fp8"], r"train\.autocast: found 'fp8'; allowed: 'bf16'"),
        (["train.accumulate=100"], r"found '8 x 2 workers x 100 accumulated'; allowed: at most 1437 samples"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        trials(*settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "optimizer", "said"),
    [("dgc", "adamw", "dgc corrects"), ("demo", "adamw", "demo replaces"), ("demo", "nesterov", "demo replaces")],
)
def test_a_method_refuses_an_optimizer_whose_momentum_it_cannot_have(
    tmp_path: Path, method: str, optimizer: str, said: str
) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        f'[train]\noptimizer = "{optimizer}"\n[[methods]]\nname = "dense"\n[[methods]]\nname = "{method}"\n'
    )
    with pytest.raises(UsageError, match=rf"train\.optimizer: found '{optimizer} with {method}'; allowed: .*{said}"):
        plan.make(load(str(file)), "fake")


def test_a_profile_is_of_its_optimizer_and_precision() -> None:
    for setting, said in (("optimizer=nesterov", "found 'nesterov'"), ("autocast=bf16", "found 'bf16'; allowed: none")):
        with pytest.raises(UsageError, match=said):
            plan.make(load("convergence", [f"train.{setting}"], ["dense"]), "fake")


def test_schedules_are_those_of_torch() -> None:
    weight = torch.zeros(1, requires_grad=True)
    schedulers = torch.optim.lr_scheduler
    for ours, theirs in (
        ({"kind": "cosine"}, lambda sgd: schedulers.CosineAnnealingLR(sgd, 20)),
        ({"kind": "step", "decay_every": 6, "decay": 0.5}, lambda sgd: schedulers.StepLR(sgd, 6, 0.5)),
        ({"warmup_steps": 5}, lambda sgd: schedulers.LinearLR(sgd, 0.2, 1.0, 4)),
    ):
        sgd, schedule = torch.optim.SGD([weight], lr=1.0), Schedule.model_validate(ours)
        expected = theirs(sgd)
        for step in range(20):
            assert schedule.factor(step, 20) == pytest.approx(expected.get_last_lr()[0])
            sgd.step()
            expected.step()


def test_steps_have_the_rates_of_the_schedule(ranks: Ranks) -> None:
    _, _, rates = run(ranks, "train.schedule={kind='cosine', warmup_steps=2}", "train.lr=0.1")
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05])


@pytest.mark.parametrize("method", ["dense", "topk", "pactrain", "local_sgd"])
@pytest.mark.parametrize("setting", ["optimizer={name='adamw'}", "optimizer=nesterov", "autocast=bf16"])
def test_methods_train_alike_twice_and_otherwise_than_by_sgd(ranks: Ranks, method: str, setting: str, tmp_path: Path):
    file = tmp_path / "s.toml"
    own = {"pactrain": "warmup_steps = 1\n", "local_sgd": "period = 2\n"}.get(method, "")
    file.write_text(
        "rounds = 1\n[cluster]\nworkers = 2\n[link]\nrate = 'unshaped'\n[train]\nsteps = 4\nbatch_size = 8\n"
        f"[[methods]]\nname = 'dense'\n[[methods]]\nname = '{method}'\nlabel = 'own'\n{own}"
    )

    def outcome(*settings: str) -> tuple[str, list[float], list[float]]:
        made = plan.make(load(str(file), settings), "fake")
        (trial,) = (trial for trial in made.trials if trial.method.label == "own")
        return ranks.run(trained, trial.model_dump_json(by_alias=True))[0]

    once, again, plain = outcome(f"train.{setting}"), outcome(f"train.{setting}"), outcome()
    assert once == again
    assert once[0] != plain[0]


def test_accumulated_batches_are_one_large_batch(ranks: Ranks) -> None:
    """The same samples in one pass, or in two: the same losses, but for the order of sums."""
    _, whole, _ = run(ranks, "train.batch_size=8")
    _, parts, _ = run(ranks, "train.batch_size=4", "train.accumulate=2")
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_method_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[[methods]]\nname = "dense"\n[[methods]]\nname = "topk"\nlr = [0.1, 0.2]\n')
    scenario = load(str(file))
    assert [(method.label, method.lr) for method in scenario.methods] == [
        ("dense", None),
        ("topk-lr=0.1", 0.1),
        ("topk-lr=0.2", 0.2),
    ]
    assert [trial.train.lr for trial in plan.make(scenario, "fake").trials[:3]] == [0.05, 0.1, 0.2]


def test_a_method_that_is_an_optimizer_needs_plain_sgd_below_it_whatever_the_others_have(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    adam = '[train]\noptimizer = "adamw"\n[[methods]]\nname = "dense"\n[[methods]]\nname = "onebit_adam"\n'
    file.write_text(adam)
    with pytest.raises(UsageError, match="'adamw with onebit_adam'"):
        plan.make(load(str(file)), "fake")
    file.write_text(adam + 'optimizer = "sgd"\n')
    dense, onebit = plan.make(load(str(file)), "fake").trials[:2]
    assert (dense.train.optimizer.name, onebit.train.optimizer.name) == ("adamw", "sgd")
    assert onebit.train.momentum == dense.train.momentum == 0
    file.write_text(adam + 'optimizer = "adagrad"\n')
    with pytest.raises(UsageError, match=r"methods \(onebit_adam\): optimizer.*found 'adagrad'; allowed: .*adamw"):
        load(str(file))


@pytest.mark.parametrize(
    ("settings", "method", "told"),
    [
        ([], '"parameter_server"\nservers = 5\n', "4 with parameter_server'; .*servers: 5 of 4"),
        (
            ["cluster.workers=128", "train.batch_size=2"],
            '"terngrad"\n',
            "128 with terngrad'; .*int8 ends at 127",
        ),
    ],
)
def test_workers_that_a_method_cannot_have_are_refused_before_anything_starts(
    tmp_path: Path, settings: list[str], method: str, told: str
) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f'[[methods]]\nname = "dense"\n[[methods]]\nname = {method}')
    with pytest.raises(UsageError, match=f"cluster.workers: found '{told}"):
        plan.make(load(str(file), settings), "fake")
