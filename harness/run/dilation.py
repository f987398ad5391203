"""The least dilation at which this machine adds little to a step: for each method on each case of a run.

What a machine adds (``run/added.py``) may be up to ``train.most_added`` of a step, and is taken off. Where links can
change while a trial runs, every trial shows it: some of its steps run slower still. A trial that shows too much is run
again at a greater dilation, and the next trial of its kind runs as slow as the last one says. Elsewhere short trials
are run before the first one, and what workers meter must not be more later on.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from harness.cluster.protocol import Cluster
from harness.errors import MeasurementError, UsageError
from harness.files import NoRoomError, UnwritableError, read_stored, write_whole
from harness.plan import estimate
from harness.plan.dilation import AIM, CALM, LADDER, LITTLE, Dilation, look, probed_at, rung, tolerated
from harness.plan.expected import state_of, wire_bytes
from harness.plan.status import first_steady_step
from harness.plan.trial import Trial
from harness.run.added import Added, added_within
from harness.run.outcome import Outcome
from harness.run.probe import Prober, metered_s, without_warmup
from harness.scenario.schema import DENSE, Case, MethodSpec
from harness.scenario.section import in_words

OTHERS = 3
"""So many methods must have been found to need more than is usual before all are taken to do so."""


@dataclass(frozen=True)
class Found:
    """What is known of a method on a case."""

    dilation: Annotated[float, Field(gt=0, le=LADDER[-1])]
    """The next trial's."""
    step_s: Annotated[float, Field(gt=0)]
    """A step, without what this machine adds."""
    added_s: float
    """What this machine adds to it, in real seconds."""
    error_s: float = math.inf
    """How uncertain that is, as one standard error, in real seconds."""
    overrun_s: float | None = None
    """The part of it that the workers of short trials metered, in the seconds that are told."""
    over_usual: float = 1.0
    """What this machine adds, over what machines usually add."""


