"""How long trials will take on this machine, about: for who decides whether to start them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from baselines._calls import AllReduce
from baselines._state import numel
from harness.network.bounds import wire_share
from harness.network.measure import measured_once_s
from harness.plan.collectives import ENTRY_BYTES
from harness.plan.dilation import (
    CALM,
    FAR,
    LADDER,
    Dilation,
    Phase,
    look,
    phases_of_warmup,
    probe_steps,
    rung,
    tolerated,
)
from harness.plan.expected import lower_bound_s, network_of, shapes_of, state_of
from harness.plan.machine import Machine
from harness.plan.status import UNSETTLED_STEPS
from harness.plan.trial import Trial
from harness.scenario.optimisation import DECIDE_PRETRAINING
from harness.scenario.schema import DENSE, Train
from harness.units import format_time
from harness.workload import profile as profiles
from harness.workload import speed
from harness.workload.data import DATASETS

ASSUMED_FLOPS_PER_CORE = 3.5e10
"""Of a model that is too large to try it, or where workers compute elsewhere."""

IN_TURN = 1.75
"""How much longer workers train that share cores than if each did so alone, one after the other: for caches, and for
what DDP copies. (Small nets and a small GPT, four and eight workers on two cores: 1.6 to 1.9 times.)"""

PRETRAINING_S = 6.0
"""What a pre-training takes beside its steps and its two evaluations: for torch, and for the data."""

ADDED_S, MORE_ADDED_S, ADDED_S_PER_BYTE = 2e-3, 0.6e-3, 1e-10
"""What a machine adds to a step for each worker that shares a core: for its first collective, whose threads it wakes;
for each further one, which the first ones keep busy anyway; and for each byte on the wire, which it copies."""

CODECS_OF_A_CPU, OTHER_CODEC_S_PER_ENTRY = "digits-cnn-epyc", 5e-9
"""The profile that says how long a CPU encodes and decodes an entry, which it does in replays of any device; and for a
method that is not in it."""

CODEC_SHARE = 0.6
"""The part of that time by which a step gets longer: the rest passes while links or the device are waited for.
(ResNet152 and ViT-B/16, ternary codes and top-k: 0.2 to 0.9; ``pacbench reproduce``.)"""

FORWARD_SHARE = 1 / 3
"""Of the operations of a forward and backward pass."""

START_S = 1.0
"""What a trial takes beside its steps for each worker that shares a core with others."""

BUSIER = 2.2
"""How much longer workers compute that share cores, beyond taking turns: threads of one core, caches, and what is no
part of a profile."""

MOST_LATE = 0.01
"""Share of a step by which real computation may be late where time runs faster than it does. Workers that wait long for
slow links find cold caches, the colder the longer they wait. (Dense at 10 Mbit/s computed for 30 ms instead of 11, on a
machine that did nothing else.) What is added then is not the same at two dilations, and cannot be taken off.
"""


OFF_THE_CLOCK, OFF_THE_CLOCK_BY_EVALUATION = 24, 8
"""A trial's ranks meet before its first step, after its last one, and at each evaluation: together as long as so many
all-reduces of a few numbers. Where links are short that is nothing; six ranks on three continents, 24 times slower,
took 415 s for it, with two evaluations, and 10 s for such an all-reduce."""

LINK_S = 0.06
"""To build the links of a worker, and to ask it twice what they are. (On two cores networks of 2 to 128 workers took
0.03 s for each, and 0.03 s for each time that they were measured.)"""

AGAIN = 2.5
"""Of the first trials of each method on each case: for so much of their time, times ``train.most_added``, they are run
again, or slower than usual. Who allows much begins where what is added grows fast. (In the same run, a half.)"""


def total_s(trials: Sequence[Trial], machine: Machine) -> float:
    """Estimated wall time of these trials on a fresh cluster."""
    pretraining_s = sum(_pretraining_s(trial, machine) for trial in _pretrained(trials))
    networks = {
        (trial.case, trial.shrink, trial.round, _usual_slowing(trial, machine).steady): trial for trial in trials
    }
    networks_s = sum(_network_s(trial, steady, machine) for (*_, steady), trial in networks.items())
    kinds = {(trial.case, trial.method.label): trial for trial in trials}
    probing_s = sum(_probing_s(trial, machine) for trial in kinds.values())
    again_s = sum(_again_s(trial, machine) for trial in kinds.values())
    trials_s = sum(time_s(trial, machine) for trial in trials)
    return machine.bring_up_s + pretraining_s + networks_s + probing_s + again_s + trials_s


def total_as_text(trials: Sequence[Trial], machine: Machine) -> str:
    """The same in words; what waiting for lost packets takes is not known."""
    return f"{'at least' if lose_packets(trials) else 'about'} {format_time(total_s(trials, machine))}"


def lose_packets(trials: Iterable[Trial]) -> bool:
    """Whether the links of any do: then steps may be several times longer than is estimated."""
    return any(trial.expected.topology.loses_packets for trial in trials)


def waits_without_mean(trials: Iterable[Trial]) -> float | None:
    """The share of lone packets that are lost again in a burst, where it is so great that waiting for them has no mean.

    TCP waits twice as long each time (RFC 6298, section 5.5): at a half or more, each further try adds as much as the
    one before.
    """
    lost_again = max((trial.expected.topology.lost_again for trial in trials), default=0.0)
    return lost_again if lost_again >= 0.5 else None


def time_s(trial: Trial, machine: Machine) -> float:
    """Estimated wall time of a trial, from the method's byte formula and the model's operation count."""
    train = trial.case.train
    compute_s, evaluation_s = (0.0, 0.0) if train.replay else _training_s(trial, machine)
    slowing, start_s = _usual_slowing(trial, machine), machine.trial_s + START_S * max(0.0, _shared(trial, machine) - 1)
    dilated_s = sum(slowing.at(step) * seconds for step, seconds in enumerate(_all_steps_s(trial)))
    meeting_s = _meeting_s(trial, slowing.steady)
    if train.profile:
        return start_s + meeting_s + max(dilated_s, compute_s) + evaluation_s
    return start_s + meeting_s + dilated_s + compute_s + evaluation_s


def _shared(trial: Trial, machine: Machine) -> float:
    """How many workers have a core together."""
    return trial.case.cluster.workers / machine.cpu_count


def _meeting_s(trial: Trial, dilation: float) -> float:
    """Wall time of what ranks tell one another off the training clock."""
    train = trial.case.train
    evaluations = 0 if train.replay else _evaluations(train)
    once_s = network_of(trial.expected.topology, dilation).timing(AllReduce(ENTRY_BYTES)).took_s
    return (OFF_THE_CLOCK + OFF_THE_CLOCK_BY_EVALUATION * evaluations) * dilation * once_s


def least_dilation(trial: Trial, machine: Machine) -> float:
    """Below which a dilation need not be looked for: netem's timers know real time alone, and what computes needs CPUs.

    What does not fit into the device's time may be a part of the step.
    """
    least = 1.0 if trial.expected.topology.needs_netem else LADDER[0]
    if trial.case.train.replay:
        return least
    computing_s = _undelayed_s(trial, 0.0)
    needs_s = BUSIER * _times_slower(trial, machine) * computing_s * trial.case.cluster.workers / machine.cpu_count
    keeps_up = needs_s / (computing_s + trial.case.train.most_added * steady_s(trial))
    if keeps_up < 1:
        keeps_up = min(1.0, needs_s / (computing_s + MOST_LATE * steady_s(trial)))
    return max(least, keeps_up)


def _times_slower(trial: Trial, machine: Machine) -> float:
    """How many times as long workers compute here as the profile's device would; 1 where that is not known."""
    profile, passes_s = trial.expected.profile, _tried_s(trial.case.train, machine)
    return passes_s / (profile.forward_s + profile.backward_s) if profile and passes_s else 1.0


