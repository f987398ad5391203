"""What clusters on emulated links share, on a machine whose answers are scripted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from harness.cluster import emulated, universe
from harness.cluster.emulated import MOST_ANSWERS, EmulatedCluster, as_json
from harness.cluster.universe import Universe
from harness.errors import MeasurementError, UsageError
from harness.messages import CeilingMeasured, Check, Failed, LinksMeasured, Message
from harness.network.measure import counting_s, measuring_s
from harness.network.readings import LinkReading, Readings
from harness.network.topology import Topology
from harness.scenario.links import Link
from harness.scenario.schema import Resources

GBIT = 1e9


class Machine(EmulatedCluster):
    """Carries what it is told to, one answer after another; so do its links."""

    def __init__(self, *ceilings_bps: float) -> None:
        super().__init__()
        self.answers = list(ceilings_bps)
        self.fails = False

    def _build(self, topology: Topology, resources: Resources) -> None:
        self.built = topology

    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        self.timeout_s = timeout_s
        if self.fails:
            yield Failed(node="w1", reason="it has no eth0")
        if task == "probe_links":
            yield LinksMeasured(readings=readings(self.answers.pop(0)).model_dump_json())
            return
        assert task == "probe_ceiling"
        assert self.built.slowest_bps is None, "what it carries shows where nothing is limited"
        yield CeilingMeasured(ceiling_bps=self.answers.pop(0))


def readings(rate_bps: float) -> Readings:
    """Of one link that was asked to carry 1 Gbit/s."""
    complaints = () if rate_bps >= GBIT else (f"measured {rate_bps:.0f}",)
    link = LinkReading(
        worker=0,
        link="w0",
        direction="up",
        rate_bps_asked=int(GBIT),
        rate_bps_measured=rate_bps,
        complaints=complaints,
    )
    return Readings(links=(link,), rtt_s=(), took_s=1.0)


@pytest.fixture(autouse=True)
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were made, none of which takes any time."""
    made: list[float] = []
    monkeypatch.setattr(emulated.time, "sleep", made.append)
    return made


def star(rate: str) -> Topology:
    return Topology(workers=4, link=Link.model_validate({"rate": rate}))


def test_a_rate_that_is_carried_is_asked_for_once(pauses_s: list[float]) -> None:
    machine = Machine(2 * GBIT)
    machine.check(star("1gbit"))
    machine.check(star("1500mbit"))
    assert machine.answers == pauses_s == []


@pytest.mark.parametrize("ceilings_bps", [(0.9 * GBIT, 2 * GBIT), (0.9 * GBIT, 0.8 * GBIT, 1.2 * GBIT)])
def test_a_machine_that_is_busy_for_a_moment_is_asked_again(
    ceilings_bps: tuple[float, ...], pauses_s: list[float]
) -> None:
    machine = Machine(*ceilings_bps)
    machine.check(star("1gbit"))
    assert machine.answers == []
    assert len(pauses_s) == len(ceilings_bps) - 1


def test_the_best_of_all_answers_counts_before_a_rate_is_refused() -> None:
    machine = Machine(0.5 * GBIT, 0.99 * GBIT, 0.7 * GBIT)
    with pytest.raises(UsageError, match=r"link\.rate: found '1 Gbit/s'; allowed: up to 900 Mbit/s, what this machine"):
        machine.check(star("1gbit"))
    machine.check(star("800mbit"))
    assert machine.answers == []


def test_a_refusal_speaks_of_rates_as_they_were_asked_for_and_not_slowed() -> None:
    machine = Machine(*[1.77 * GBIT] * MOST_ANSWERS)
    machine.check(star("6400mbit").slowed(4))
    with pytest.raises(UsageError, match=r"found '8 Gbit/s'; allowed: up to 6\.44 Gbit/s, .* at a dilation of 4"):
        machine.check(star("8gbit").slowed(4))


def test_a_kernel_without_netem_is_told_of_as_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_lines(program: str, *_: object) -> None:
        if program == "tc":
            raise MeasurementError("Error: Specified qdisc kind is unknown.")

    monkeypatch.setattr(universe, "run_lines", run_lines)
    slowed = Topology(workers=2, link=Link.model_validate({"rate": "1gbit", "delay": "5ms"})).slowed(1.5)
    with pytest.raises(UsageError, match=r"link\.delay: found '5 ms'; allowed: nothing, since .* has no netem"):
        Universe.__new__(Universe).check(Check(topology=as_json(slowed)))  # a whole one mounts over this machine's


def test_a_trial_of_queues_takes_its_node_away_also_where_it_could_not_be_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes: set[str] = set()

    def run_lines(program: str, node: str | None, lines: list[str]) -> None:
        if node:
            raise MeasurementError("RTNETLINK answers: Cannot allocate memory")
        what, name = lines[0].removeprefix("netns ").split()
        nodes.add(name) if what == "add" else nodes.remove(name)

    monkeypatch.setattr(universe, "run_lines", run_lines)
    with pytest.raises(MeasurementError, match="Cannot allocate memory"):
        Universe.__new__(Universe).check(Check(topology=as_json(star("1gbit"))))
    assert nodes == set()


def test_once_it_has_answered_so_often_it_is_asked_no_more() -> None:
    machine = Machine(*[0.5 * GBIT] * MOST_ANSWERS)
    for _ in range(2):
        with pytest.raises(UsageError, match="up to 455 Mbit/s"):
            machine.check(star("1gbit"))


def test_what_links_take_by_themselves_is_waited_for_beside_all_else() -> None:
    lossy = Topology(workers=4, link=Link.model_validate({"rate": "100kbit", "loss": "0.5%"}))
    for topology in (star("1gbit"), lossy, star("8kbit").slowed(2.0)):
        machine = Machine(GBIT)
        machine.use(topology)
        by_itself_s = measuring_s(topology, machine.machine.cpu_count)
        assert machine.timeout_s == machine.probe_timeout_s * topology.dilation + by_itself_s
    assert measuring_s(lossy, 2) > counting_s(lossy) > counting_s(star("1gbit")) == 0


@pytest.mark.parametrize("measured_bps", [(GBIT,), (0.9 * GBIT, GBIT), (0.9 * GBIT, 0.8 * GBIT, GBIT)])
def test_links_that_a_busy_machine_made_seem_slow_are_measured_again(measured_bps: tuple[float, ...]) -> None:
    machine = Machine(*measured_bps, *measured_bps)
    assert machine.use(star("1gbit")).slowest_bps == GBIT
    assert machine.verify().slowest_bps == GBIT
    assert machine.answers == []


def test_links_that_never_are_what_was_asked_are_refused_and_not_used_again() -> None:
    slow = [0.7 * GBIT, 0.8 * GBIT, 0.9 * GBIT]
    with pytest.raises(MeasurementError, match="measured 900000000"):
        Machine(*slow).use(star("1gbit"))
    with pytest.raises(MeasurementError, match=r"measured 900000000 \(at a dilation of 8\)"):
        Machine(*slow).use(star("8gbit").slowed(8))
    machine = Machine(GBIT, *slow)
    machine.use(star("1gbit"))
    assert machine.verify().complaints() == ["measured 900000000"]
    with pytest.raises(MeasurementError, match="they are gone"):
        machine.verify()


def test_links_that_cannot_be_measured_are_not_used_again() -> None:
    machine = Machine(GBIT, GBIT)
    machine.use(star("1gbit"))
    machine.fails = True
    with pytest.raises(MeasurementError, match="the links cannot be measured: w1: it has no eth0"):
        machine.verify()
    machine.fails = False
    machine.use(star("1gbit"))
    assert machine.answers == [], "they were measured anew"
