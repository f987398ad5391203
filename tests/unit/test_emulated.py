"""What clusters on emulated links share, on a machine whose answers are scripted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from harness.cluster import emulated
from harness.cluster.emulated import MOST_ANSWERS, EmulatedCluster
from harness.errors import UsageError
from harness.messages import CeilingMeasured, Message
from harness.network.topology import Topology
from harness.scenario.links import Link
from harness.scenario.schema import Resources

GBIT = 1e9


class Machine(EmulatedCluster):
    """Carries what it is told to, one answer after another."""

    def __init__(self, *ceilings_bps: float) -> None:
        super().__init__()
        self.answers = list(ceilings_bps)

    def _build(self, topology: Topology, resources: Resources) -> None:
        assert topology.slowest_bps is None, "what it carries shows where nothing is limited"

    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        assert task == "probe_ceiling"
        yield CeilingMeasured(ceiling_bps=self.answers.pop(0))


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


def test_once_it_has_answered_so_often_it_is_asked_no_more() -> None:
    machine = Machine(*[0.5 * GBIT] * MOST_ANSWERS)
    for _ in range(2):
        with pytest.raises(UsageError, match="up to 455 Mbit/s"):
            machine.check(star("1gbit"))
