"""Measure a real network, for scenarios."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.console import print_table, say, tell
from harness.cli.json_output import print_json
from harness.cli.options import AsJson, time_s, write
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.network.path.findings import Findings, Way

TOKEN = "PACBENCH_LINK_TOKEN"


def verb(
    host: Annotated[
        str | None, typer.Argument(metavar="HOST", help="The host to measure the path to; it serves.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Be the host that another one measures the path to.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the server, TCP and UDP; default: 5210.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="With --serve: end when one client has measured.")] = False,
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="How long to measure: 6s to 1h.")] = "60s",
    token: Annotated[
        str | None, typer.Option(envvar=TOKEN, metavar="TOKEN", help="What the server has printed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The link as a [link] table, a .toml file.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Follow the rate of the slower way, for link.trace: a .csv file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the path between two hosts, and make a link of it: rate each way, round trip, jitter, loss.

    Start `pacbench link --serve` on one host and `pacbench link HOST` on the other.
    """
    from harness.network.path.protocol import PORT

    if serve == (host is not None):
        raise UsageError.at("command line", "HOST", host, "HOST or --serve, one of the two")
    if serve:
        _serve(PORT if port is None else port, once)
    elif host is not None:
        _measure(host, PORT if port is None else port, token, for_, out, trace, as_json)


def _serve(port: int, once: bool) -> None:
    from harness.network.path.server import Server

    try:
        with Server(port) as server:
            say(f"serving on port {port}, TCP and UDP, until Ctrl-C; on the other host:")
            say(f"{TOKEN}={server.token} pacbench link {os.uname().nodename} --port {port} --for 60s -o link.toml")
            server.serve(once, say)
    except KeyboardInterrupt:
        say("serves no longer")


def _measure(
    host: str, port: int, token: str | None, for_: str, out: Path | None, trace: Path | None, as_json: bool
) -> None:
    from harness.files import check_writable
    from harness.network.path.client import Peer
    from harness.network.path.findings import link_table, notes_on_link, trace_csv
    from harness.network.path.measuring import measure
    from harness.scenario.link_file import link_text
    from harness.units import format_time

    seconds = _seconds(for_)
    if not token:
        allowed = f"what `pacbench link --serve` has printed there; also in {TOKEN}"
        raise UsageError.at("command line", "--token", token, allowed)
    for file in filter(None, (out, trace)):
        check_writable(file)
    with Peer(host, port, token) as peer:
        found = measure(peer, host, port, seconds, trace is not None, tell)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(found)
    with ExitStack() as each_is_tried:
        if trace:
            each_is_tried.callback(_write, trace, trace_csv(found), as_json)
        if out:
            table = link_table(found, os.path.relpath(trace, out.parent) if trace else None)
            about = f"between this host and {host}, measured on {found.began_at} for {format_time(found.took_s)}"
            text = link_text(table, [about, *notes_on_link(found), *found.notes])
            each_is_tried.callback(_write, out, text, as_json)


def _write(file: Path, text: str, as_json: bool) -> None:
    write(file, text)
    if not as_json:
        say(f"written: {file}")


def _seconds(text: str) -> float:
    from harness.network.path.measuring import LEAST_S, MOST_S
    from harness.units import format_time

    found = time_s("--for", text)
    if not LEAST_S <= found <= MOST_S:
        raise UsageError.at("command line", "--for", text, f"{format_time(LEAST_S)} to {format_time(MOST_S)}")
    return found


def _print(found: Findings) -> None:
    from harness.scenario.links import WAYS
    from harness.units import format_rate, format_time

    rows = []
    for name in WAYS:
        rate = found.way(name).rate_bps
        rows.append([f"rate {name}", *map(format_rate, (rate.low, rate.median, rate.high))])
    if found.rtt_s:
        rows.append(["round trip", *map(format_time, (found.rtt_s.low, found.rtt_s.median, found.rtt_s.high))])
    title = f"{found.host} port {found.port}, for {format_time(found.took_s)}"
    print_table(title, ["what", "5 %", "median", "95 %"], rows)
    jitters = [("of the round trip", found.jitter_s), *((name, found.way(name).jitter_s) for name in WAYS)]
    rows = [[f"jitter {name}", "not measured" if each is None else format_time(each)] for name, each in jitters]
    rows += [[f"loss {name}", _loss(found.way(name))] for name in WAYS]
    rows += [
        [f"rate of TCP {name}", format_rate(found.way(name).tcp_bps)] for name in WAYS if found.way(name).by_datagrams
    ]
    rows.append(["largest packet", f"{found.mtu_bytes} B, IPv{found.ip_version}"])
    print_table("besides", ["what", "found"], rows, words=["found"])
    for note in found.notes:
        say(note)


def _loss(way: Way) -> str:
    from harness.network.path.findings import loss_at_most

    if way.counts is None:
        return "not measured"
    if not way.counts.lost:
        return f"none of {way.counts.sent}, so below {loss_at_most(way.counts):.2g}"
    together = f", in bursts of {way.counts.lost / way.counts.bursts:.2g}" if way.loss_in_bursts else ""
    return f"{way.counts.loss:.3%}, {way.counts.lost} of {way.counts.sent}{together}"