def _tried_s(train: Train, machine: Machine) -> float | None:
    """Seconds of a forward and backward pass on a core, as tried; None: workers compute elsewhere, or for too long."""
    return speed.passes_s(train.model, train.batch_size) if machine.is_here else None


def usual_dilation(trial: Trial, machine: Machine, slower: float = 1.0) -> float:
    """The dilation that a run begins to look at.

    Args:
        slower: what this machine adds to a step, over ``usually_added_s``, where that is known of other methods.
    """
    needed = slower * usually_added_s(trial, machine) / (CALM * trial.case.train.most_added * steady_s(trial))
    known_from = machine.error_s / (tolerated(trial.case.train.most_added) * steady_s(trial))
    carried_from = trial.expected.thinned.at_once_bps * trial.case.cluster.workers / machine.carried_bps
    return min(LADDER[-1], max(needed, known_from, carried_from, least_dilation(trial, machine)))


def usually_added_s(trial: Trial, machine: Machine) -> float:
    """Real seconds that machines like the one where it was counted add to a step of the steady state."""
    case, state = trial.case, state_of(trial.method)
    buckets = math.ceil(4 * numel(shapes_of(case.train.model)) / case.train.bucket_bytes)
    calls = state.calls(shapes_of(case.train.model), case.cluster.workers)
    collectives = len(calls) * (1 if state.syncs_in_end_step else buckets) / state.agrees_every
    sent_bytes = trial.expected.wire_bytes_per_step / trial.shrink
    moved_s = ADDED_S * min(1.0, collectives) + MORE_ADDED_S * max(0.0, collectives - 1)
    coded_s = CODEC_SHARE * _codec_s(trial) if case.train.replay else 0.0
    return _shared(trial, machine) * (moved_s + ADDED_S_PER_BYTE * sent_bytes + coded_s)


