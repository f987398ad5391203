"""The star as commands: addresses, queues, and the check of what the kernel has."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from harness.network import datagrams
from harness.network.addresses import address, gateway
from harness.network.bounds import ring_transfer_s, wire_share
from harness.network.datagrams import Trip, collect, counts_of
from harness.network.probe_protocol import PING, PINGED, SO_TIMESTAMPNS, receive
from harness.network.qdisc import burst_bytes, check_read_back, netem_limit, packets_in_a_segment, qdisc
from harness.network.readings import Counts, Readings
from harness.network.responder import _Answering
from harness.network.tolerances import (
    HARMLESS_CORRUPTION,
    complaints_of,
    loss_interval,
    mean_burst,
    share_interval,
)
from harness.network.topology import Topology
from harness.scenario.links import Fabric, Link, Pipe
from harness.scenario.properties import GilbertElliott
from harness.worker.meter import Transport, own_sockets, parse_transport, yardstick_s


def link(rate: str = "100mbit", **fields: object) -> Link:
    return Link.model_validate({"rate": rate, **fields})


@given(st.integers(0, 127))
def test_each_worker_shares_a_subnet_with_its_gateway_only_inside_the_benchmark_range(worker: int) -> None:
    subnet = ipaddress.ip_interface(f"{address(worker)}/30").network
    assert ipaddress.ip_address(gateway(worker)) in subnet
    assert subnet.subnet_of(ipaddress.ip_network("198.18.0.0/15"))
    assert {address(worker), gateway(worker)} == {str(host) for host in subnet.hosts()}
    others = {address(other) for other in range(128)} | {gateway(other) for other in range(128)}
    assert len(others) == 256


@given(st.integers(2, 128))
def test_both_directions_of_every_link_get_exactly_one_queue(workers: int) -> None:
    topology = Topology(workers=workers, link=link())
    lines = [str(command) for command in topology.shape()]
    assert len(lines) == len(set(lines)) == 2 * workers
    for worker in range(workers):
        assert f"tc -n w{worker} qdisc replace dev eth0 root {qdisc(topology.link)}" in lines
        assert f"tc -n switch qdisc replace dev to{worker} root {qdisc(topology.link)}" in lines


def test_workers_reach_each_other_by_routes_that_name_their_congestion_control() -> None:
    topology = Topology(workers=2, link=link(congestion_control="reno"))
    routes = [str(command) for command in topology.build() if "route" in command.line]
    assert routes == [f"ip -n w{worker} route add default via {gateway(worker)} congctl reno" for worker in range(2)]


@pytest.mark.parametrize(("dilation", "waits"), [(4.0, " rto_min 800ms"), (1.0, ""), (0.25, "")])
def test_tcp_waits_as_many_times_longer_as_links_are_slower(dilation: float, waits: str) -> None:
    built = Topology(workers=2, link=link()).slowed(2.0).slowed(dilation / 2)
    assert built.dilation == dilation
    (route,) = (str(command) for command in built.build() if command.line.startswith("route") and command.node == "w0")
    assert route == f"ip -n w0 route add default via {gateway(0)} congctl cubic{waits}"


def test_nothing_is_ever_done_to_the_place_the_nodes_are_made_from_but_making_nodes() -> None:
    topology = Topology(workers=3, link=link())
    outside = [command.line for command in topology.build() + topology.shape() if command.node is None]
    assert all(line.startswith(("netns add ", "link add to")) for line in outside)


@given(st.integers(100_000, 10**10))
def test_the_bucket_holds_two_milliseconds_of_the_rate_and_each_segment_that_is_built(rate_bps: int) -> None:
    burst = burst_bytes(link(f"{rate_bps}bit"))
    assert burst >= rate_bps / 8 * 0.002
    packets = packets_in_a_segment([rate_bps], mtu_bytes=1500)
    assert burst >= (1514 * packets if packets else 64 * 1024)


def test_segments_fit_into_the_smallest_bucket_that_a_link_ever_has() -> None:
    assert packets_in_a_segment([], 1500) is None
    assert packets_in_a_segment([10**9], 1500) is None
    assert packets_in_a_segment([10**9, 10**7], 1500) == 6
    assert packets_in_a_segment([10**7], 9000) == 1
    built = [str(command) for command in Topology(workers=2, link=link("20mbit")).build()]
    assert sum("gso_max_segs 6 " in line for line in built) == 4
    for slows_by, limited in ((1.0, False), (4.0, True)):
        lines = map(str, Topology(workers=2, link=link("300mbit"), slows_by=slows_by).build())
        assert any("gso_max_segs 6 " in line for line in lines) == limited
    unlimited = [str(command) for command in Topology(workers=2, link=link("1gbit")).build()]
    assert sum("gso_max_segs 65535 " in line for line in unlimited) == 4, "what an earlier topology said is taken back"


def test_an_asked_bucket_is_taken() -> None:
    assert burst_bytes(link(burst="100kB")) == 100_000
    assert "burst 100000 " in qdisc(link(burst="100kB"))


UP = next(Topology(workers=2, link=link()).queues())


def shown(rate_bps: int, burst: int, kind: str = "tbf") -> list[dict[str, object]]:
    return [{"kind": kind, "dev": "eth0", "root": True, "options": {"rate": rate_bps // 8, "burst": burst}}]


def test_what_the_kernel_shows_must_be_what_was_asked() -> None:
    check_read_back(link(), UP, shown(10**8, 50_000))
    check_read_back(link("unshaped"), UP, [{"kind": "pfifo", "dev": "eth0", "root": True}])
    for wrong, says in [
        (shown(99_000_000, 50_000), "kernel has 99000000 bit/s"),
        (shown(10**8, 32_768), "32768 bytes"),
        (shown(10**8, 50_000, kind="noqueue"), "the kernel has noqueue"),
        ([], "the kernel has None"),
    ]:
        with pytest.raises(ValueError, match=says):
            check_read_back(link(), UP, wrong)


def test_what_may_wait_is_what_was_asked_and_no_segment_is_longer() -> None:
    asked = link("100mbit", queue="15kB")
    assert "limit 15000" in qdisc(asked)
    assert any("gso_max_segs 1 " in str(command) for command in Topology(workers=2, link=asked).build())


def test_a_full_segment_carries_1448_of_1514_bytes() -> None:
    assert wire_share(link()) == pytest.approx(1514 / 1448)


def test_a_ring_of_four_workers_sends_one_and_a_half_times_the_tensor() -> None:
    assert ring_transfer_s(1_000_000, 4, 8_000_000) == pytest.approx(1.5)


FLAT_PIPES = st.builds(
    lambda **fields: Pipe.model_validate(fields),
    rate=st.sampled_from(["1mbit", "100mbit", "5gbit", "unshaped"]),
    delay=st.sampled_from(["0s", "0.5ms", "20ms", "100ms"]),
    loss=st.sampled_from([0.0, 0.0001, 0.01, 0.05]),
    duplicate=st.sampled_from([0.0, 0.01]),
    corrupt=st.sampled_from([0.0, 0.001]),
)


@given(FLAT_PIPES)
def test_a_queue_is_one_line_that_says_all_that_was_asked_and_is_read_back(pipe: Pipe) -> None:
    words = qdisc(pipe).split()
    assert words[0] == ("netem" if pipe.needs_netem else "tbf" if pipe.rate_bps else "pfifo")
    if not pipe.needs_netem:
        return
    options: dict[str, object] = {"limit": int(words[words.index("limit") + 1])}
    for name, part in (("delay", "delay"), ("duplicate", "duplicate"), ("corrupt", "corrupt"), ("rate", "rate")):
        if name in words:
            options[part] = {part: _number(words[words.index(name) + 1])}
    if "random" in words:
        options["loss-random"] = {"loss": _number(words[words.index("random") + 1])}
    queue = replace(UP, pipe=pipe)
    entry = {"kind": "netem", "dev": "eth0", "root": True, "options": options}
    check_read_back(pipe, queue, [entry])
    with pytest.raises(ValueError, match="the kernel has 0.123"):
        check_read_back(pipe, queue, [{**entry, "options": {**options, "loss-random": {"loss": 0.123}}}])


def _number(word: str) -> float:
    for unit, factor in (("us", 1e-6), ("%", 0.01), ("bit", 1 / 8)):
        if word.endswith(unit):
            return float(word.removesuffix(unit)) * factor
    raise AssertionError(word)


@given(FLAT_PIPES)
def test_netem_holds_what_is_on_its_way_and_never_drops_it(pipe: Pipe) -> None:
    in_flight = (pipe.rate_bps or 0) / 8 * pipe.delay_s / 1514
    assert netem_limit(pipe, 1500) >= 2 * in_flight + 1000 - 1


def test_every_option_of_netem_is_written_as_tc_reads_it() -> None:
    line = qdisc(
        link(
            delay="5ms",
            jitter="1ms",
            jitter_correlation="25%",
            loss_bursts={"p": "1%", "r": "25%", "loss_bad": 0.7, "loss_good": 0.001},
            duplicate=0.001,
            corrupt=0.0001,
            reorder="2%",
            queue="150kB",
        )
    )
    assert line == (
        "netem limit 175 delay 5000us 1000us 25% distribution normal loss gemodel 1% 25% 70% 0.1% "
        "duplicate 0.1% corrupt 0.01% reorder 2% rate 100000000bit"
    )


def test_directions_and_workers_differ_where_they_are_told_to() -> None:
    mixed = link(up={"rate": "20mbit"}, delay="5ms", workers={"w2": {"rate": "10mbit", "down": {"loss": "1%"}}})
    topology = Topology(workers=3, link=mixed)
    found = {(queue.link, queue.direction): queue.pipe for queue in topology.queues()}
    assert {place: pipe.rate_bps for place, pipe in found.items()} == {
        ("w0", "up"): 20_000_000,
        ("w0", "down"): 100_000_000,
        ("w1", "up"): 20_000_000,
        ("w1", "down"): 100_000_000,
        ("w2", "up"): 10_000_000,
        ("w2", "down"): 10_000_000,
    }
    assert [place for place, pipe in found.items() if pipe.loss] == [("w2", "down")]
    assert all(pipe.delay_s == 0.005 for pipe in found.values())
    assert topology.rtt_s(0, 2) == pytest.approx(0.02)
    assert topology.bound_s(1e6, 1e6) == pytest.approx(8e6 / 10e6 + 0.005), "the straggler's link decides"
    assert "w2 (10 Mbit/s" in topology.describe_extras()


def racks(**fabric: object) -> Topology:
    return Topology.model_validate({"workers": 8, "link": {"rate": "100mbit"}, "fabric": {"groups": "r0 r1", **fabric}})


def test_a_racks_trunk_shares_the_sum_of_its_hosts_and_bounds_every_collective() -> None:
    topology = racks(oversubscription=8.0)
    trunks = [queue for queue in topology.queues() if queue.worker is None]
    assert {(queue.link, queue.pipe.rate_bps) for queue in trunks} == {("r0", 50_000_000), ("r1", 50_000_000)}
    assert [queue.link for queue in topology.path(0, 7)] == ["w0", "r0", "r1", "w7"]
    assert [queue.link for queue in topology.path(0, 3)] == ["w0", "w3"]
    assert topology.bound_s(1e6, 1e6) == pytest.approx(8e6 / 50e6)
    assert topology.ring_bound_s(1e6) == pytest.approx(2 * 7 / 8 * 8e6 / 50e6)
    assert racks(oversubscription=1.0).bound_s(1e6, 1e6) == pytest.approx(8e6 / 100e6)


def test_regions_meet_by_their_own_trunks_and_propagation_is_part_of_the_bound() -> None:
    topology = Topology.model_validate(
        {
            "workers": 6,
            "link": {"rate": "1gbit"},
            "fabric": {
                "groups": "tokyo virginia ireland",
                "mesh": True,
                "trunk": {"rate": "200mbit"},
                "trunks": {"tokyo virginia": {"delay": "75ms"}, "tokyo ireland": {"delay": "100ms"}},
            },
        }
    )
    assert topology.rtt_s(0, 2) == pytest.approx(0.15)
    assert topology.rtt_s(1, 5) == pytest.approx(0.2)
    assert topology.rtt_s(2, 4) == 0
    assert topology.bound_s(100.0, 100.0) == pytest.approx(0.1, rel=0.01), "nobody hears of tokyo earlier"
    ring_s = 2 * 5 / 6 * (0.075 + 0.1)
    assert topology.ring_bound_s(100.0) == pytest.approx(ring_s)


def test_of_a_mesh_only_all_trunks_of_a_group_together_bound_what_passes() -> None:
    """A ring goes from each group to the next, and never over the slow trunk."""
    fabric = {"groups": "a b c d", "mesh": True, "trunk": {"rate": "200mbit"}, "trunks": {"a c": {"rate": "1mbit"}}}
    topology = Topology.model_validate({"workers": 8, "link": {"rate": "1gbit"}, "fabric": fabric})
    assert topology.bound_s(1e6, 1e6) == pytest.approx(8e6 / 401e6)
    assert topology.bound_s(2 * 7 / 8 * 1e6, 1e6) <= topology.ring_bound_s(1e6)
    pair = Topology.model_validate(
        {"workers": 8, "link": {"rate": "1gbit"}, "fabric": {"groups": "a b", "mesh": True, "trunk": {"rate": "1mbit"}}}
    )
    assert pair.bound_s(1e6, 1e6) == pytest.approx(8.0), "there is no way round"


def test_the_last_byte_of_a_ring_must_still_reach_the_neighbour() -> None:
    topology = Topology.model_validate({"workers": 3, "link": {"rate": "10mbit", "delay": "5ms"}})
    assert topology.ring_bound_s(937_500) == pytest.approx(1.0 + 2 * 0.005)
    late = {"workers": {"w1": {"up": {"delay": "50ms"}}}}
    topology = Topology.model_validate({"workers": 3, "link": {"rate": "10mbit", **late}})
    assert topology.ring_bound_s(937_500) == pytest.approx(1.0 + 0.05)


@given(st.integers(2, 24), st.integers(2, 5), st.booleans())
def test_whoever_talks_to_whom_finds_a_route_and_each_address_is_one_ends(
    workers: int, groups: int, mesh: bool
) -> None:
    names = " ".join(f"g{number}" for number in range(min(groups, workers)))
    topology = Topology.model_validate({"workers": workers, "link": {}, "fabric": {"groups": names, "mesh": mesh}})
    ends = [end.address for wire in topology.wires for end in (wire.near, wire.far)]
    assert len(set(ends)) == len(ends)
    assert all(ipaddress.ip_address(end) in ipaddress.ip_network("198.18.0.0/15") for end in ends)
    routes = {(command.node, command.line.split()[2]) for command in topology.build() if "route add" in command.line}
    neighbours = {(queue.node, queue.to.address) for queue in topology.queues()}
    for sender in range(workers):
        for receiver in range(workers):
            if sender == receiver:
                continue
            path = topology.path(sender, receiver)
            assert [queue.to.node for queue in path] == [queue.node for queue in path[1:]] + [f"w{receiver}"]
            for queue in path[1:]:
                known = (queue.node, address(receiver)) in neighbours or (
                    queue.node,
                    f"{address(receiver)}/32",
                ) in routes
                assert known or queue.node == "switch"


@pytest.mark.parametrize(
    ("link", "fabric", "at_once_mbit"),
    [
        ({"rate": "1gbit"}, {}, 1000),
        ({"rate": "1gbit", "workers": {"w3": {"rate": "10mbit"}}}, {}, 1000),
        ({"rate": "unshaped"}, {}, 0),
        ({"rate": "1gbit"}, {"groups": "a b", "trunk": {"rate": "200mbit"}}, 200),
        ({"rate": "1gbit"}, {"groups": "a b", "trunk": {"rate": "10gbit"}}, 10_000 / 6),
        ({"rate": "1gbit"}, {"groups": "a b", "trunk": {"rate": "20mbit"}}, 1000 / 6),
        ({"rate": "1gbit"}, {"groups": "a b"}, 1000),
        ({"rate": "unshaped"}, {"groups": "a b", "trunk": {"rate": "200mbit"}}, 200),
        ({"rate": "1gbit"}, {"groups": "a b", "trunk": {"rate": "20mbit"}, "trunks": {"a": {"rate": "300mbit"}}}, 300),
    ],
)
def test_what_all_workers_send_at_once_is_what_links_and_the_fastest_trunk_let_pass(
    link: dict[str, Any], fabric: dict[str, Any], at_once_mbit: float
) -> None:
    topology = Topology(workers=6, link=Link.model_validate(link), fabric=Fabric.model_validate(fabric))
    assert topology.at_once_bps == pytest.approx(1e6 * at_once_mbit)
    assert topology.slowed(4).at_once_bps == pytest.approx(1e6 * at_once_mbit / 4)


def test_what_a_flow_has_on_its_way_is_that_of_the_longest_way_however_slowed() -> None:
    mesh = {"groups": "a b c", "mesh": True, "trunk": {"rate": "200mbit"}, "trunks": {"b c": {"delay": "100ms"}}}
    topology = Topology(workers=6, link=Link.model_validate({"rate": "1gbit"}), fabric=Fabric.model_validate(mesh))
    assert topology.most_in_flight_bytes == pytest.approx(200e6 / 8 * 0.2)
    assert topology.slowed(24).most_in_flight_bytes == pytest.approx(200e6 / 8 * 0.2)
    star = Topology(workers=3, link=Link.model_validate({"rate": "80mbit", "delay": "5ms"}))
    assert star.most_in_flight_bytes == pytest.approx(80e6 / 8 * 0.02)
    assert Topology(workers=3, link=Link.model_validate({"rate": "80mbit"})).most_in_flight_bytes == 0


def test_segments_are_short_only_where_netem_counts_or_holds_them() -> None:
    assert Topology(workers=2, link=link()).segments is None
    assert Topology(workers=2, link=link(loss="1%")).segments == 1
    assert Topology(workers=2, link=link("1gbit", delay="5ms")).segments == 20
    lines = [str(command) for command in Topology(workers=2, link=link(loss="1%")).build()]
    for interface in ("w0 link set eth0", "switch link set to0"):
        assert any(line.startswith(f"ip -n {interface} gso_max_segs 1 ") for line in lines)


def test_both_ends_of_a_link_know_each_other_without_asking() -> None:
    topology = Topology(workers=3, link=link())
    lines = [str(command) for command in topology.build()]
    for wire in topology.wires:
        for own, other in ((wire.near, wire.far), (wire.far, wire.near)):
            at = f"ip -n {own.node} "
            assert any(
                line.startswith(f"{at}link set {own.interface} ") and own.hardware_address in line for line in lines
            )
            known = f"{other.address} lladdr {other.hardware_address} nud permanent dev {own.interface}"
            assert f"{at}neigh replace {known}" in lines
    ends = [end.hardware_address for wire in topology.wires for end in (wire.near, wire.far)]
    assert len(set(ends)) == len(ends)


CHAIN = GilbertElliott(p=0.01, r=0.25)


def simulate(chain: GilbertElliott, packets: int) -> list[bool]:
    """Losses as netem draws them: by the state that a packet finds, which steps at the same time."""
    dice, bad, lost = random.Random(1), False, []
    for _ in range(packets):
        lost.append(dice.random() < (chain.loss_bad if bad else chain.loss_good))
        bad = dice.random() >= chain.r if bad else dice.random() < chain.p
    return lost


@pytest.mark.parametrize("chain", [CHAIN, GilbertElliott(p=0.005, r=0.1, loss_bad=0.7, loss_good=0.001)])
def test_bursts_of_loss_have_the_mean_and_the_length_that_the_chain_gives(chain: GilbertElliott) -> None:
    lost = simulate(chain, 400_000)
    counts = counts_of([number for number, gone in enumerate(lost) if not gone], len(lost))
    assert counts["lost"] / len(lost) == pytest.approx(chain.mean_loss, rel=0.05)
    assert counts["lost"] / counts["bursts"] == pytest.approx(mean_burst(chain), rel=0.05)


def pass_on(pipe: Pipe, packets: int) -> Counts:
    """What becomes of packets that netem doubles, loses and damages; the second copy comes to it as a new packet."""
    dice, bad, numbers = random.Random(1), False, []

    def is_lost() -> bool:
        nonlocal bad
        chain = pipe.loss_bursts
        if chain is None:
            return dice.random() < pipe.loss
        lost = dice.random() < (chain.loss_bad if bad else chain.loss_good)
        bad = dice.random() >= chain.r if bad else dice.random() < chain.p
        return lost

    for number in range(packets):
        copies = 1 + (dice.random() < pipe.duplicate) - is_lost()
        copies -= copies == 2 and is_lost()
        numbers += [number for _ in range(copies) if dice.random() >= pipe.corrupt * (1 - HARMLESS_CORRUPTION)]
    return Counts(**counts_of(numbers, packets))


@pytest.mark.parametrize(
    "asked",
    [
        {"loss": 0.3, "duplicate": 0.3},
        {"loss": 0.05, "duplicate": 0.5, "corrupt": 0.1},
        {"loss_bursts": {"p": 0.05, "r": 0.25}, "duplicate": 0.3},
    ],
)
def test_losses_beside_duplicates_are_in_tolerance_as_netem_draws_both(asked: dict[str, Any]) -> None:
    """Of a packet that is to be lost and doubled one copy arrives."""
    pipe = link(delay="5ms", **asked)
    counts = pass_on(pipe, 20_000)
    assert complaints(pipe, 1e8, counts) == []
    as_if_there_were_none = counts.model_copy(update={"lost": round(counts.sent * pipe.mean_loss)})
    assert pipe.corrupt or any("packets lost" in each for each in complaints(pipe, 1e8, as_if_there_were_none))


@pytest.mark.parametrize("trials", [1, 30, 2000, 10_000, 20_000])
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.001, 0.02, 0.3, 0.97, 1.0])
def test_intervals_of_shares_are_binomial(share: float, trials: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        low, high = binom.interval(confidence, trials, share)
        assert share_interval(share, trials, confidence) == (low / trials, high / trials)


def test_the_interval_of_bursts_holds_what_chains_do_and_a_binomial_one_would_not() -> None:
    lost = simulate(CHAIN, 400_000)
    shares = [sum(lost[start : start + 2000]) / 2000 for start in range(0, 400_000, 2000)]
    counts = Counts(sent=2000, lost=0, bursts=0, duplicated=0, overtook=0)
    low, high = loss_interval(link(loss_bursts={"p": 0.01, "r": 0.25}), counts)
    assert sum(low <= share <= high for share in shares) >= 197, "of 200, with 99.9 % each"
    low, high = share_interval(CHAIN.mean_loss, 2000)
    assert sum(low <= share <= high for share in shares) < 190


def test_what_became_of_numbered_datagrams_is_told_apart() -> None:
    assert counts_of([0, 1, 2, 3], 4) == {"sent": 4, "lost": 0, "bursts": 0, "duplicated": 0, "overtook": 0}
    assert counts_of([0, 0, 4, 3, 7, 8, 8], 10) == {"sent": 10, "lost": 5, "bursts": 3, "duplicated": 2, "overtook": 1}
    assert counts_of([], 3) == {"sent": 3, "lost": 3, "bursts": 1, "duplicated": 0, "overtook": 0}


def complaints(asked: Link, measured_bps: float, counts: Counts | None = None, pause_s: float = 0.0) -> list[str]:
    return list(complaints_of(replace(UP, link="w2", direction="down", pipe=asked), measured_bps, counts, pause_s))


def test_only_links_that_are_what_was_asked_pass() -> None:
    assert complaints(link(), 0.99e8) == []
    assert complaints(link("unshaped"), 5e9) == []
    assert "link w2 down: asked 100 Mbit/s, measured 80 Mbit/s" in complaints(link(), 0.8e8)[0]
    assert "measured 120 Mbit/s" in complaints(link(), 1.2e8)[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"lost": 60}, "packets lost: asked 1.000%, measured 2.000%"),
        ({"lost": 5}, "packets lost: asked 1.000%, measured 0.167%"),
        ({"duplicated": 9}, "packets duplicated: asked 0.000%, measured 0.300%"),
        ({"overtook": 9}, "packets overtaking: asked 0.000%"),
    ],
)
def test_counts_outside_their_interval_are_out_of_tolerance(changes: dict[str, int], says: str | None) -> None:
    counts = Counts(**{"sent": 3000, "lost": 30, "bursts": 30, "duplicated": 0, "overtook": 0, **changes})
    found = complaints(link(loss=0.01, delay="5ms"), 1e8, counts)
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_datagrams_that_leave_one_at_a_time_need_not_overtake_but_may_not_do_so_too_often() -> None:
    """On slow links with small delays each has arrived when the next one comes."""
    pipe = link("1mbit", delay="1ms", reorder="2%")
    never, often = (Counts(sent=3000, lost=0, bursts=0, duplicated=0, overtook=each) for each in (0, 120))
    assert complaints(pipe, 1e6, never, pause_s=2.3e-3) == []
    assert "packets overtaking: asked 2.000%, measured 4.000%" in complaints(pipe, 1e6, often, pause_s=2.3e-3)[0]
    assert "packets overtaking: asked 2.000%, measured 0.000%" in complaints(pipe, 1e6, never, pause_s=0.5e-3)[0]


def test_bursts_of_the_wrong_length_are_out_of_tolerance_though_the_mean_is_right() -> None:
    counts = Counts(sent=3000, lost=115, bursts=110, duplicated=0, overtook=0)
    found = complaints(link(loss_bursts={"p": 0.01, "r": 0.25}), 1e8, counts)
    assert "packets in a burst: asked 4.00, measured 1.05" in found[0]


def readings(rtt_s: float, asked_s: float = 0.0) -> Readings:
    return Readings(links=(), rtt_s=(rtt_s,), rtt_s_asked=(asked_s,), rtt_s_allowed=(6e-4,), took_s=1.0)


def test_a_round_trip_must_be_what_the_delays_on_its_way_sum_up_to() -> None:
    assert readings(1e-4).complaints() == []
    assert readings(0.0203, asked_s=0.02).complaints() == []
    assert "round trip w0 to w0: asked 0 µs, measured 3 ms" in readings(3e-3).complaints()[0]
    assert "asked 20 ms, measured 10 ms" in readings(0.01, asked_s=0.02).complaints()[0]


SS = """\
0 0 198.18.128.2:4311 198.18.128.6:5678 ino:11 sk:1 cgroup:/ <->
\t cubic wscale:7,7 rto:204 rtt:1.5/0.5 mss:1448 cwnd:20 bytes_sent:5000 bytes_retrans:1448 retrans:0/3 rcv_space:14480
0 0 198.18.128.2:29500 198.18.128.6:40000 uid:1000 ino:12 sk:2 cgroup:/ <->
\t cubic wscale:7,7 rto:204 rtt:3.5/0.5 mss:1448 cwnd:40 bytes_sent:9000 retrans:1/2 rcv_space:14480
0 0 198.18.128.2:4312 198.18.128.6:5679 ino:13 sk:3 cgroup:/ <->
\t cubic wscale:7,7 rto:204 rtt:900/0.5 mss:1448 cwnd:10 rcv_space:14480
0 0 192.0.2.1:22 192.0.2.2:1111 ino:112 sk:4 cgroup:/system.slice/ssh.service <->
\t cubic wscale:7,7 rto:204 rtt:90/0.5 mss:1448 cwnd:10 bytes_sent:5000 bytes_retrans:1448 retrans:0/70 rcv_space:14480
"""


def test_what_tcp_says_is_read_from_connections_that_sent() -> None:
    """Of this process: on a host there are those of others, too."""
    own = {"11", "12", "13"}
    assert parse_transport(SS, own) == Transport(retransmits=5, smoothed_rtt_s=0.0025, cwnd_packets=30)
    assert parse_transport(SS, {"112"}).retransmits == 70
    assert parse_transport("", own) == Transport(retransmits=0, smoothed_rtt_s=None, cwnd_packets=None)


def test_the_yardstick_is_unknown_where_the_clock_counts_in_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """User-mode Linux counts a thread's time in hundredths of a second."""
    taken_s = yardstick_s()
    assert taken_s
    assert taken_s > 0
    fine = time.thread_time
    monkeypatch.setattr(time, "thread_time", lambda: fine() // 1.0)
    assert yardstick_s() is None


def test_sockets_are_known_by_the_numbers_that_the_kernel_gives_them() -> None:
    with socket.socket() as one, socket.socket() as other:
        numbers = {str(os.fstat(each.fileno()).st_ino) for each in (one, other)}
        assert numbers <= own_sockets()
    assert not numbers & own_sockets()


def stamped_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets that send to one another, once the kernel stamps what arrives.

    It begins to do so some time after it was asked: until then a datagram gets its stamp when it is read.
    """
    near, far = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
    for each in (near, far):
        each.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        each.bind(("127.0.0.1", 0))
    near.connect(far.getsockname())
    for one, other in ((near, far), (far, near)):
        arrived_s, sent_s = 1.0, 0.0
        while arrived_s > sent_s:
            one.sendto(b"to throw away", other.getsockname())
            sent_s = time.time()
            time.sleep(0.001)
            _, arrived_s, _ = receive(other)
    return near, far


def test_a_round_trip_is_without_the_time_for_which_the_peer_held_it() -> None:
    held_s = 0.2
    near, far = stamped_pair()
    with near, far:
        sent, trips = {0: time.time()}, dict[int, Trip]()
        near.send(PING + PINGED.pack(0, 0.0, 0.0))
        time.sleep(held_s)  # it has arrived, and nobody takes it
        answering = threading.Thread(target=_Answering(far).serve)
        answering.start()
        collect(near, sent, trips, until=time.perf_counter() + 10, enough=1)
        took_s = time.time() - sent[0]
        near.send(b'{"op": "quit"}')
        answering.join()
    assert 0 < trips[0].round_trip_s <= took_s - held_s
    assert trips[0].there_s + trips[0].back_s == pytest.approx(trips[0].round_trip_s, abs=1e-5), "one clock here"


def test_only_what_is_left_when_the_peers_time_is_taken_off_is_a_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a clock. A second reply to the same ping is ignored, and so is one to a ping never sent."""
    # number, there at (by a clock that is 100 s ahead), held for, back at
    replies = iter([(7, 110.125, 5.0, 15.25), (7, 0.0, 0.0, 99.0), (9, 0.0, 0.0, 11.0), (8, 120.25, 0.0, 20.5)])

    def receive_next(datagrams: socket.socket) -> tuple[bytes, float, None]:
        number, there_at_s, held_s, back_at_s = next(replies)
        return PING + PINGED.pack(number, there_at_s, held_s), back_at_s, None

    monkeypatch.setattr(datagrams, "receive", receive_next)
    trips = dict[int, Trip]()
    with socket.socket(type=socket.SOCK_DGRAM) as unused:
        collect(unused, {7: 10.0, 8: 20.0}, trips, until=time.perf_counter() + 60, enough=2)
    assert trips == {7: (0.25, 100.125, -99.875), 8: (0.5, 100.25, -99.75)}
