"""A run, from a scenario to its last trial: its folder is opened or resumed and locked, and what is left is run.

The command line, the pytest plug-in and ``harness.run_scenario`` are its callers. It prints nothing: a ``Watcher``
hears what is about to run, how it goes on, and how each trial ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pandas as pd

from harness import provenance
from harness.analysis.stopping import narrow_enough
from harness.analysis.trials import UNTIL
from harness.cluster import registry
from harness.cluster.protocol import Cluster
from harness.errors import UsageError
from harness.files import UnwritableError, check_folder
from harness.plan.check import check_size
from harness.plan.plan import Plan
from harness.plan.trial import Trial
from harness.record.claims import Claims
from harness.record.store import Store, new_folder, runs
from harness.run import RESULTS, execute
from harness.run.outcome import Progress
from harness.run.planning import plan_run
from harness.scenario.schema import Scenario


@dataclass(frozen=True)
class Outlook:
    """What a run is about to do, told before anything starts."""

    plan: Plan
    folder: Path
    pending: tuple[Trial, ...]
    """Trials that are not done, in the order in which they run."""
    tried: int
    """Trials that were begun before, whether they finished or not."""
    is_narrow_enough: bool
    """Whether trials are pending, and none of them is needed: every interval is narrow enough already."""
    wants_more_seeds: bool
    """Whether all trials are done, and further seeds are to be trained for accuracy."""

    @property
    def done(self) -> int:
        """How many trials are done."""
        return len(self.plan.trials) - len(self.pending)

    @property
    def runs_something(self) -> bool:
        """Whether anything is left to run."""
        return self.wants_more_seeds or (bool(self.pending) and not self.is_narrow_enough)


class Watcher:
    """Hears what happens in a run. This one ignores it all; override what is to be shown."""

    def about_to_run(self, outlook: Outlook) -> None:
        """Hear what is left to run, also where that is nothing."""

    def running(self, outlook: Outlook) -> AbstractContextManager[object]:
        """A context in which the trials run, such as that of a progress bar."""
        return nullcontext()

    def progress(self, progress: Progress) -> None:
        """Hear how far the current trial is."""

    def told(self, line: str) -> None:
        """Hear that a trial goes on from a checkpoint, or why it cannot."""

    def ended(self, trial: Trial, status: str, reason: str | None) -> None:
        """Hear how a trial ended."""


class Ending(str, Enum):
    """Why a run ended."""

    DONE = "every trial is done"
    UNFINISHED = "some trials did not finish"
    NARROW_ENOUGH = "every interval is narrow enough"
    OUT_OF_ROUNDS = "all rounds were run, and an interval is still too wide"


@dataclass(frozen=True)
class Result:
    """A run that has ended."""

    plan: Plan
    store: Store
    failed: int
    """Trials that were to finish and did not. Their rows hold the reason; the next run tries them again."""
    ending: Ending

    @property
    def folder(self) -> Path:
        """Folder of the run, which ``pacbench report`` and ``pacbench gate`` take."""
        return self.store.folder

    @property
    def scenario(self) -> Scenario:
        """The scenario with all overrides."""
        return self.plan.scenario

    @property
    def trials(self) -> pd.DataFrame:
        """The last attempt of every trial, a row each; columns and units are in ``results/README.md``."""
        return self.store.trials()


def run_scenario(
    scenario: str | Path,
    *,
    on: str = "auto",
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    rounds: int | None = None,
    until: float | None = None,
    seeds: int | None = None,
    join: bool = False,
) -> Result:
    """Run a scenario as ``pacbench run`` does, or go on where an earlier run of it stopped. Prints nothing.

    Example::

        import harness

        result = harness.run_scenario("quickstart", on="netns", overrides=["link.rate=1gbit"], rounds=3)
        print(result.trials.groupby("label")["samples_per_s"].mean())

    Args:
        scenario: a name from ``pacbench list scenarios``, or a .toml file.
        on: kind of cluster: ``netns``, ``docker``, ``uml``, ``fake``, or ``auto`` for the first that works here.
        out: folder of the run; by default that of an unfinished run of the scenario, or a new one, in ``results/``.
        overrides: ``key=value`` pairs such as ``train.steps=50``.
        methods: names or labels of the methods to run, and the baselines; all by default.
        rounds: how often each method runs; by default as the scenario says.
        until: end with the round after which every speedup's interval reaches no further than this share of it:
            0.02 is 2 %. There are 30 rounds at most, or ``rounds``.
        seeds: train up to so many seeds, on unshaped links, of methods whose accuracy the rounds leave open.
        join: share the run with all other processes that join it in the same folder, on any machine.

    Returns:
        The run. ``trials`` has a row for each trial, ``failed`` counts those that did not finish, ``ending`` says why
        it ended.

    Raises:
        UsageError: something that was given cannot be used; nothing was started.
        MeasurementError: this machine can have no such cluster, or the cluster itself ended.
        KeyboardInterrupt: what had finished is kept.
    """
    if until is not None and until <= 0:
        raise UsageError.at("run_scenario", "until", until, "a share above zero, such as 0.02")
    given: dict[str, object] = {"on": on, "out": out and str(out), "overrides": [*overrides], "methods": [*methods]}
    given |= {"rounds": rounds, "until": until, "seeds": seeds, "join": join or None}
    check_join(join, Path(out) if out else None)
    cluster = registry.make(registry.choose(on)[0])
    plan = plan_run(str(scenario), cluster, overrides, methods, rounds, until, seeds)
    store = open_store(plan, Path(out) if out else None)
    return run(plan, store, cluster, _python_command(str(scenario), given), until=until, join=join)


def check_join(join: bool, folder: Path | None) -> None:
    """Refuse to share a run of which nobody else knows where it lies.

    Raises:
        UsageError: there is no folder.
    """
    if join and folder is None:
        raise UsageError.at("command line", "--join", "no --out", "with --out, the folder that all share")


def check_start(plan: Plan, cluster: Cluster, folder: Path | None = None) -> Sequence[Trial]:
    """Refuse what ``open_store`` and ``run`` would, as far as that is known before anything is made or started.

    Args:
        cluster: on which it is to run; it need not be entered.

    Returns:
        What is left to run.

    Raises:
        UsageError: the plan can only be predicted, does not fit into memory, or asks for what there is not on this kind
            of cluster; or the folder holds another run, or can be none.
    """
    check_size(plan.scenario)
    there = unfinished_run(plan) if folder is None else folder if Store.is_run(folder) else None
    pending: Sequence[Trial] = plan.trials
    if there is not None:
        store = Store.create(there, plan.scenario)
        attempts = store.attempts()
        execute.check_same_code(plan, store, attempts)
        pending = plan.pending(attempts)
    elif folder is not None:
        Store(folder).check_has_its_scenario()
        try:
            check_folder(folder)
        except UnwritableError as error:
            raise error.of_folder("--out", folder) from None
    execute.check_memory(plan, pending)
    execute.check_networks(pending, cluster, cluster.check_kind)
    return pending


def open_store(plan: Plan, folder: Path | None = None) -> Store:
    """Open the folder that is given, the plan's newest unfinished run under ``results/``, or a new one.

    Raises:
        UsageError: the folder cannot be written, or holds another run; or the plan can only be predicted.
    """
    check_size(plan.scenario)
    folder = folder or unfinished_run(plan)
    return Store.create(folder, plan.scenario) if folder else new_store(plan)


def new_store(plan: Plan) -> Store:
    """Make a new folder under ``results/``.

    Raises:
        UsageError: it cannot be written.
    """
    return Store.create(new_folder(RESULTS, plan.scenario), plan.scenario)


def unfinished_run(plan: Plan) -> Path | None:
    """The newest run of this plan under ``results/`` that something is left to do of, if there is one."""
    for store in runs(RESULTS, plan.scenario):
        attempts = store.attempts()
        if not plan.foreign_trial_ids(attempts) and (plan.pending(attempts) or execute.pending_seeds(plan, store)):
            return store.folder
    return None


def latest_run(plan: Plan) -> Store | None:
    """The newest run of this plan's scenario and code under ``results/``, be it finished or not."""
    return next((store for store in runs(RESULTS, plan.scenario) if not plan.foreign_trial_ids(store.attempts())), None)


