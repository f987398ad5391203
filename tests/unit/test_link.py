"""The path between two hosts: who may measure it, what is made of what was found, and files of links."""

from __future__ import annotations

import errno
import json
import math
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from host import PACBENCH, wait_until
from hypothesis import example, given
from hypothesis import strategies as st
from in_process import call_pacbench
from scipy.stats import binom

from harness.cli import json_of_links, json_reference
from harness.errors import MeasurementError, UsageError
from harness.network.datagrams import counts_of
from harness.network.path import measuring
from harness.network.path.bulk import END, WINDOW_S, send_flow, take_flow
from harness.network.path.client import Peer
from harness.network.path.findings import (
    Findings,
    Round,
    Sample,
    Spread,
    Way,
    link_table,
    loss_at_most,
    pooled_deviation_s,
    trace_csv,
    without_holes,
)
from harness.network.path.measuring import COUNT_S, FEWEST_COUNTED, FEWEST_FLOODING, FLOOD_S
from harness.network.path.protocol import Request, answer_challenge
from harness.network.path.server import Server
from harness.network.probe_protocol import hear, say
from harness.network.readings import Counts
from harness.scenario import traces
from harness.scenario.link_file import as_setting, link_text, read_link
from harness.scenario.links import Direction, Link, Trace
from harness.scenario.load import load, value_of
from harness.scenario.writing import inline

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Pacbench = Callable[..., "subprocess.CompletedProcess[str]"]

