"""The star as commands: addresses, queues, and the check of what the kernel has."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.linkprobe import LinkReading, Readings
from harness.network import (
    Queue,
    Topology,
    address,
    burst_bytes,
    check_read_back,
    gateway,
    qdisc,
    ring_bound_s,
    wire_share,
)
from harness.scenario import Link


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


def test_nothing_is_ever_done_to_the_place_the_nodes_are_made_from_but_making_and_deleting_nodes() -> None:
    topology = Topology(workers=3, link=link())
    outside = [command.line for command in topology.build() + topology.shape() if command.node is None]
    assert all(line.startswith(("netns add ", "link add to")) for line in outside)
    assert [command.line.split()[:2] for command in topology.destroy()] == [["netns", "delete"]] * 4


@given(st.integers(100_000, 10**10))
def test_the_bucket_holds_an_offloaded_segment_and_two_milliseconds_of_the_rate(rate_bps: int) -> None:
    burst = burst_bytes(link(f"{rate_bps}bit"))
    assert burst >= 64 * 1024
    assert burst >= rate_bps / 8 * 0.002


def test_an_asked_bucket_is_taken() -> None:
    assert burst_bytes(link(burst="100kB")) == 100_000
    assert "burst 100000 " in qdisc(link(burst="100kB"))


UP = Queue(0, "up", "w0", "eth0")


def shown(rate_bps: int, burst: int, kind: str = "tbf") -> list[dict[str, object]]:
    return [{"kind": kind, "dev": "eth0", "root": True, "options": {"rate": rate_bps // 8, "burst": burst}}]


def test_what_the_kernel_shows_must_be_what_was_asked() -> None:
    check_read_back(link(), UP, shown(10**8, 65536))
    check_read_back(link("unshaped"), UP, [{"kind": "pfifo", "dev": "eth0", "root": True}])
    for wrong, says in [
        (shown(99_000_000, 65536), "kernel has 99000000 bit/s"),
        (shown(10**8, 32768), "32768 bytes"),
        (shown(10**8, 65536, kind="noqueue"), "the kernel has noqueue"),
        ([], "the kernel has None"),
    ]:
        with pytest.raises(ValueError, match=says):
            check_read_back(link(), UP, wrong)


def test_a_full_segment_carries_1448_of_1514_bytes() -> None:
    assert wire_share(link()) == pytest.approx(1514 / 1448)


def test_the_ring_bound_of_four_workers_is_one_and_a_half_times_the_tensor() -> None:
    assert ring_bound_s(1_000_000, 4, 8_000_000) == pytest.approx(1.5)


def readings(measured_bps: float, rtt_s: float = 1e-4, asked: int | None = 10**8) -> Readings:
    reading = LinkReading(worker=2, direction="down", rate_bps_asked=asked, rate_bps_measured=measured_bps)
    return Readings(links=(reading,), rtt_s=(rtt_s,), took_s=1.0)


def test_only_links_that_are_what_was_asked_pass() -> None:
    assert readings(0.99e8).complaints() == []
    assert readings(5e9, asked=None).complaints() == []
    assert "link w2 down: asked 100 Mbit/s, measured 80 Mbit/s" in readings(0.8e8).complaints()[0]
    assert "measured 120 Mbit/s" in readings(1.2e8).complaints()[0]
    assert "round trip: measured 3 ms" in readings(1e8, rtt_s=3e-3).complaints()[0]