def run(
    plan: Plan,
    store: Store,
    cluster: Cluster,
    command: Sequence[str],
    watcher: Watcher | None = None,
    until: float | None = None,
    join: bool = False,
    later: Sequence[Trial] = (),
) -> Result:
    """Run what a store does not hold as done: the trials, and then more seeds where accuracy is open.

    The cluster is entered only where something is left to run. Every trial is stored as soon as it has ended.

    Args:
        command: what started this, for the record.
        until: see ``run_scenario``.
        join: likewise.
        later: trials of other plans that are to run when this one has ended. What the cluster cannot carry of them is
            refused before the first trial.

    Raises:
        UsageError: another run is using the folder, it holds trials of other code, or a case cannot be carried here.
        ClusterBrokenError: the cluster itself ended.
        KeyboardInterrupt: what had finished is kept.
    """
    check_size(plan.scenario)
    watcher = watcher or Watcher()
    heard = watcher.progress, watcher.ended

    def enough() -> bool:
        return until is not None and narrow_enough(store.trials(), plan.scenario, until)

    with store.locked(shared=join):
        outlook = _outlook(plan, store, enough)
        watcher.about_to_run(outlook)
        if outlook.runs_something:
            claims = Claims.joined(store.folder) if join else None
            of_this = {**provenance.collect(list(command)), **_ends_early(until), **cluster.provenance()}
            if claims:
                store.add_own_provenance(of_this, claims.holder.name)
            else:
                store.add_provenance(of_this)
            with watcher.running(outlook), cluster:
                execute.check_networks(later, cluster, cluster.check)
                if claims:
                    execute.run_shared(plan, store, cluster, *heard, claims, enough, watcher.told)
                else:
                    execute.run(plan, store, cluster, *heard, enough, watcher.told)
                    execute.run_more_seeds(plan, store, cluster, *heard, watcher.told)
    failed = _failed(plan, store, needs_all=until is None)
    if until is None:
        return Result(plan, store, failed, Ending.UNFINISHED if failed else Ending.DONE)
    return Result(plan, store, failed, Ending.NARROW_ENOUGH if enough() else Ending.OUT_OF_ROUNDS)