LOOPBACK = ["127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])]


@pytest.fixture
def pacbench(tmp_path: Path) -> Pacbench:
    return lambda *arguments: call_pacbench(arguments, tmp_path)


@pytest.fixture
def told() -> list[str]:
    """What the server says."""
    return []


@pytest.fixture
def server(told: list[str]) -> Iterator[Server]:
    with Server(0) as opened:
        threading.Thread(target=opened.serve, args=(False, told.append), daemon=True).start()
        yield opened


def stranger(server: Server) -> socket.socket:
    """A connection of anybody's."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


# Who may measure


@pytest.mark.parametrize("host", LOOPBACK)
def test_who_knows_the_token_may_have_datagrams_sent_back_and_counted_and_flows_both_ways(
    server: Server, host: str
) -> None:
    with Peer(host, server.port, server.token) as peer:
        assert peer.ip_version == (6 if ":" in host else 4)
        trips = peer.round_trips(5, 0.01, 10.0)
        assert len(trips) == 5
        for trip in trips:
            assert 0 < trip.round_trip_s < 10
            assert trip.there_s + trip.back_s == pytest.approx(trip.round_trip_s, abs=1e-4), "one clock here"
        for way in ("up", "down"):
            assert sum(peer.flow(way, 2 * WINDOW_S)) > 0
            assert peer.count(way, 50, 100, 1000.0, 0.5).counts == counts(0, 0, sent=50)


def test_a_server_answers_from_the_address_that_it_was_asked_at(server: Server) -> None:
    """By its route a reply to this host would leave from 127.0.0.1."""
    with Peer("127.0.0.2", server.port, server.token) as peer:
        assert len(peer.round_trips(2, 0.01, 10.0)) == 2
        for way in ("up", "down"):
            assert peer.count(way, 50, 100, 1000.0, 0.5).counts == counts(0, 0, sent=50)


def test_another_token_is_refused_in_one_line_and_the_right_one_is_served_after_it(
    server: Server, told: list[str], pacbench: Pacbench
) -> None:
    done = pacbench("link", "127.0.0.1", "--port", str(server.port), "--token", "guessed")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "--token: found 'another token'; allowed: the one that `pacbench link --serve` has printed" in done.stderr
    assert "guessed" not in done.stderr
    with Peer("127.0.0.1", server.port, server.token) as peer:
        assert len(peer.round_trips(2, 0.01, 10.0)) == 2
    wait_until(lambda: "127.0.0.1: refused: it has another token" in told)


def test_a_token_is_never_sent_and_never_the_same(server: Server) -> None:
    with stranger(server) as one, stranger(server) as other:
        nonces = {hear(each)["nonce"] for each in (one, other)}
    assert len(nonces) == 2, "who has heard an answer cannot use it again"
    with Server(0) as another:
        assert another.token != server.token
    assert len(server.token) >= 20


def test_one_client_is_served_at_a_time(server: Server) -> None:
    with Peer("127.0.0.1", server.port, server.token) as first:
        with pytest.raises(MeasurementError, match="it serves another client; try again later"):
            Peer("127.0.0.1", server.port, server.token)
        assert len(first.round_trips(2, 0.01, 10.0)) == 2


BEYOND_LIMITS: list[Any] = [
    {"op": "send", "seconds": 1e9},
    {"op": "send", "seconds": -1},
    {"op": "number", "packets": 10**9},
    {"op": "number", "packets": 1000, "per_s": 0.1},
    {"op": "number", "packets": 10, "per_s": 1e9},
    {"op": "number", "packets": 10, "size_bytes": 10**6},
    {"op": "echo", "mark": ""},
    {"op": "number", "packets": 10},  # to whom? no datagram has come
    {"op": "read", "file": "/etc/passwd"},
    {"op": ["end"]},
    {},
]


@pytest.mark.parametrize("request_", BEYOND_LIMITS)
def test_a_client_that_asks_for_more_than_anybody_may_have_is_let_go(
    server: Server, told: list[str], request_: Any
) -> None:
    with stranger(server) as connection:
        assert answer_challenge(connection, server.token) == {"welcome": True}
        say(connection, request_)
        assert connection.recv(100) == b"", "hung up, with nothing sent"
    with Peer("127.0.0.1", server.port, server.token) as peer:
        assert len(peer.round_trips(2, 0.01, 10.0)) == 2
    wait_until(lambda: any("ended early" in line for line in told))


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[" * 900 + b"\n",
        b"x" * 5000,
        b"7\n",
        b'{"proof": 7}\n',
        b'{"proof": "\\ud800"}\n',
        b"\n",
    ],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_strangers_say_ends_with_them(server: Server, line: bytes) -> None:
    with stranger(server) as connection:
        hear(connection)
        with suppress(ConnectionError):  # it may hang up before it has heard all
            connection.sendall(line)
            while connection.recv(100):
                pass
    with Peer("127.0.0.1", server.port, server.token) as peer:
        assert len(peer.round_trips(2, 0.01, 10.0)) == 2


def test_datagrams_are_sent_back_to_the_client_alone(server: Server) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.settimeout(0.2)
        with Peer("127.0.0.1", server.port, server.token) as peer:
            assert peer.round_trips(2, 0.01, 10.0)
            other.sendto(b"\0" * 36, ("127.0.0.1", server.port))
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                other.recv(100)


def test_with_once_a_server_ends_after_its_first_client(told: list[str]) -> None:
    with Server(0) as server:
        serving = threading.Thread(target=server.serve, args=(True, told.append))
        serving.start()
        with pytest.raises(UsageError):
            Peer("127.0.0.1", server.port, "no")
        with Peer("127.0.0.1", server.port, server.token):
            pass
        serving.join(60)
        assert not serving.is_alive()
    assert told[-1] == "127.0.0.1: has measured"


def test_with_once_a_client_that_leaves_early_is_an_error() -> None:
    with Server(0) as server:

        def leave() -> None:
            Peer("127.0.0.1", server.port, server.token).close()

        leaving = threading.Thread(target=leave)
        leaving.start()
        with pytest.raises(MeasurementError, match="127.0.0.1: ended early: a peer hung up"):
            server.serve(True, lambda line: None)
        leaving.join()


# Bad input


def test_a_token_that_is_no_text_is_another_one(server: Server, told: list[str]) -> None:
    with pytest.raises(UsageError, match="--token: found 'another token'"):
        Peer("127.0.0.1", server.port, "\udcff")
    wait_until(lambda: told == ["127.0.0.1: refused: it has another token"])


def test_who_cannot_be_let_in_for_want_of_descriptors_keeps_nobody_out(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([OSError(errno.EMFILE, "Too many open files")] * 2)
    accept = socket.socket.accept

    def accept_at_last(self: socket.socket) -> Any:
        for error in errors:
            raise error
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept_at_last)
    for _ in range(2):
        with Peer("127.0.0.1", server.port, server.token) as peer:
            assert len(peer.round_trips(2, 0.01, 10.0)) == 2


def test_a_port_that_is_taken_is_refused(server: Server, pacbench: Pacbench) -> None:
    done = pacbench("link", "--serve", "--port", str(server.port))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"--port: found {server.port}; allowed: one that is free" in done.stderr


def test_a_port_whose_datagrams_are_another_programs_is_refused_before_anybody_comes(pacbench: Pacbench) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UsageError):
            Server(port)
        done = pacbench("link", "--serve", "--port", str(port))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"--port: found {port}; allowed: one that is free, and that you may listen on (UDP: " in done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "HOST: found None; allowed: HOST or --serve, one of the two"),
        (("host", "--serve"), 2, "HOST: found 'host'; allowed: HOST or --serve, one of the two"),
        (("127.0.0.1",), 2, "--token: found None; allowed: what `pacbench link --serve` has printed there"),
        (("127.0.0.1", "--token", "x", "--for", "1s"), 2, "--for: found '1s'; allowed: 6 s to 1 h 0 min"),
        (("127.0.0.1", "--token", "x", "--for", "long"), 2, "--for: found 'long'; allowed: a time such as"),
        (("127.0.0.1", "--token", "x", "-o", "no/where.toml"), 2, "no/where.toml"),
        (("127.0.0.1", "--token", "x", "--trace", "no/where.csv"), 2, "no/where.csv"),
        (("127.0.0.1", "--token", "x", "--port", "0"), 2, "--port"),
        (("a..b", "--token", "x"), 2, "HOST: found 'a..b'; allowed: a name or an address that is known"),
        (("no.such.host.invalid", "--token", "x"), 2, "HOST: found 'no.such.host.invalid'; allowed: a name"),
    ],
)
def test_bad_input_is_one_line(pacbench: Pacbench, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = pacbench("link", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert says in done.stderr


def test_a_host_that_does_not_answer_is_one_line(pacbench: Pacbench) -> None:
    done = pacbench("link", "127.0.0.1", "--token", "x", "--port", str(free_port()))
    assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
    assert "no server answers (Connection refused); start `pacbench link --serve` there" in done.stderr


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH\r\n", b'{"name": "something else"}\n', b""])
def test_another_program_at_the_port_is_one_line(pacbench: Pacbench, says: bytes) -> None:
    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(says)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(100):
                pass

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=answer, daemon=True).start()
        done = pacbench("link", "127.0.0.1", "--port", str(listening.getsockname()[1]), "--token", "x")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
    assert "no server answers (" in done.stderr


# Flows


def test_a_flow_ends_with_its_last_byte_and_leaves_what_follows_to_others() -> None:
    near, far = socket.create_server(("127.0.0.1", 0)), None
    with near, socket.create_connection(near.getsockname()) as sender:
        far, _ = near.accept()
        with far:
            arrivals: list[int] = []
            taking = threading.Thread(target=lambda: arrivals.extend(take_flow(far, 4 * WINDOW_S)))
            taking.start()
            send_flow(sender, 4 * WINDOW_S)
            taking.join()
            say(sender, {"next": 1})
            assert hear(far) == {"next": 1}
    assert 1 <= len(arrivals) <= 4
    assert all(isinstance(each, int) for each in arrivals)
    assert END[0] > 0x7F


class Outages(Peer):
    """A path that carries nothing up for most of some rounds' time; all else is as it is.

    Args:
        rounds: those from the first one on.
    """

    def __init__(self, server: Server, rounds: int) -> None:
        super().__init__("127.0.0.1", server.port, server.token)
        self._left = rounds

    def flow(self, way: Direction, seconds: float) -> list[int]:
        """See ``Peer.flow``."""
        arrivals = super().flow(way, seconds)
        if way == "up" and self._left:
            self._left -= 1
            return [*arrivals[:-3], 0, 0, 0]
        return arrivals


@pytest.mark.parametrize("trace", [False, True])
def test_a_round_in_which_the_path_was_interrupted_is_left_out_and_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, trace: bool
) -> None:
    monkeypatch.setattr(measuring, "FLOW_S", 8 * WINDOW_S)
    said: list[str] = []
    with Outages(server, 1) as peer:
        found = measuring.measure(peer, "127.0.0.1", server.port, 0.1, trace, said.append)
    assert (len(found.rounds), found.rounds[0].at_s > 0) == (1, True), "time was over, but no round counted"
    assert found.up.rate_bps.median > 0
    assert re.fullmatch("the round at .* does not count: most of the time nothing arrived up", said[0])
    assert said[0] in found.notes


def test_a_path_that_carries_nothing_in_any_round_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "FLOW_S", 4 * WINDOW_S)
    with Outages(server, 99) as peer, pytest.raises(MeasurementError, match="carries nothing up, .* in 3 rounds"):
        measuring.measure(peer, "127.0.0.1", server.port, 0.1, False, lambda line: None)


@given(st.floats(0, 1e12), st.sampled_from([(COUNT_S, FEWEST_COUNTED), (FLOOD_S, FEWEST_FLOODING)]))
def test_at_whatever_rate_no_more_datagrams_are_asked_for_than_a_server_sends(
    wanted_per_s: float, kind: tuple[float, int]
) -> None:
    packets, per_s = measuring.pace(wanted_per_s, *kind)
    assert packets >= kind[1]
    Request(op="number", packets=packets, per_s=per_s)


# What is made of it


def way(rate_bps: float = 2e7, **more: Any) -> Way:
    return Way(rate_bps=Spread(low=rate_bps, median=rate_bps, high=rate_bps), tcp_bps=rate_bps, **more)


def counts(lost: int, bursts: int, sent: int = 10_000) -> Counts:
    return Counts(sent=sent, lost=lost, bursts=bursts, duplicated=0, overtook=0)


def findings(rtt_s: float | None = None, **more: Any) -> Findings:
    fields: dict[str, Any] = {
        "host": "peer",
        "port": 5210,
        "ip_version": 4,
        "began_at": "2030-01-01T00:00:00+00:00",
        "took_s": 60.0,
        "mtu_bytes": 1500,
        "rtt_s": None if rtt_s is None else Spread(low=rtt_s, median=rtt_s, high=rtt_s),
        "jitter_s": None,
        "up": way(),
        "down": way(),
        "rounds": (),
        **more,
    }
    return Findings(**fields)


def as_link(found: Findings, folder: Path, trace: str | None = None) -> Link:
    """The link that a reader of the file gets."""
    (folder / "link.toml").write_text(link_text(link_table(found, trace), ["about\nit"]))
    return read_link(folder / "link.toml")


rates = st.floats(1e4, 1e12)


@given(rates, rates, st.floats(1e-3, 5.0), st.floats(0.03, 0.5), st.integers(1, 2000), st.integers(1, 2000))
def test_between_two_workers_of_a_star_of_such_links_is_the_path_that_was_measured(
    tmp_path_factory: pytest.TempPathFactory,
    up_bps: float,
    down_bps: float,
    rtt_s: float,
    jitter_share: float,
    up_lost: int,
    down_lost: int,
) -> None:
    found = findings(
        rtt_s,
        jitter_s=max(jitter_share * rtt_s, 3e-4),
        up=way(up_bps, counts=counts(up_lost, up_lost)),
        down=way(down_bps, counts=counts(down_lost, down_lost)),
    )
    link = as_link(found, tmp_path_factory.mktemp("link"))
    up, down = link.pipe("w0", "up"), link.pipe("w0", "down")
    assert (up.rate_bps, down.rate_bps) == pytest.approx((up_bps, down_bps), rel=1e-3)
    assert 2 * (up.delay_s + down.delay_s) == pytest.approx(rtt_s, rel=1e-3)
    deviation_s = math.hypot(up.jitter_s, down.jitter_s, up.jitter_s, down.jitter_s)
    assert deviation_s == pytest.approx(min(found.jitter_s or 0.0, 2 * up.delay_s), rel=1e-3)
    for pipe, lost in ((up, up_lost), (down, down_lost)):
        assert 1 - (1 - pipe.mean_loss) ** 2 == pytest.approx(lost / 10_000, rel=0.01)


def test_what_may_be_the_hosts_own_is_not_written(tmp_path: Path) -> None:
    assert link_table(findings()) == {"rate": "20mbit"}
    assert link_table(findings(4e-4, jitter_s=3e-4)) == {"rate": "20mbit"}
    assert link_table(findings(0.02, jitter_s=1e-4)) == {"rate": "20mbit", "delay": "5ms"}
    assert link_table(findings(0.02, up=way(counts=counts(0, 0)))) == {"rate": "20mbit", "delay": "5ms"}
    assert link_table(findings(mtu_bytes=9000))["mtu"] == 9000
    assert "mtu" not in link_table(findings(mtu_bytes=65536))
    assert as_link(findings(up=way(5e6)), tmp_path).pipe("w0", "up").rate_bps == 5_000_000


def test_bursts_are_told_from_single_losses_and_written_as_a_chain(tmp_path: Path) -> None:
    dice = random.Random(3)
    single = counts_of([number for number in range(20_000) if dice.random() > 0.03], 20_000)
    assert not way(counts=Counts(**single)).loss_in_bursts
    bad, arrived, sent = False, list[int](), 400_000
    for number in range(sent):
        if not bad:
            arrived.append(number)
        bad = dice.random() >= 0.25 if bad else dice.random() < 0.01
    chained = way(counts=Counts(**counts_of(arrived, sent)))
    assert chained.loss_in_bursts
    chain = as_link(findings(0.02, up=chained), tmp_path).pipe("w0", "up").loss_bursts
    assert chain is not None
    assert chain.r == pytest.approx(0.25, rel=0.05)
    assert 1 - (1 - chain.mean_loss) ** 2 == pytest.approx(chained.loss, rel=0.01)


@pytest.mark.parametrize(("lost", "sent"), [(0, 100), (0, 20_000), (3, 500), (499, 500)])
def test_the_greatest_loss_is_that_at_which_so_few_losses_are_rare(lost: int, sent: int) -> None:
    assert binom.cdf(lost, sent, loss_at_most(counts(lost, lost, sent))) == pytest.approx(0.05)


def test_a_deviation_knows_nothing_of_clocks_that_differ() -> None:
    dice = random.Random(0)
    rounds = [[dice.gauss(0, 2e-3) for _ in range(200)] for _ in range(10)]
    apart = [[each + 1e6 * number for each in times] for number, times in enumerate(rounds)]
    assert pooled_deviation_s(rounds) == pytest.approx(2e-3, rel=0.05)
    assert pooled_deviation_s(apart) == pytest.approx(2e-3, rel=0.05)
    assert pooled_deviation_s([]) is None
    assert pooled_deviation_s([[]]) is None


def test_a_hole_of_one_sample_is_filled_and_a_step_stays_where_it_is() -> None:
    assert without_holes([4, 4, 0, 4, 4]) == [4] * 5
    assert without_holes([4, 0, 8, 4, 4]) == [4] * 5
    assert without_holes([4, 4, 4, 1, 1, 1]) == [4, 4, 4, 1, 1, 1]
    assert without_holes([7]) == [7]
    assert without_holes([]) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_a_spread_is_in_order_and_within_what_was_found(values: list[float]) -> None:
    found = Spread.of(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_a_trace_is_played_back_as_it_was_measured(tmp_path: Path) -> None:
    samples = tuple(Sample(t_s=0.5 * number, rate_bps=rate) for number, rate in enumerate((2e7, 0.0, 5e6)))
    found = findings(0.02, traced="down", trace=samples, up=way(9e9))
    (tmp_path / "link.csv").write_text(trace_csv(found))
    rows = Trace.model_validate(traces.read(tmp_path / "link.csv")).rows
    assert [(row.t_s, row.rate_bps) for row in rows] == [(0.0, 20_000_000), (0.5, 8_000), (1.0, 5_000_000)]
    link = as_link(found, tmp_path, "link.csv")
    assert link.trace
    assert link.trace.rows == rows
    assert {link.pipe("w0", way).rate_bps for way in ("up", "down")} == {20_000_000}
    assert link.delay_s == 0.005


# Files of links

plain_values = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())


@given(
    st.recursive(
        plain_values, lambda values: st.dictionaries(st.text(), values) | st.lists(values, max_size=3), max_leaves=8
    )
)
@example("sorry, \U0001f600 and \x7f")
def test_what_is_written_as_toml_is_read_as_it_was(value: Any) -> None:
    assert tomllib.loads(f"value = {inline(value)}")["value"] == value


REFUSED = {
    "": "link: missing",
    "[link]\nspeed = 1": "link.speed: unknown key; allowed: rate, ",
    "[link]\nrate = 100": "link.rate: found 100; allowed: a rate such as '100mbit'",
    '[link]\nrate = ["1mbit", "2mbit"]': "link.rate: found ['1mbit', '2mbit']; allowed: a rate",
    '[link]\nrate = "1bit"': "link.rate: found '1 bit/s'; allowed: ",
    '[link]\njitter = "1ms"': "link.jitter: found '1 ms'; allowed: at most the delay",
    "link = 7": "link: found 7; allowed: ",
    'name = "quickstart"\n[link]\nrate = "1mbit"': "name: unknown key; allowed: link",
    "[[link]]": "link: found [{}]; allowed: ",
    '[link]\ntrace = "none.csv"': "link.trace: found 'none.csv'; allowed: a file that can be read",
    "{": "not valid TOML",
}


@pytest.mark.parametrize("content", REFUSED)
def test_what_is_no_file_of_a_link_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.toml").write_text(content)
    with pytest.raises(UsageError) as refused:
        read_link(tmp_path / "other.toml")
    assert f"other.toml: {REFUSED[content]}" in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        read_link(tmp_path / "none.toml")


def test_a_file_takes_the_place_of_a_scenarios_links(tmp_path: Path, pacbench: Pacbench) -> None:
    text = '# measured\n[link]\nrate = "3mbit"\ndelay = "5ms"\n[link.up]\nrate = "2mbit"\nloss = "1%"\n'
    (tmp_path / "link.toml").write_text(text)
    scenario = load("quickstart", [as_setting(tmp_path / "link.toml")])
    assert {case.link for case in scenario.cases} == {read_link(tmp_path / "link.toml")}
    plan = json.loads(pacbench("plan", "quickstart", "--link", "link.toml", "--on", "fake", "--json").stdout)
    assert {trial["rate_bps"] for trial in plan["trials"]} == {3_000_000}
    over = pacbench("plan", "quickstart", "--link", "link.toml", "--set", "link.rate=4mbit", "--on", "fake", "--json")
    assert {trial["rate_bps"] for trial in json.loads(over.stdout)["trials"]} == {4_000_000}
    (tmp_path / "link.toml").write_text("[network]\n")
    done = pacbench("plan", "quickstart", "--link", "link.toml", "--on", "fake")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "link.toml: link: missing" in done.stderr


def test_a_trace_is_found_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "measured"
    folder.mkdir()
    (folder / "link.toml").write_text('[link]\ntrace = "link.csv"\n')
    (folder / "link.csv").write_text("t_s,rate_bps\n0,1000000\n")
    monkeypatch.chdir(tmp_path)
    setting = as_setting(Path("measured/link.toml"))
    assert value_of(setting.removeprefix("link=")) == {"trace": str(folder / "link.csv")}
    (case,) = {case.link for case in load("quickstart", [setting]).cases}
    assert case.trace
    assert case.trace.rows[0].rate_bps == 1_000_000


# The whole of it


@pytest.fixture
def serving() -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server as users start it, its port and its token."""
    command = [*PACBENCH, "link", "--serve", "--once", "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            told = re.match(r"PACBENCH_LINK_TOKEN=(\S+) pacbench link \S+ --port (\d+) ", process.stdout.readline())
            assert told
            yield process, told[2], told[1]
        finally:
            process.kill()


def test_the_path_to_this_machine_itself_is_measured_and_told(
    serving: tuple[subprocess.Popen[str], str, str],
    tmp_path: Path,
    pacbench: Pacbench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of loopback nothing is known but that it is there."""
    server, port, token = serving
    monkeypatch.setenv("PACBENCH_LINK_TOKEN", token)
    done = pacbench("link", "127.0.0.1", "--port", port, "--for", "6s", "-o", "link.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert server.wait(60) == 0
    json_reference.adapter("link").validate_json(done.stdout, strict=True)
    found = Findings.model_validate_json(done.stdout)
    assert found.up.rate_bps.low > 0
    assert found.rtt_s
    link = read_link(tmp_path / "link.toml")
    assert link.pipe("w0", "down").rate_bps == pytest.approx(found.down.rate_bps.median, rel=1e-3)


def test_what_is_printed_as_json_has_the_fields_that_its_page_lists() -> None:
    pairs = [(json_of_links.LinkJson, Findings), (json_of_links.Percentiles, Spread), (json_of_links.PathWay, Way)]
    pairs += [(json_of_links.PathRound, Round), (json_of_links.PathSample, Sample)]
    for shape, section in pairs:
        assert list(shape.__annotations__) == list(section.model_fields)


def test_all_that_was_found_is_told_though_one_of_its_files_has_no_room(
    pacbench: Pacbench, server: Server, tmp_path: Path
) -> None:
    asked = ("--port", str(server.port), "--token", server.token, "--for", "6s")
    done = pacbench("link", "127.0.0.1", *asked, "-o", "link.toml", "--trace", "/dev/full")
    assert done.returncode == 5
    assert re.fullmatch(r"pacbench: /dev/full: cannot be written: .*\n", done.stderr.splitlines(keepends=True)[-1])
    assert "[link]" in (tmp_path / "link.toml").read_text()
    for name in ("rate up", "rate down", "round trip", "jitter of the round trip", "jitter up", "loss down"):
        assert name in done.stdout


def test_a_server_that_is_told_to_end_ends_well(serving: tuple[subprocess.Popen[str], str, str]) -> None:
    server, _, _ = serving
    server.terminate()
    assert server.communicate(timeout=60)[0] == "serves no longer\n"
    assert server.returncode == 0