def _codec_s(trial: Trial) -> float:
    """What a CPU encodes and decodes in a step of a replay, the mean over all."""
    cpu = profiles.read(CODECS_OF_A_CPU)
    codec, entries = cpu.codec(trial.method, trial.case.cluster.workers), numel(shapes_of(trial.case.train.model))
    s_per_entry = codec.took_s / cpu.numel if codec else OTHER_CODEC_S_PER_ENTRY
    return s_per_entry * entries / trial.shrink / state_of(trial.method).agrees_every


def phases(trial: Trial, dilation: float, real_s: float) -> tuple[Phase, ...]:
    """The parts of a trial's warm-up that run less slowed than the steady state; see ``phases_of_warmup``."""
    return phases_of_warmup(_ramp_s(trial), dilation, real_s) if _ramp_s(trial) else ()


def steady_s(trial: Trial) -> float:
    """Seconds of a step of the steady state."""
    return _step_s(trial, trial.expected.lower_bound_s_per_step)


def _usual_slowing(trial: Trial, machine: Machine) -> Dilation:
    """How time runs in a trial, as far as that can be said before a run has looked."""
    if trial.found or not machine.finds_dilation(trial.case):
        return trial.slowing
    steady, ramp_s, looked = rung(usual_dilation(trial, machine)), _ramp_s(trial), None
    if machine.slows_single_steps(trial.expected.topology):
        first = max(len(ramp_s), UNSETTLED_STEPS)
        looked = look(first, trial.case.train.steps, steady, steady_s(trial), state_of(trial.method).agrees_every)
    if looked is None:
        return Dilation(steady=steady)
    real_s = max(steady * steady_s(trial), _baseline_s(trial, machine))
    return Dilation(steady=steady, phases=phases_of_warmup(ramp_s, steady, real_s), look=looked)


def _probing_s(trial: Trial, machine: Machine) -> float:
    """Wall time of the short trials that find a dilation, where a trial cannot show it itself."""
    slowing = _usual_slowing(trial, machine)
    if trial.found or not machine.finds_dilation(trial.case) or slowing.look:
        return 0.0
    period, step_s = state_of(trial.method).agrees_every, steady_s(trial)
    return sum(
        _network_s(trial, each, machine)
        + machine.trial_s
        + (UNSETTLED_STEPS + probe_steps(each, step_s, period)) * each * step_s
        for each in (slowing.steady, FAR * slowing.steady)
    )


def _again_s(trial: Trial, machine: Machine) -> float:
    """Wall time of a kind's first trials that do not count, or run slower than usual, until its dilation is found."""
    return AGAIN * trial.case.train.most_added * time_s(trial, machine) if machine.finds_dilation(trial.case) else 0.0


def _network_s(trial: Trial, dilation: float, machine: Machine) -> float:
    """Wall time for which a network is built, and measured before and after."""
    built = trial.expected.thinned.slowed(dilation)
    return machine.network_s + LINK_S * built.workers + 2 * measured_once_s(built, machine.cpu_count)


def _baseline_s(trial: Trial, machine: Machine) -> float:
    """Real seconds of a dense step on the same links, slowed as usual: what a warm-up's steps are slowed to."""
    dense = trial.model_copy(update={"method": DENSE})
    return rung(usual_dilation(dense, machine)) * steady_s(dense)