class Dilations:
    """Chooses dilations, and keeps what is known for the run.

    Args:
        file: where that is kept, for a run that goes on later.
        cluster: on which trials run.
        baseline: the method whose steps a warm-up may be like.
        attempt: runs a trial on the cluster's network; what became of it.
    """

    def __init__(self, file: Path, cluster: Cluster, baseline: MethodSpec, attempt: Callable[[Trial], Outcome]) -> None:
        self._file, self._cluster, self._baseline = file, cluster, baseline
        self._prober = Prober(attempt)
        self._found, self._labels = _read(file)
        self._too_low: dict[str, float] = {}

    def is_known(self, trial: Trial) -> bool:
        """Whether a trial's dilation is more than a guess."""
        return not self._cluster.machine.finds_dilation(trial.case) or _key(trial) in self._found

    def settle(self, trial: Trial) -> Trial:
        """The trial with its dilation.

        Raises:
            UsageError: the cluster cannot carry it, however slow.
            MeasurementError: this machine adds too much at every dilation, or a short trial fails.
        """
        if not self._cluster.machine.finds_dilation(trial.case):
            return trial
        slowing = self._looking(trial)
        if slowing is None:
            slowing = probed_at(self._probed(trial).dilation)
        return trial.model_copy(update={"found": slowing})

    def added_to(self, trial: Trial, outcome: Outcome) -> Added | None:
        """What this machine adds to a trial's steps; None where they do not tell it, or not yet.

        Where they do not tell it well enough, what earlier trials of its kind told counts as well. Before them it is
        what machines usually add, give or take as much. Steps that differ from one to the next, because what they send
        does, say little at any dilation; but at a great one little is added in any case.
        """
        within = added_within(outcome, trial)
        if within is None or within.is_known(trial.dilation, trial.case.train.most_added):
            return within
        if found := self._found.get(_key(trial)):
            return within.beside(found.added_s, found.error_s, trial.dilation)
        usual_s = estimate.usually_added_s(trial, self._cluster.machine)
        return within.beside(usual_s, usual_s, trial.dilation)

    def take_off(self, trial: Trial, outcome: Outcome) -> str | None:
        """Take off what this machine added to the steps of a trial that ended; why it is to be run again, if it is.

        What is known of its kind is brought up to date.
        """
        if trial.found is None:
            return None
        if within := self.added_to(trial, outcome):
            outcome.take_off(within.added_s, trial.found, self._added_before_steady(trial, within.added_s))
            return self._learn(trial, within)
        found = self._found[_key(trial)]
        outcome.take_off(found.added_s, trial.found, self._added_before_steady(trial, found.added_s))
        return self._why_probes_were_wrong(trial, outcome, found)

    def _added_before_steady(self, trial: Trial, added_s: float) -> list[float]:
        """What this machine adds to each step of a warm-up, none of which is looked at, in real seconds.

        To a step that sends as much as dense ones it adds what was found of those, else what it adds to later ones.
        """
        dense = self._found.get(_key(trial.model_copy(update={"method": DENSE})))
        dense_bytes, added_to_dense_s = wire_bytes(trial.case, DENSE), dense.added_s if dense else added_s
        steps = range(min(state_of(trial.method).steady_from_step, trial.case.train.steps))
        sent_bytes = (wire_bytes(trial.case, trial.method, step) for step in steps)
        return [added_to_dense_s if each == dense_bytes else added_s for each in sent_bytes]

    def _learn(self, trial: Trial, within: Added) -> str | None:
        """Choose for the next trial of this kind; why this one is to be run again, if it is."""
        now, most_added = trial.dilation, trial.case.train.most_added
        why = within.why_too_much(now, most_added)
        if within.step_s <= 0:  # nothing can be learnt of steps that differ so much
            self._too_low[_key(trial)] = now
            return why
        # What one moment showed must not decide over all that follows: one trial to the next changes by 2 at most.
        if within.is_too_much(now, most_added):
            self._too_low[_key(trial)] = now
            chosen = min(_needed(within, AIM * most_added), 2 * now)
        elif why:
            chosen = min(_next(now), LADDER[-1])
        else:
            # A trial that shows nearly too much is a good one, but the next of its kind may show too much. Nor may it
            # be so fast that what is added would be known too little.
            most = 2 * now if within.share(now) > AIM * most_added else now
            chosen = min(
                most, max(_needed(within, CALM * min(LITTLE, most_added)), within.known_from(most_added), now / 2)
            )
        self._keep(trial, rung(min(LADDER[-1], max(self._lowest(trial), chosen))), within)
        return why

    def _why_probes_were_wrong(self, trial: Trial, outcome: Outcome, found: Found) -> str | None:
        more_s = metered_s(outcome) - (found.overrun_s or 0.0)
        if more_s <= tolerated(trial.case.train.most_added) * found.step_s:
            return None
        self._too_low[_key(trial)] = trial.dilation
        share = f"{100 * more_s / found.step_s:.1f} %"
        return f"at a dilation of {trial.dilation:g} this machine added {share} more to a step than when that was found"

    def _looking(self, trial: Trial) -> Dilation | None:
        """How time runs in a trial some of whose steps run slower still; None where none can."""
        if not self._cluster.machine.slows_single_steps(trial.expected.topology):
            return None
        state, dilation = state_of(trial.method), self._carried(trial, self._likely(trial))
        step_s = estimate.steady_s(trial)
        looked = look(first_steady_step(state), trial.case.train.steps, dilation, step_s, state.agrees_every)
        if looked is None:
            return None
        baseline = trial.model_copy(update={"method": self._baseline})
        real_s = max(dilation * step_s, self._likely(baseline) * estimate.steady_s(baseline))
        phases = estimate.phases(trial, dilation, real_s)
        if trial.expected.topology.needs_netem:  # its timers know real time alone
            phases = tuple(each.model_copy(update={"dilation": max(1.0, each.dilation)}) for each in phases)
        return Dilation(steady=dilation, phases=phases, look=looked)

    def _likely(self, trial: Trial) -> float:
        """What was found, else a guess, by what is usual and what others were found to need."""
        if found := self._found.get(_key(trial)):
            return max(found.dilation, self._lowest(trial))
        slower = self._over_usual(trial)
        return max(self._lowest(trial), rung(estimate.usual_dilation(trial, self._cluster.machine, slower)))

    def _over_usual(self, trial: Trial) -> float:
        """What this machine adds over what is usual, guessed by what was found of the method, and of the case."""
        case, method = _case_key(trial.case), _method_key(trial.method)
        of_the_case = [each.over_usual for key, each in self._found.items() if key.startswith(case)]
        of_the_method = [each.over_usual for key, each in self._found.items() if key.endswith(method)]
        least = min(of_the_case) if len(of_the_case) >= OTHERS else 1.0
        return max(1.0, least, statistics.median(of_the_method or [1.0]))

    def _lowest(self, trial: Trial) -> float:
        """The least dilation that may do, by what is known so far."""
        return max(estimate.least_dilation(trial, self._cluster.machine), _next(self._too_low.get(_key(trial), 0.0)))

    def _probed(self, trial: Trial) -> Found:
        """What short trials find: they are run where it is not known yet."""
        known, key, most_added = self._found.get(_key(trial)), _key(trial), trial.case.train.most_added
        if known and known.dilation > self._too_low.get(key, 0.0):
            return known
        dilation = self._carried(trial, self._likely(trial))
        while True:
            within, overrun_s = self._prober.added(trial, dilation)
            needed = _needed(within, most_added)
            if needed <= dilation and within.is_known(dilation, most_added):
                self._keep(trial, dilation, within, overrun_s)
                return self._found[key]
            # What the machine adds for want of time to compute ends with a somewhat greater dilation.
            dilation = self._carried(trial, max(_next(dilation), min(needed, 2 * dilation)))

    def _keep(self, trial: Trial, dilation: float, within: Added, overrun_s: float | None = None) -> None:
        key, over_usual = _key(trial), within.added_s / estimate.usually_added_s(trial, self._cluster.machine)
        self._found[key] = Found(dilation, within.step_s, within.added_s, within.error_s, overrun_s, over_usual)
        self._labels[key] = trial.method.label
        kept = {key: {"label": self._labels[key], **asdict(each)} for key, each in self._found.items()}
        with suppress(NoRoomError, UnwritableError):  # a trial, which is stored next, is worth more than these guesses
            write_whole(self._file, json.dumps(kept, indent=1).encode())

    def _carried(self, trial: Trial, dilation: float) -> float:
        """The least dilation, from this one on, at which the cluster carries the trial's links."""
        topology, resources = trial.expected.thinned, trial.case.cluster.resources
        for each in (each for each in LADDER if each >= dilation):
            try:
                self._cluster.check(topology.slowed(each), resources)
            except UsageError:
                if each == LADDER[-1]:
                    raise
            else:
                return each
        most = f"{100 * trial.case.train.most_added:g} %"
        raise MeasurementError(
            f"{trial.method.label}: at a dilation of {LADDER[-1]:g} this machine still adds more than {most} to a step"
            "; fewer workers, more CPUs, or less beside them would help"
        )


