"""Traces: both formats, what is refused, and what the player is told to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.netns import NetnsCluster
from harness.cluster.protocol import SideTask
from harness.errors import UsageError
from harness.messages import Message
from harness.network import link_requests, player
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.scenario import traces
from harness.scenario.links import Link
from harness.scenario.load import load
from harness.scenario.schema import NO_LIMITS, Scenario

CSV = "t_s,rate_bps,delay_s,loss\n0,1000000000,0.001,0.01\n2.5,50000000,0.02,0.02\n"


def test_csv_has_a_row_a_change(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("# a remark\n" + CSV)
    assert traces.read(tmp_path / "x.csv") == {
        "rows": [
            {"t_s": 0.0, "rate_bps": 10**9, "delay_s": 0.001, "loss": 0.01},
            {"t_s": 2.5, "rate_bps": 5 * 10**7, "delay_s": 0.02, "loss": 0.02},
        ],
        "period_s": None,
    }


def test_mahimahis_chances_become_rates_in_slots_and_begin_anew(tmp_path: Path) -> None:
    # 200 packets in the first slot of 0.2 s, none in the second, 50 in the third: 12 Mbit/s, nothing, 3 Mbit/s.
    lines = [*range(200), *range(400, 600, 4)]
    (tmp_path / "x.mahi").write_text("\n".join(map(str, lines)) + "\n")
    found = traces.read(tmp_path / "x.mahi")
    assert [row["rate_bps"] for row in found["rows"]] == [12_000_000, traces.LEAST_BPS, 3_000_000]
    assert [row["t_s"] for row in found["rows"]] == pytest.approx([0.0, 0.2, 0.4])
    assert found["period_s"] == pytest.approx(0.6)


def test_the_mean_of_a_trace_weighs_each_row_by_how_long_it_lasts() -> None:
    rows = [{"t_s": 0.0, "rate_bps": 100, "delay_s": 0.01}, {"t_s": 3.0, "rate_bps": 500, "delay_s": 0.05}]
    again = Link.model_validate({"trace": {"rows": rows, "period_s": 4.0}}).trace
    assert again
    assert again.mean.rate_bps == 200
    assert again.mean.delay_s == pytest.approx(0.02)
    ends = again.model_copy(update={"period_s": None})
    assert (ends.mean.rate_bps, ends.mean.loss) == (300, None), "the last row counts as the one before it"
    assert ends.model_copy(update={"rows": ends.rows[:1]}).mean.rate_bps == 100


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least one row"),
        ("t_s,speed\n0,1\n", "columns t_s, rate_bps"),
        ("t_s,rate_bps\n0,fast\n", "row 1"),
        ("0\nsoon\n", "a millisecond in each line"),
        ("t_s,rate_bps\n1,5000000\n", "times from 0 on"),
        ("t_s,rate_bps\n0,5000000\n0,6000000\n", "times that grow from row to row"),
        ("t_s,rate_bps,delay_s\n0,5000000,0\n1,5000000,0.1\n", "rows with and without"),
        ("t_s,rate_bps\n0,0\n", "a rate above 0"),
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        load("quickstart", [f"link.trace={path}"])
    assert "link.trace" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trace_is_found_beside_the_scenario_and_kept_with_what_was_run(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(CSV)
    (tmp_path / "mine.toml").write_text('[link]\ntrace = "x.csv"\n[[methods]]\nname = "dense"\n')
    original = load(str(tmp_path / "mine.toml"))
    (tmp_path / "x.csv").unlink()
    assert Scenario.model_validate_json(original.model_dump_json(by_alias=True)) == original
    link = original.cases[0].link
    assert link.pipe("w0", "up").rate_bps == 10**9, "the first row is in force from the start"
    assert link.pipe("w0", "up").loss == 0.01


@pytest.fixture
def changing(tmp_path: Path) -> Topology:
    (tmp_path / "x.csv").write_text("t_s,rate_bps\n0,10000000\n1,80000000\n3,20000000\n")
    case = load("quickstart", [f"link.trace={tmp_path / 'x.csv'}", "cluster.workers=2"]).cases[0]
    return Topology(workers=2, link=case.link)


def test_each_change_reaches_both_directions_of_every_link_by_a_command_that_keeps_the_queue(
    changing: Topology,
) -> None:
    lines = [str(command) for command in changing.change(1)]
    assert lines == [
        f"tc -n {node} qdisc change dev {interface} root tbf rate 80000000bit burst 40000 limit 3040000"
        for worker in range(2)
        for node, interface in ((f"w{worker}", "eth0"), ("switch", f"to{worker}"))
    ]


def test_trunks_stay_as_they_are_and_segments_fit_the_slowest_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("t_s,rate_bps\n0,1000000000\n1,50000000\n")
    settings = [f"link.trace={tmp_path / 'x.csv'}", "cluster.workers=2", "fabric.groups=a b", "fabric.trunk.delay=10ms"]
    case = load("quickstart", settings).cases[0]
    found = Topology(workers=2, link=case.link, fabric=case.fabric)
    assert not any("trunk" in str(command) for command in found.change(1))
    assert any("eth0 gso_max_segs 6 " in str(command) for command in found.build()), "a bucket of 50 Mbit/s"


def test_the_best_of_links_that_change_is_the_same_whatever_was_asked_before() -> None:
    rows = [{"t_s": 0, "rate_bps": 10**6}, {"t_s": 9, "rate_bps": 10**8}]
    link = Link.model_validate({"delay": "5ms", "trace": {"rows": rows}})
    fresh, asked = Topology(workers=2, link=link), Topology(workers=2, link=link)
    assert {pipe.rate_bps for pipe in asked.pipes} == {10**6}
    assert {pipe.rate_bps for pipe in asked.at_best.pipes} == {10**8}
    assert asked.most_in_flight_bytes == fresh.most_in_flight_bytes
    assert asked.bound_s(1e6, 1e6) == fresh.bound_s(1e6, 1e6) == pytest.approx(0.08 + 0.005)


def test_windows_and_machines_are_judged_by_the_best_that_links_become(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("t_s,rate_bps,delay_s\n0,20000000,0.01\n1,400000000,0.025\n")
    case = load("quickstart", [f"link.trace={tmp_path / 'x.csv'}", "cluster.workers=2"]).cases[0]
    found = Topology(workers=2, link=case.link)
    assert found.at_once_bps == 400e6
    assert found.most_in_flight_bytes == pytest.approx(400e6 / 8 * 4 * 0.025)


def test_nothing_beats_the_best_that_the_links_ever_are(changing: Topology) -> None:
    assert changing.bound_s(1e6, 1e6) == pytest.approx(0.1)
    assert changing.ring_bound_s(1e6) == pytest.approx(0.1)


def test_a_trace_ends_with_its_last_row_or_begins_anew(changing: Topology) -> None:
    assert list(player.schedule(changing)) == [(0.0, 0), (1.0, 1), (3.0, 2)]
    assert changing.link.trace
    again = changing.link.trace.model_copy(update={"period_s": 4.0})
    repeated = changing.model_copy(update={"link": changing.link.model_copy(update={"trace": again})})
    assert list(islice(player.schedule(repeated), 5)) == [(0.0, 0), (1.0, 1), (3.0, 2), (4.0, 0), (5.0, 1)]


class Waiting:
    """A clock on which each wait takes an hour; in the tenth workers begin to train."""

    def __init__(self, start_file: Path) -> None:
        self._start_file, self._hours = start_file, 0

    def monotonic(self) -> float:
        return 3600.0 * self._hours

    def sleep(self, seconds: float) -> None:
        self._hours += 1
        if self._hours == 10:
            self._start_file.touch()


def test_a_trace_waits_for_workers_that_evaluate_for_long_before_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Waiting(tmp_path / "start")
    monkeypatch.setattr(link_requests, "time", clock)
    link_requests.wait_for(tmp_path / "start")
    assert clock.monotonic() == 10 * 3600.0


class Listening:
    """An agent that only remembers what it was asked to run."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any], list[SideTask]]] = []

    def request(self, message: Message, timeout_s: float) -> None:
        """Nothing is done."""

    def task(
        self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float, beside: list[SideTask]
    ) -> Iterator[Message]:
        self.asked.append((task, spec, beside))
        return iter(())


def test_the_cluster_says_where_ranks_meet_and_which_file_starts_the_trace(changing: Topology) -> None:
    cluster, agent = NetnsCluster(), Listening()
    cluster._agent = agent  # type: ignore[assignment]
    still = changing.model_copy(update={"link": changing.link.model_copy(update={"trace": None})})
    for topology, task in ((changing, "train"), (changing, "train"), (changing, "all_reduce"), (still, "train")):
        cluster._current = (topology, NO_LIMITS, Readings(links=(), rtt_s=(), took_s=0.0))
        list(cluster.run(task, {"port": 29500}, 1.0))
    place = {"port": 29500, "interface": "eth0", "meeting_address": "198.18.128.2"}
    assert all(place.items() <= spec.items() for _, spec, _ in agent.asked)
    files = [spec.get("start_file") for _, spec, _ in agent.asked]
    played = [[side.spec["start_file"] for side in beside if side.task == "play"] for _, _, beside in agent.asked]
    assert played == [[files[0]], [files[1]], [], []]
    assert files[2:] == [None, None]
    assert len(set(files[:2])) == 2, "a file of an earlier trial would start the next one at once"