def _all_steps_s(trial: Trial) -> Iterator[float]:
    """Seconds of each step, one after the other, on links that may change meanwhile."""
    trace, clock_s, ramp_s = trial.case.link.trace, 0.0, _ramp_on_the_links_s(trial)
    fastest_bps = max(row.rate_bps for row in trace.rows) if trace else 0  # of which the bound is
    for step in range(trial.case.train.steps):
        on_the_links_s = ramp_s[step] if step < len(ramp_s) else trial.expected.lower_bound_s_per_step
        slower = fastest_bps / trace.at(clock_s).rate_bps if trace else 1.0
        step_s = _step_s(trial, slower * on_the_links_s)
        clock_s += step_s
        yield step_s


def _ramp_s(trial: Trial) -> list[float]:
    """Seconds of each step before the steady state."""
    return [_step_s(trial, on_the_links_s) for on_the_links_s in _ramp_on_the_links_s(trial)]


def _ramp_on_the_links_s(trial: Trial) -> list[float]:
    """The same, of the links alone."""
    ramp = min(state_of(trial.method).steady_from_step, trial.case.train.steps)
    return [lower_bound_s(trial.case, trial.method, step) for step in range(ramp)]


def _step_s(trial: Trial, on_the_links_s: float) -> float:
    """Seconds of a step in which the links are busy for so long: as predicted, or with nothing at the same time."""
    predicted_s, headers = trial.expected.predicted_step_s, wire_share(trial.case.link)
    if predicted_s is None:
        return _undelayed_s(trial, on_the_links_s)
    more_s = predicted_s - _undelayed_s(trial, headers * trial.expected.lower_bound_s_per_step)
    return max(on_the_links_s, _undelayed_s(trial, headers * on_the_links_s) + more_s)


def _undelayed_s(trial: Trial, on_the_links_s: float) -> float:
    profile = trial.expected.profile
    if profile is None:
        return on_the_links_s + (_device_s(trial) if trial.case.train.profile else 0.0)
    codec = profile.codec(trial.method, trial.case.cluster.workers)
    codec_s = codec.took_s if codec else 0.0
    passes_s = trial.case.train.accumulate * (profile.forward_s + profile.backward_s)
    return on_the_links_s + passes_s + profile.optimizer_s + codec_s


def _device_s(trial: Trial) -> float:
    """What a step takes a worker that has a core for itself, of which there is no profile yet."""
    compute_s, _ = _training_s(trial, Machine(cpu_count=trial.case.cluster.workers))
    return compute_s / trial.case.train.steps


def _training_s(trial: Trial, machine: Machine) -> tuple[float, float]:
    """Seconds of all steps' computation and of all evaluations, by what a pass takes here, or by its operations."""
    train, workers = trial.case.train, trial.case.cluster.workers
    in_turn, at_once = (IN_TURN, machine.cpu_count) if workers > machine.cpu_count else (1.0, workers)
    compute_s = train.steps * train.samples_per_step * _sample_s(train, machine) * workers * in_turn / at_once
    return compute_s, _evaluations(train) * _evaluation_s(train, machine) / at_once


def _evaluations(train: Train) -> int:
    """How often a training evaluates: also before its first step."""
    return 1 + math.ceil(train.steps / train.eval_every)


def _evaluation_s(train: Train, machine: Machine) -> float:
    """Seconds of one core for the whole test set."""
    test_size = DATASETS[train.dataset].in_folder(train.data_dir).test_size
    return FORWARD_SHARE * _sample_s(train, machine) * test_size


def _sample_s(train: Train, machine: Machine) -> float:
    """Seconds of one core for a forward and backward pass of a sample."""
    passes_s = _tried_s(train, machine)
    return passes_s / train.batch_size if passes_s else speed.flops_per_sample(train.model) / ASSUMED_FLOPS_PER_CORE


def _pretrained(trials: Iterable[Trial]) -> Iterable[Trial]:
    """A trial for each pre-training; one that was made before is made no more, which only its run looks up."""
    return {
        (trial.case.train.model_dump_json(include=DECIDE_PRETRAINING), trial.case.cluster.workers, trial.seed): trial
        for trial in trials
        if trial.case.train.pretrain
    }.values()


def _pretraining_s(trial: Trial, machine: Machine) -> float:
    """Wall time of a training by one process on what all workers together would learn from."""
    train, asked = trial.case.train, trial.case.train.pretrain
    assert asked
    samples = asked.steps * train.samples_per_step * trial.case.cluster.workers
    return PRETRAINING_S + samples * _sample_s(train, machine) + 2 * _evaluation_s(train, machine)