def _read(file: Path) -> tuple[dict[str, Found], dict[str, str]]:
    """What earlier starts of the run have found, and of which method.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        kept = json.loads(read_stored(file))
        labels = {key: str(values.pop("label")) for key, values in kept.items()}
        found = TypeAdapter(dict[str, Found]).validate_python(kept)
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        reason = in_words(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise UsageError(f"{file}: damaged ({reason}); move it away, and the run finds it anew") from None
    return found, labels


def _needed(within: Added, share: float) -> float:
    """The dilation at which what is added is such a share of a step."""
    return within.added_s / (share * within.step_s)


def _next(dilation: float) -> float:
    return rung(math.nextafter(dilation, math.inf))


def _key(trial: Trial) -> str:
    return f"{_case_key(trial.case)}-{_method_key(trial.method)}"


def _method_key(method: MethodSpec) -> str:
    steady = without_warmup(method)
    return _digest([steady.name, steady.params])


def _case_key(case: Case) -> str:
    """Of all that matters to how long a step takes."""
    learning = {"steps", "eval_every", "target", "timeout_s", "lr", "momentum", "weight_decay"}
    learning |= {"schedule", "pretrain", "checkpoint", "save_every"}
    return _digest(case.model_dump(mode="json", exclude={"train": learning}))


def _digest(thing: object) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:12]