def _ends_early(until: float | None) -> dict[str, float]:
    """For the record: not all rounds of the scenario were asked for."""
    return {} if until is None else {UNTIL: until}


def _outlook(plan: Plan, store: Store, enough: Callable[[], bool]) -> Outlook:
    pending = plan.pending(store.attempts())
    ids = [trial.id for trial in plan.trials]
    return Outlook(
        plan=plan,
        folder=store.folder,
        pending=tuple(pending),
        tried=int(store.trials()["trial_id"].isin(ids).sum()),
        is_narrow_enough=bool(pending) and enough(),
        wants_more_seeds=not pending and bool(execute.pending_seeds(plan, store)),
    )


def _failed(plan: Plan, store: Store, needs_all: bool) -> int:
    """How many trials did not finish; of rounds and seeds that were not needed, only those that were begun count."""
    unfinished, seeds = plan.pending(store.attempts()), execute.pending_seeds(plan, store)
    begun = set(store.trials()["trial_id"])
    return sum(needs_all or trial.id in begun for trial in unfinished) + sum(trial.id in begun for trial in seeds)


def _python_command(scenario: str, given: dict[str, object]) -> list[str]:
    """The call as a command line that can be pasted."""
    options = "".join(f", {name}={value!r}" for name, value in given.items() if value not in (None, []))
    return ["python", "-c", f"import harness; harness.run_scenario({scenario!r}{options})"]
