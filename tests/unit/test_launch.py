"""What a scheduler tells each rank, and how ranks know each other."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
from host import wait_until

from harness.cluster.hosts import follower, greeting
from harness.cluster.hosts.cluster import HostsCluster
from harness.cluster.hosts.greeting import Reception, come, turn_away, welcome
from harness.cluster.hosts.launch import Launch, first_host
from harness.errors import MeasurementError, UsageError
from harness.messages import Challenge, Hello, ProtocolError, Welcome, encode
from harness.network.topology import Topology
from harness.plan.plan import make
from harness.scenario.links import Link
from harness.scenario.load import load

CONTRACT = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "h1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "SLURM_JOB_NODELIST": "h[07-09],x", "SLURM_JOB_ID": "10012"}


def test_torchruns_contract_is_read_and_slurms_where_that_is_absent() -> None:
    launch = Launch.read(CONTRACT)
    assert (launch.rank, launch.world_size, launch.leader, launch.port) == (2, 4, "h1", 29501)
    launch = Launch.read(SLURM)
    assert (launch.rank, launch.world_size, launch.leader, launch.port) == (1, 3, "h07", 20_013)
    assert Launch.read({**SLURM, **CONTRACT}).rank == 2
    for damaged in ({}, {**CONTRACT, "RANK": "4"}, {**CONTRACT, "WORLD_SIZE": "x"}):
        with pytest.raises(UsageError, match="^environment: "):
            Launch.read(damaged)


@pytest.mark.parametrize("name", ["a..b", ".", "x" * 64, "\udcff"])
def test_a_host_that_no_resolver_is_asked_for_is_refused_before_it_is_looked_for(name: str) -> None:
    with pytest.raises(UsageError, match=r"^environment: MASTER_ADDR: found '.*'; allowed: a host's name or address"):
        Launch.read({**CONTRACT, "MASTER_ADDR": name})


@pytest.mark.parametrize("address", ["h1", "h1.example.org.", "192.0.2.1", "fe80::1%eth0", "bücher.example"])
def test_hosts_have_names_and_addresses(address: str) -> None:
    assert Launch.read({**CONTRACT, "MASTER_ADDR": address}).leader == address


def test_a_token_may_be_any_bytes() -> None:
    tokens = {Launch.read({**CONTRACT, "PACBENCH_TOKEN": os.fsdecode(token)}).token for token in (b"\xff", b"\xfe")}
    assert tokens == {b"\xff", b"\xfe"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("h1", "h1"), ("h[1-3]", "h1"), ("h[01-03,7],login", "h01"), ("a-[5]-x,b", "a-5-x"), ("one,two", "one")],
)
def test_the_first_of_slurms_hosts(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_an_answer_to_one_side_is_none_to_the_other() -> None:
    assert greeting.proof(b"a", "n", "rank") != greeting.proof(b"b", "n", "rank")
    assert greeting.proof(b"a", "n", "rank") != greeting.proof(b"a", "n", "leader")


TOKEN = b"of this job"

NO_PROOF = "né"
"""Text that is no ASCII, of which no digest is made."""


def test_a_stranger_who_shows_no_ascii_is_turned_away(listening: socket.socket) -> None:
    with connected(listening) as stranger:
        met, _ = listening.accept()
        stranger.sendall(encode(replace(hello(), proof=NO_PROOF)))
        with pytest.raises(ProtocolError, match="another job's token"):
            greeting.receive(met, TOKEN)


def test_a_rank_0_that_shows_no_ascii_is_none_of_this_job(listening: socket.socket) -> None:
    with connected(listening) as connection:
        met, _ = listening.accept()
        met.sendall(encode(Challenge(nonce="any")) + encode(Welcome(proof=NO_PROOF)))
        with met, pytest.raises(MeasurementError, match="does not know this job's token"):
            come(connection, TOKEN, hello(), patience_s=60.0)


def hello(rank: int = 1) -> Hello:
    who = {"host": "h2", "address": "127.0.0.2", "interface": "lo", "problem": None, "nonce": "any", "proof": ""}
    return Hello(rank=rank, world_size=3, code="c", torch="t", clock_s=0.0, **who)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def connected(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname(), timeout=60)


def test_whoever_says_a_byte_now_and_then_is_met_for_a_limited_time_in_all(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greeting, "GREETING_S", 0.3)
    sent: list[int] = []

    def say_little_by_little() -> None:
        with suppress(OSError):
            for number in range(400):
                stranger.sendall(b" ")
                sent.append(number)
                time.sleep(0.02)

    with connected(listening) as stranger:
        met, _ = listening.accept()
        saying = threading.Thread(target=say_little_by_little)
        saying.start()
        with met, pytest.raises(TimeoutError):
            greeting.receive(met, TOKEN)
        saying.join()
    assert len(sent) < 400


def test_ranks_are_met_whoever_else_comes_and_whatever_rank_0_is_at(listening: socket.socket) -> None:
    ended: dict[int, str] = {}

    def be(rank: int) -> None:
        with connected(listening) as connection:
            try:
                come(connection, TOKEN, hello(rank), patience_s=60.0)
                ended[rank] = "welcome"
            except UsageError as error:
                ended[rank] = str(error)

    reception = Reception(listening, TOKEN)
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(listening)) for _ in range(3)]
        ranks = [threading.Thread(target=be, args=(rank,)) for rank in (1, 2)]
        for each in ranks:
            each.start()
        guests = {guest.hello.rank: guest for _ in ranks if (guest := reception.next(60.0))}
        assert ended == {}, "they have been met, and wait for an answer"
        welcome(guests[1].connection, TOKEN, guests[1].hello)
        turn_away(guests[2].connection, UsageError("too many"))
        for each in ranks:
            each.join(60)
        for each in silent:
            each.close()
        assert reception.next(0.0) is None
        assert reception.close() == []
        guests[1].connection.close()
    assert ended == {1: "welcome", 2: "too many"}
    assert all(guest.clock_off_s == pytest.approx(0, abs=60) for guest in guests.values()), "told when it was met"


def test_who_waits_when_nobody_may_come_any_more_is_told_of(listening: socket.socket) -> None:
    address, reception = listening.getsockname(), Reception(listening, TOKEN)

    def be() -> None:
        with connected(listening) as connection, suppress(OSError):
            come(connection, TOKEN, hello(), patience_s=60.0)

    rank = threading.Thread(target=be)
    rank.start()
    wait_until(lambda: not reception._guests.empty())
    (guest,) = reception.close()
    assert guest.hello.rank == 1
    guest.connection.close()
    rank.join(60)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)


def hang_up(connection: socket.socket) -> None:
    connection.close()


def say_nothing(connection: socket.socket) -> None:
    """Until whoever came has gone."""
    with connection, suppress(OSError):
        connection.recv(1)


@pytest.mark.parametrize("meet", [hang_up, say_nothing])
def test_a_rank_that_finds_somebody_else_in_rank_0s_place_looks_for_it_for_a_limited_time(
    listening: socket.socket, meet: Callable[[socket.socket], None]
) -> None:
    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=meet, args=(connection,), daemon=True).start()

    threading.Thread(target=answer, daemon=True).start()
    launch = Launch(rank=1, world_size=2, leader="127.0.0.1", port=listening.getsockname()[1], token=TOKEN)
    ended: list[Exception] = []

    def look() -> None:
        try:
            follower.follow(launch, None, None, 0.5)
        except (MeasurementError, ProtocolError) as error:
            ended.append(error)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(60)
    assert not looking.is_alive()
    assert f"rank 0 is not to be found at 127.0.0.1, port {launch.port}: " in str(ended[0])


def test_time_is_never_dilated_on_hosts() -> None:
    """Their links' own delays would stay what they are."""
    cluster = HostsCluster(Launch.read(CONTRACT), shape=True)
    case = make(load("quickstart", ["rounds=1"]), cluster.name).trials[0].case
    assert case.chooses_dilation
    assert not cluster.machine.finds_dilation(case)
    asked = Topology(workers=3, link=Link.model_validate({"rate": "50mbit"}))
    cluster.check(asked)
    with pytest.raises(UsageError, match=r"^scenario: train\.dilation: found 2\.0; allowed: 1, or auto, which is 1 on"):
        cluster.check(asked.slowed(2.0))
