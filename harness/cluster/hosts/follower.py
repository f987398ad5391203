"""A rank that follows: it comes to rank 0, and is its agent until rank 0 has no more to say."""

from __future__ import annotations

import socket
import time
from importlib.metadata import version

from harness import programs
from harness.cluster.hosts import agent, interface, shaper
from harness.cluster.hosts.greeting import AGAIN_S, come, nonce
from harness.cluster.hosts.launch import Launch
from harness.cluster.netns import ONE_THREAD, PROGRAMS
from harness.errors import MeasurementError, UsageError
from harness.messages import Hello, ProtocolError
from harness.provenance import code_digest, machine
from harness.worker.processes import end_with_parent

RETURN_S = 20.0
"""How long rank 0 is looked for once it was there."""

NEEDED = tuple(program for program in PROGRAMS if program not in ("unshare", "mount"))
"""Programs that workers look at the network with."""


def follow(
    launch: Launch, asked_interface: str | None, asked_address: str | None, patience_s: float, shape: bool = False
) -> None:
    """Be rank 0's agent. One that is lost, but for its host, is replaced.

    Args:
        patience_s: how long rank 0 is looked for, whoever else may answer in its place.
        shape: whether this host's interface may be shaped.

    Raises:
        UsageError, MeasurementError: rank 0 says why this rank cannot take part, or is not there.
    """
    deadline = time.monotonic() + patience_s
    while True:
        with _connected(launch, asked_address, deadline) as connection:
            try:
                name, own = interface.chosen(asked_interface, asked_address, connection.getsockname()[0])
                programs.require(*NEEDED)
                if not shape:
                    shaper.check_unshaped(name)
                problem: UsageError | MeasurementError | None = None
            except (UsageError, MeasurementError) as error:
                name, own, problem = "", "", error
            try:
                come(connection, launch.token, _hello(launch, name, own, problem), deadline - time.monotonic())
            except ProtocolError:
                raise
            except OSError as error:  # rank 0 has ended, or it is none: it is looked for again
                deadline = min(deadline, time.monotonic() + RETURN_S)
                _try_again_until(deadline, launch, error)
                continue
            if problem:
                raise problem
            if _serve(connection, agent.command(name, own, shape)) == 0:
                return
            deadline = time.monotonic() + RETURN_S


def _connected(launch: Launch, address: str | None, deadline: float) -> socket.socket:
    while True:
        try:
            source = (address, 0) if address and interface.interface_of(address) else None
            connection = socket.create_connection((launch.leader, launch.port), 10.0, source)
        except OSError as error:
            _try_again_until(deadline, launch, error)
        else:
            connection.settimeout(None)
            return connection


def _try_again_until(deadline: float, launch: Launch, error: OSError) -> None:
    """Pause before rank 0 is looked for again.

    Raises:
        MeasurementError: it was looked for long enough.
    """
    if time.monotonic() > deadline:
        where = f"{launch.leader}, port {launch.port}"
        raise MeasurementError(f"rank 0 is not to be found at {where}: {error}") from None
    time.sleep(AGAIN_S)


def _hello(launch: Launch, name: str, own: str, problem: Exception | None) -> Hello:
    return Hello(
        rank=launch.rank,
        world_size=launch.world_size,
        host=machine(),
        address=own,
        interface=name,
        code=code_digest(),
        torch=version("torch"),
        clock_s=0.0,
        problem=str(problem) if problem else None,
        nonce=nonce(),
        proof="",
    )


def _serve(connection: socket.socket, command: list[str]) -> int:
    """Let an agent speak on the connection; its exit code."""
    process = programs.start(
        command,
        ONE_THREAD,
        stdin=connection,
        stdout=connection,
        preexec_fn=end_with_parent,  # safe: this process has one thread
    )
    try:
        return int(process.wait())
    finally:
        process.kill()
        process.wait()
