"""How often gates are right, under the noise of real rounds and of machines."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import make_store

from harness.analysis import compare, gate, reference
from harness.analysis.gate import judge
from harness.analysis.noise import noise_of_ratios
from harness.analysis.reference import Measured, read
from harness.analysis.shifts import log_shift

GATES = 1000


RUN_ROUNDS = 5


SLOWED = "topk"


OLDER = Path(__file__).resolve().parents[1] / "data" / "older"


GATED, TRAINED = "ci.json", "quickstart"
"""Runs of 2026-11-25 in ``tests/data/older``: of the scenario that is made for gates, and of noisier training.
What a gate finds is tested with their noise, whatever that of the reference of the day is."""


def real_residuals(*runs: str) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """By how much real rounds of these runs differ from their mean.

    Of the log ratios to dense, and of the log times in which dense computes.
    """
    of_ratios, of_computing = [], []
    for run in (read(OLDER / name) for name in runs):
        logs = np.log(run.trials.pivot(index="round", columns="label", values="samples_per_s"))
        computing = np.log(run.trials[run.trials["label"] == "dense"][["compute_s_per_step"]])
        of_ratios.append(residuals_of(logs.sub(logs["dense"], axis=0).drop(columns="dense")))
        of_computing.append(residuals_of(computing))
    return np.concatenate(of_ratios), np.concatenate(of_computing)


def residuals_of(rounds: pd.DataFrame) -> np.ndarray:  # type: ignore[type-arg]
    spread_lost = math.sqrt(len(rounds) / (len(rounds) - 1))
    return (spread_lost * (rounds - rounds.mean())).to_numpy().ravel()


METHODS = ("topk", "pactrain")


def simulated_verdict(before: np.ndarray, after: np.ndarray, computing: float = 1.0) -> str:  # type: ignore[type-arg]
    """The verdict of a gate on these log ratios, (rounds, methods), by the functions that a gate uses."""
    old, new = (list(np.exp(logs).T) for logs in (before, after))
    noise = noise_of_ratios(old), noise_of_ratios(new)
    shifts = [log_shift(*sides, noise) for sides in zip(old, new, strict=True)]
    verdicts = {gate.verdict_on(shift, gate.MAX_SLOWDOWN, len(METHODS), computing) for shift in shifts}
    return next(verdict for verdict in gate.EXIT_CODES if verdict in verdicts)


def as_run(like: Measured, logs: np.ndarray, computing: np.ndarray) -> Measured:  # type: ignore[type-arg]
    """A run of dense and ``METHODS`` with these log ratios, on a machine that computes so long in each round."""
    labels = ["dense", *METHODS]
    template = like.trials.drop_duplicates("label").set_index("label", drop=False).loc[labels]
    trials = pd.concat([template] * len(logs), ignore_index=True)
    trials["round"] = np.repeat(np.arange(len(logs)), len(labels))
    trials["samples_per_s"] = np.exp(np.insert(logs, 0, 0.0, axis=1).ravel())
    trials["compute_s_per_step"] = np.repeat(computing, len(labels))
    return Measured(like.where, like.scenario, trials, like.provenance)


@pytest.mark.parametrize(("slowdown", "noise"), [(0.0, [GATED]), (0.0, [GATED, TRAINED]), (gate.MAX_SLOWDOWN, [GATED])])
def test_the_gate_finds_a_slowdown_at_its_limit_and_leaves_unchanged_code_alone(
    slowdown: float, noise: list[str], tmp_path: Path
) -> None:
    """1,000 gates of five rounds against references of ten, with the noise of rounds that were measured."""
    like = read(make_store(tmp_path / "ci", scenario="ci", methods=METHODS).folder)
    dice, (residuals, of_computing) = np.random.default_rng(2026), real_residuals(*noise)
    verdicts: Counter[str] = Counter()
    for number in range(GATES):
        before, after = (
            math.log(5) + dice.choice(residuals, (rounds, len(METHODS))) for rounds in (reference.ROUNDS, RUN_ROUNDS)
        )
        after[:, METHODS.index(SLOWED)] -= math.log(1 + slowdown)
        computing = [np.exp(dice.choice(of_computing, rounds)) for rounds in (reference.ROUNDS, RUN_ROUNDS)]
        verdict = simulated_verdict(before, after, compare.machine_factor(*computing))
        verdicts[verdict] += 1
        if number < 5:
            by_gate = judge(as_run(like, after, computing[1]), as_run(like, before, computing[0])).verdict
            assert by_gate == verdict, "the short cut is the gate"
    print(dict(verdicts))
    if slowdown:
        assert verdicts["regression"] >= 0.95 * GATES, verdicts
    else:
        assert verdicts["regression"] <= 0.01 * GATES, verdicts
        assert verdicts["pass"] >= 0.9 * GATES, verdicts


@pytest.mark.parametrize("deviation", [0.01, 0.03, 0.06, 0.12, 0.3])
def test_a_gate_cries_wolf_on_no_machine_however_noisy(deviation: float) -> None:
    dice = np.random.default_rng(4)
    verdicts = Counter(
        simulated_verdict(*(dice.normal(0, deviation, (rounds, 2)) for rounds in (reference.ROUNDS, RUN_ROUNDS)))
        for _ in range(GATES)
    )
    assert verdicts["regression"] <= 0.01 * GATES, verdicts
