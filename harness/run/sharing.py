"""A run that several processes share: each takes a round of a case, runs it whole, and takes the next.

So ratios stay paired on one machine. Who runs what is said by claims in the run's folder (``record/claims.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd

from harness.analysis.trials import on_links
from harness.plan.status import DONE
from harness.plan.trial import Trial
from harness.record.claims import Claim, Claims
from harness.record.store import Store
from harness.record.tables import json_digest

POLLED_AFTER_S = 2.0
"""Where nothing is left but what others hold, one looks again after so long."""

LAST = "report"
"""What is done once for all, as a part that one of them holds."""

Parts = Mapping[str, Sequence[Trial]]


@dataclass(frozen=True)
class Taken:
    """A part of a run that this process holds, and what is left to run of it."""

    claim: Claim
    trials: tuple[Trial, ...]


def parts_of(trials: Iterable[Trial]) -> Parts:
    """The parts that are handed out, by name, in order: the trials of a round of a case."""
    parts: dict[str, list[Trial]] = {}
    for trial in trials:
        kind = "seed" if trial.for_accuracy else "round"
        part = f"{kind}-{trial.round}-{json_digest(trial.case.model_dump(mode='json'))[:8]}"
        parts.setdefault(part, []).append(trial)
    return parts


def left_of(trials: Sequence[Trial], attempts: pd.DataFrame, machine: str) -> list[Trial]:
    """What a machine has to run of a part: nothing of one that is done, and all of one that another has begun.

    Args:
        attempts: of the run, as ``Store.attempts`` gives them.
    """
    of_part = attempts[attempts["trial_id"].isin([trial.id for trial in trials])]
    of_part = of_part.sort_values("claim", key=lambda claim: claim.fillna(0), kind="stable")
    if of_part.empty:
        return list(trials)
    by_another = of_part["machine"] != of_part["machine"].iloc[-1]
    of_the_last = of_part[~by_another[::-1].cummax()[::-1]]
    ended = of_the_last.drop_duplicates("trial_id", keep="last")
    done = set(ended.loc[ended["status"] == DONE, "trial_id"])
    left = [trial for trial in trials if trial.id not in done]
    return list(trials) if left and of_part["machine"].iloc[-1] != machine else left


def next_part(
    parts: Callable[[], Parts], store: Store, claims: Claims, wanted: Callable[[Sequence[Trial]], bool] = lambda _: True
) -> Taken | None:
    """Take the first part that is free and has something left; wait where others still hold such a one.

    Args:
        parts: all parts, as they are now.
        wanted: whether a part is to be run at all.

    Returns:
        None where nothing is left.
    """
    while True:
        others_run = False
        latest, attempts = claims.latest(), store.attempts()
        for part, trials in parts().items():
            if not left_of(trials, attempts, claims.holder.machine):
                continue
            if not wanted(trials):
                return None
            last = latest.get(part)
            if not claims.is_free(last):
                others_run |= last is not None and not last.has_ended
            elif claim := claims.take(part, last):
                return Taken(claim, tuple(left_of(trials, store.attempts(), claims.holder.machine)))
            else:
                others_run = True
        if not others_run:
            return None
        time.sleep(POLLED_AFTER_S)


@contextmanager
def as_the_last(store: Store) -> Iterator[bool]:
    """Whether this process is to do what is done once for all that share a run, when none is at work on it any more."""
    claims = Claims.joined(store.folder)
    while any(claims.is_alive(claim) for part, claim in claims.latest().items() if part != LAST):
        time.sleep(POLLED_AFTER_S)
    last = claims.latest().get(LAST)
    claim = None if last and claims.is_alive(last) else claims.take(LAST, last)
    if claim is None:
        yield False
        return
    with claims.held(claim):
        yield True


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    trials: int
    """How many it has, seeds beyond the rounds aside."""
    done: int
    failed: int
    """Those whose last attempt did not finish."""
    at_work: tuple[Claim, ...]
    """What is being run, and by whom, of a run that processes share."""
    is_locked: bool
    """Whether one process is at work that shares it with nobody."""
    left_s: float | None
    """What the rest may take if they go on; None where nobody does, or no trial has told yet."""


def standing_of(store: Store) -> Standing:
    """How far a run is."""
    scenario, ended = store.scenario(), on_links(store.trials())
    trials = scenario.rounds * len(scenario.cases) * len(scenario.methods)
    done = int((ended["status"] == DONE).sum())
    at_work: tuple[Claim, ...] = ()
    if store.is_shared:
        claims = Claims(store.folder)
        at_work = tuple(each for each in claims.latest(of_any_code=True).values() if claims.is_alive(each))
    each_s = ended.loc[ended["status"] == DONE, "wall_time_s"].mean() if done else None
    is_locked = store.is_locked
    processes = len(at_work) or int(is_locked)
    left_s = (trials - done) * float(each_s) / processes if processes and each_s else None
    return Standing(trials, done, len(ended) - done, at_work, is_locked, left_s)
