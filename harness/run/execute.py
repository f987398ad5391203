"""Run a plan: every pending trial on a cluster whose links were verified, each stored as soon as it has ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil

from harness.analysis.stopping import undecided_accuracies
from harness.cluster.protocol import Cluster, ClusterBrokenError
from harness.errors import MeasurementError, PacbenchError, UsageError, in_one_line
from harness.files import as_name
from harness.network.topology import Topology
from harness.plan.code import files_of
from harness.plan.dilation import LADDER
from harness.plan.plan import Plan
from harness.plan.status import DISTURBED, DONE
from harness.plan.trial import Trial
from harness.plugins import short
from harness.record.checkpoint import Checkpoint
from harness.record.claims import Claim, ClaimLostError, Claims
from harness.record.far_out import MOST_DISTURBED
from harness.record.row import Event, TrialRow, VerificationRow
from harness.record.store import Store
from harness.run.attempt import attempt
from harness.run.checkpoints import FOLDER as CHECKPOINTS
from harness.run.checkpoints import Checkpoints, Tell
from harness.run.dilation import Dilations
from harness.run.interference import Moment
from harness.run.outcome import Ended, Outcome, Watch
from harness.run.own_profile import with_profile_files
from harness.run.pretrained import with_pretrained_weights
from harness.run.row import row_of, workload_of
from harness.run.sharing import Parts, Taken, next_part, parts_of
from harness.scenario.schema import Resources, Train
from harness.units import format_size

FIRST_PORT, PORTS = 29500, 1000

MOST_REPEATS = 2
"""How often a disturbed trial is run again; then it stays as it is, and analysis decides whether it is used."""


class NoMemoryError(UsageError):
    """What is to run does not fit into the memory that is free: the same may do so later."""


def run(
    plan: Plan,
    store: Store,
    cluster: Cluster,
    watch: Watch,
    ended: Ended,
    enough: Callable[[], bool] = lambda: False,
    tell: Tell = lambda line: None,
) -> None:
    """Run the trials that the store does not hold as done, in the plan's order.

    A trial that fails becomes a row with its reason, and the next one runs. Between two rounds ``enough`` is asked;
    where it is true, the later rounds are not run. ``tell`` hears of trials that go on from a checkpoint, or cannot.

    Raises:
        UsageError: the machine cannot carry a case, or the store holds other trials.
        ClusterBrokenError: the cluster itself ended.
        KeyboardInterrupt: passed on once the trial that it hit is stored as interrupted.
    """
    attempts = store.attempts()
    check_same_code(plan, store, attempts)
    runner = _Runner(plan, store, cluster, watch, ended, tell)
    runner.tidy(attempts)
    pending = with_pretrained_weights(with_profile_files(plan.pending(attempts), store))
    _prepare(plan, pending, cluster)
    first_round = min((trial.round for trial in pending), default=0)
    for (_, _, number), trials in itertools.groupby(pending, key=_network_and_round):
        if number > first_round and enough():
            return
        runner.run(trials)


def run_shared(
    plan: Plan,
    store: Store,
    cluster: Cluster,
    watch: Watch,
    ended: Ended,
    claims: Claims,
    enough: Callable[[], bool] = lambda: False,
    tell: Tell = lambda line: None,
) -> None:
    """The same of a run that other processes share, and after the rounds the seeds that ``run_more_seeds`` trains.

    Raises:
        UsageError: as ``run`` does; or another process has other code.
        ClusterBrokenError, KeyboardInterrupt: as ``run`` does; what this process held falls to others.
    """
    check_same_code(plan, store, store.attempts())
    trials = with_pretrained_weights(with_profile_files(plan.trials, store))
    _prepare(plan, trials, cluster)
    runner = _Runner(plan, store, cluster, watch, ended, tell, claims)
    parts = parts_of(trials)
    first_round = min((trial.round for trial in plan.pending(store.attempts())), default=0)

    def is_wanted(part: Sequence[Trial]) -> bool:
        return part[0].round <= first_round or not enough()

    while taken := next_part(lambda: parts, store, claims, is_wanted):
        runner.run_taken(taken)

    def seeds() -> Parts:
        return parts_of(pending_seeds(plan, store))

    while taken := next_part(seeds, store, claims):
        seed = with_pretrained_weights(taken.trials)
        _prepare(plan, seed, cluster)
        runner.run_taken(Taken(taken.claim, tuple(seed)))


def check_same_code(plan: Plan, store: Store, attempts: pd.DataFrame) -> None:
    """Refuse to mix trials.

    Raises:
        UsageError: the store holds trials of other code, or of another kind of cluster.
    """
    if foreign_trial_ids := plan.foreign_trial_ids(attempts):
        raise UsageError(
            f"{store.folder}: holds {len(foreign_trial_ids)} trials of other code or of another kind of cluster, "
            "which are not to be mixed with new ones; choose another --out"
        )


def run_more_seeds(
    plan: Plan, store: Store, cluster: Cluster, watch: Watch, ended: Ended, tell: Tell = lambda line: None
) -> None:
    """Train seeds beyond the rounds', on unshaped links, of methods that are undecided and of the baseline beside them.

    One seed after another, until ``Scenario.accuracy_seeds`` have been trained. What fails is not
    tried again before the next start. Raises what ``run`` does.
    """
    runner = _Runner(plan, store, cluster, watch, ended, tell)
    tried: set[str] = set()
    while pending := [trial for trial in pending_seeds(plan, store) if trial.id not in tried]:
        seed = with_pretrained_weights(trial for trial in pending if trial.round == pending[0].round)
        _prepare(plan, seed, cluster)
        tried |= {trial.id for trial in seed}
        runner.run(seed)


def _prepare(plan: Plan, pending: Sequence[Trial], cluster: Cluster) -> None:
    """Have files and data ready on the cluster, and refuse what this machine or the cluster cannot carry."""
    check_memory(plan, pending)
    for file in files_of((trial.case, trial.method) for trial in pending):
        cluster.share_file(file)
    for checkpoint in {named for trial in pending if (named := trial.case.train.checkpoint)}:
        cluster.share_file(Path(checkpoint))
    for profile in {named for trial in pending if (named := trial.case.train.profile)}:
        cluster.share_file(Path(profile))
    trains = [trial.for_workers.case.train for trial in pending]
    for train in {_materials_of(each): each for each in trains}.values():
        cluster.preload(train)
    check_networks(pending, cluster, cluster.check)


def check_networks(trials: Iterable[Trial], cluster: Cluster, check: Callable[[Topology, Resources], None]) -> None:
    """Ask once of each network whether it can be had.

    Args:
        check: the cluster's ``check``, or its ``check_kind``.

    Raises:
        UsageError: one cannot; it names the scenario.
    """
    wanted = {(_easiest_network(trial, cluster), trial.case.cluster.resources): trial for trial in trials}
    for network, trial in wanted.items():
        try:
            check(*network)
        except UsageError as error:
            raise UsageError(f"{trial.scenario}: {str(error).removeprefix('scenario: ')}") from None


def _easiest_network(trial: Trial, cluster: Cluster) -> Topology:
    """The network that must be carried at least for a trial to run: the slowest that its dilation may become."""
    expected = trial.expected
    finds = cluster.machine.finds_dilation(trial.case)
    return expected.thinned.slowed(LADDER[-1]) if finds else expected.built_topology


def pending_seeds(plan: Plan, store: Store) -> list[Trial]:
    """Further seeds, in their order, of what is undecided and of the baseline beside it, that are not done."""
    if not plan.more_seeds:
        return []
    labels = {trial.method.label for trial in plan.more_seeds}
    undecided = {each for each in undecided_accuracies(store.trials(), plan.scenario) if each[1] in labels}
    asked = undecided | {(workload, plan.scenario.baseline) for workload, _ in undecided}
    return plan.pending_seeds(store.attempts(), lambda trial: (workload_of(trial), trial.method.label) in asked)


def check_memory(plan: Plan, pending: Iterable[Trial]) -> None:
    """Refuse replays whose workers would not fit into memory together.

    Raises:
        NoMemoryError: it names the first.
    """
    if found := too_large(pending):
        trial, reason = next(iter(found.values()))
        shown = f"{short(trial.case.train.model)} on {trial.case.cluster.workers} workers with {trial.method.label}"
        raise NoMemoryError.at(plan.scenario.name, "train.model", shown, reason)


def too_large(trials: Iterable[Trial]) -> dict[str, tuple[Trial, str]]:
    """Methods, by label, with the first trial that would not fit into memory, and what would."""
    available, found = psutil.virtual_memory().available, {}
    for trial in trials:
        if trial.method.label not in found and (needed := trial.expected.memory_bytes or 0) > available:
            free, asked = format_size(available), format_size(needed)
            found[trial.method.label] = trial, f"what fits into the {free} that are free; this needs about {asked}"
    return found


def _materials_of(train: Train) -> tuple[object, ...]:
    """What trials that read the same data, or replay the same model, share."""
    if train.replay:
        return train.replay, train.gradient_density, train.shrink
    return train.dataset, train.data_dir


def _network_and_round(trial: Trial) -> tuple[Topology, Resources, int]:
    """What trials that follow one another share until the links are measured again."""
    return trial.network, trial.case.cluster.resources, trial.round


def _how_slowed(trial: Trial) -> tuple[float, float]:
    """An order in which those of one network follow one another."""
    return trial.dilation, trial.slowing.slows_by


class _Runner:
    """Runs trials one after another, and stores what becomes of each."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        cluster: Cluster,
        watch: Watch,
        ended: Ended,
        tell: Tell,
        claims: Claims | None = None,
    ) -> None:
        self._plan, self._store, self._cluster, self._watch, self._ended = plan, store, cluster, watch, ended
        # Of a run that is shared, what another machine has begun of a part runs anew, and whole.
        only_machine = claims.holder.machine if claims else None
        self._checkpoints = Checkpoints(store.folder / CHECKPOINTS, tell, only_machine)
        self._begun: dict[str, Checkpoint] = {}
        """What trials that run next go on from, by their ids."""
        self._claims = claims
        self._claim: Claim | None = None
        self._ports = itertools.cycle(range(FIRST_PORT, FIRST_PORT + PORTS))
        self._baseline = next(method for method in plan.scenario.methods if method.label == plan.scenario.baseline)
        own = f"dilations-{as_name(claims.holder.machine)}.json" if claims else "dilations.json"
        self._dilations = Dilations(store.folder / own, cluster, self._baseline, self._attempt)

    def tidy(self, attempts: pd.DataFrame) -> None:
        """See to checkpoints of earlier starts, where this process alone runs."""
        known = {trial.id for trial in (*self._plan.trials, *self._plan.more_seeds)} | self._plan.left_out
        pending = (*self._plan.pending(attempts), *self._plan.pending_seeds(attempts, lambda _: True))
        self._checkpoints.tidy({trial.id for trial in pending} | self._plan.left_out, known)

    def run_taken(self, taken: Taken) -> None:
        """Run what was taken of a shared run; stop where another process turns out to have taken it over."""
        if self._claims is None:
            raise AssertionError("only of a shared run anything is taken")
        self._claim = taken.claim
        with suppress(ClaimLostError), self._claims.held(taken.claim):
            for _, trials in itertools.groupby(taken.trials, key=_network_and_round):
                self.run(trials)

    def run(self, alike: Iterable[Trial]) -> None:
        """Run trials of one round and network, those that are slowed alike together, until none is to be run again."""
        left = list(alike)
        while left:
            some = self._next_of(left)
            left = [trial for trial in left if trial not in some]
            trials = sorted(self._settled(some), key=_how_slowed, reverse=bool(some[0].round % 2))
            left += [
                trial
                for _, together in itertools.groupby(trials, key=lambda trial: trial.network)
                for trial in self._run_between_verifications(together)
            ]

    def _next_of(self, trials: Sequence[Trial]) -> list[Trial]:
        """The next ones in order; one whose dilation is a guess runs alone: what it finds makes guesses better."""
        is_known, baseline = self._dilations.is_known, self._baseline.label
        guesses = (trial for trial in trials if trial.method.label == baseline and not is_known(trial))
        first = next(guesses, trials[0])
        return list(itertools.takewhile(is_known, trials)) if is_known(first) else [first]

    def _settled(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """The trials with their dilations. One for which there is none becomes a row with the reason."""
        for trial in trials:
            started = time.monotonic()
            try:
                yield self._as_begun(self._dilations.settle(trial))
            except ClusterBrokenError:
                raise
            except MeasurementError as error:
                outcome = Outcome("failed", str(error))
                attempts, wall_time_s = self._store.attempts_of(trial.id), time.monotonic() - started
                self._keep(row_of(trial, attempts, outcome, wall_time_s), [])
                self._ended(trial, outcome.status, outcome.reason)

    def _as_begun(self, trial: Trial) -> Trial:
        """The trial; one that goes on from a checkpoint keeps the dilation that it began with."""
        begun = self._checkpoints.find(trial)
        if begun is None:
            return trial
        self._begun[trial.id] = begun
        return trial.model_copy(update={"found": begun.about.found})

    def _run_between_verifications(self, trials: Iterable[Trial]) -> list[Trial]:
        """Run trials that share a network, and measure it again after the last of them; those to be run again."""
        finished, again = [], []
        for trial in trials:
            outcome = self._run_one(trial)
            if outcome.status == DONE:
                finished.append(trial)
            elif outcome.status == DISTURBED:
                again.append(trial)
        if finished:
            self._verify_again(finished)
        return again

    def _verify_again(self, finished: Iterable[Trial]) -> None:
        """Measure the links after the last trial on them; where they drifted, the trials in between do not count."""
        readings, unmeasured = None, ""
        try:
            readings = self._cluster.verify()
        except MeasurementError as error:
            if isinstance(error, ClusterBrokenError):
                raise
            unmeasured = str(error)
        for trial in finished:
            attempt = self._store.attempts_of(trial.id) - 1
            after, drift = None, unmeasured
            if readings:
                told = trial.told(readings)
                after, drift = told.model_dump_json(), "; ".join(told.complaints())
            row = VerificationRow(trial_id=trial.id, attempt=attempt, verified_after=after, drift=drift or None)
            self._store.append_verification(row)
            if drift:
                drifted = Outcome("failed", f"the links had changed after it: {drift}", readings)
                self._keep(row_of(trial, attempt + 1, drifted, 0.0), [])
                self._ended(trial, drifted.status, drifted.reason)

    def _attempt(self, trial: Trial) -> Outcome:
        """Run a trial and store nothing."""
        outcome = Outcome()
        attempt(trial, self._cluster, next(self._ports), outcome, self._watch)
        return outcome

    def _run_one(self, trial: Trial) -> Outcome:
        """Run a trial and store what became of it."""
        started, outcome, before = time.monotonic(), Outcome(), Moment.now()
        may_repeat = not trial.for_accuracy and self._repeats_of(trial) < MOST_REPEATS
        judge = self._dilations.added_to if may_repeat else None
        keeper, begun = self._checkpoints.keeper(trial), self._begun.pop(trial.id, None)
        try:
            attempt(trial, self._cluster, next(self._ports), outcome, self._watch, judge, keeper, begun)
        except KeyboardInterrupt:
            outcome.fail("interrupted", "interrupted by the user")
            raise
        except PacbenchError as error:
            outcome.fail("failed", str(error))
            if isinstance(error, (ClusterBrokenError, UsageError)):
                raise
        except Exception as error:
            outcome.fail("failed", in_one_line(error))
            raise
        finally:
            keeper.close()
            outcome.interference = before.until_now()
            row = self._row_of(trial, outcome, time.monotonic() - started, may_repeat)
            self._keep(row, outcome.events)
        if outcome.is_over:
            self._checkpoints.discard(trial)
        self._ended(trial, outcome.status, outcome.reason)
        return outcome

    def _keep(self, row: TrialRow, events: Iterable[Event]) -> None:
        """Store a trial.

        Raises:
            ClaimLostError: another process has taken over the part of the run that it belongs to.
        """
        if self._claims and self._claim:
            if not self._claims.is_mine(self._claim):
                raise ClaimLostError(f"{self._claim.path}: another process has taken this over; it is run there")
            row = replace(row, claim=self._claim.number)
        self._store.append(row, events)

    def _row_of(self, trial: Trial, outcome: Outcome, wall_time_s: float, may_repeat: bool) -> TrialRow:
        """The row of a trial that ended: what its machine added is taken off, and it may have to be run again."""
        too_much = self._dilations.take_off(trial, outcome) if outcome.status in (DONE, DISTURBED) else None
        row = row_of(trial, self._store.attempts_of(trial.id), outcome, wall_time_s)
        if outcome.status != DONE:
            return row
        why = _why_disturbed(row) or too_much
        if why and may_repeat:
            outcome.fail(DISTURBED, why)
        return replace(row, status=outcome.status, reason=why)

    def _repeats_of(self, trial: Trial) -> int:
        """How often it has been disturbed."""
        if not self._store.attempts_of(trial.id):
            return 0  # as of most: nothing is to be read
        return int((self._store.attempts(trial.id)["status"] == DISTURBED).sum())


def _why_disturbed(row: TrialRow) -> str | None:
    if (row.disturbed_share or 0.0) <= MOST_DISTURBED:
        return None
    return (
        f"{row.far_out_steps} of {row.steps} steps took far longer than their like: "
        f"{100 * (row.disturbed_share or 0.0):.0f} % of its training time"
    )
