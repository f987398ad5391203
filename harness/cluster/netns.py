"""A cluster of network namespaces in a private universe: no root, no container engine, nothing on the host."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness import messages, programs
from harness.cluster.connection import AgentConnection
from harness.cluster.emulated import MEETING_PLACE, EmulatedCluster, as_json, preload_request, watchers
from harness.cluster.protocol import EXECUTE, Check, SideTask
from harness.errors import MeasurementError, UsageError
from harness.messages import Build, Message, Reset
from harness.network.player import PLAYER
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.machine import this_machine
from harness.scenario.schema import NO_LIMITS, Resources, Train
from harness.units import format_rate

UNIVERSE_MODULE = "harness.cluster.universe"
"""Its processes are recognised by this name."""

OWN_NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]

PROGRAMS = ("unshare", "mount", "ip", "tc", "ss", "stdbuf")
"""What a universe is made with, and what its workers look at it with."""

START_FILES = "/run/trace-"
"""Files that tell a trace's player to begin, followed by a number: /run is the universe's own, and ends with it."""

CEILING_WORKERS = 4
"""How many workers send at once where ``pacbench doctor`` asks what this machine carries."""

LINK_REQUESTS = "/run/links-"
"""Likewise, where workers ask for slower links."""

COVERED = ["/run"]
"""What a universe lays its own files over; a user's command finds this machine's there again."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A worker has one thread to compute with, and the agent none beside its own: it forks."""


@cache
def universe_command() -> tuple[str, ...]:
    """How a private universe is started on this machine: by anyone, or by root where that is not allowed.

    Raises:
        MeasurementError: a program is missing, or neither works; the message says what would.
    """
    programs.require(*PROGRAMS)
    reasons = []
    for users in (["--user", "--map-root-user"], []):
        command = ["unshare", *users, *OWN_NAMESPACES]
        tried = programs.run([*command, "true"], capture_output=True, text=True, timeout=30)
        if tried.returncode == 0:
            return tuple(command)
        reasons.append(" ".join(tried.stderr.split()))
    raise MeasurementError(
        f"no private network can be made here: user namespaces are not allowed ({reasons[0]}) and this is not root; "
        "allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the AppArmor profile "
        "of unshare), or run pacbench with sudo"
    )


class NetnsCluster(EmulatedCluster):
    """See the module. Entered, it runs one process outside and a universe inside."""

    name = "netns"
    machine = this_machine()._replace(changes_links=True)

    @classmethod
    def why_it_works(cls) -> str:
        """Why this machine can have one.

        Raises:
            MeasurementError: it cannot.
        """
        universe_command()
        return "private networks can be made here"

    def __init__(self) -> None:
        super().__init__()
        self._trials = itertools.count()
        self._links_were_changed = False

    def __enter__(self) -> Self:
        command = [*universe_command(), *programs.python(UNIVERSE_MODULE)]
        self._agent = AgentConnection(command, ONE_THREAD)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._current = None  # it goes with the process that has it
        self._agent.close()

    def check_kind(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check_kind``."""
        for field, value in resources.model_dump(by_alias=True, exclude_defaults=True).items():
            raise UsageError.at("scenario", f"cluster.{field}", value, "nothing on netns; containers can: --on docker")

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check``."""
        super().check(topology, resources)  # first: of a rate that is far too high tc only says that it is illegal
        self._agent.request(messages.Check(topology=as_json(topology)), self.build_timeout_s)

    def share_file(self, file: Path) -> None:
        """See ``Cluster.share_file``: workers share the host's files."""

    def share_folder(self, folder: Path) -> None:
        """See ``CommandCluster.share_folder``: workers are where the harness is."""

    def find_command(self, command: str, environment: Mapping[str, str]) -> None:
        """See ``CommandCluster.find_command``: workers have this machine's."""
        if not programs.find_for_user(command, environment):
            raise UsageError.at("command line", "COMMAND", command, "a program on your PATH, or a file that can be run")

    def signal(self, number: int) -> None:
        """See ``Cluster.signal``."""
        assert self._current, "a topology must be in use"
        self._agent.signal(self._current[0].worker_nodes, number)

    def verify(self) -> Readings:
        """See ``Cluster.verify``; where a trial has changed the links they are first what they were before it."""
        self._restore_links()
        return super().verify()

    def preload(self, train: Train | None = None) -> None:
        """See ``Cluster.preload``."""
        self._agent.request(preload_request(train), self.preload_timeout_s)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """See ``Cluster.run``."""
        assert self._current, "a topology must be in use"
        topology, number = self._current[0], next(self._trials)
        beside = watchers(task, topology, spec)
        own: dict[str, Any] = {**spec, **MEETING_PLACE}
        if task == EXECUTE:
            own["covered"] = COVERED
        self._restore_links()
        if topology.link.trace and beside:
            self._links_were_changed = True
            own["start_file"] = f"{START_FILES}{number}"
            beside.append(SideTask("play", PLAYER, {"topology": as_json(topology), "start_file": own["start_file"]}))
        if undilated := own.pop("undilated", None):
            self._links_were_changed = True
            own["link_requests"] = f"{LINK_REQUESTS}{number}"
            beside.append(SideTask("change_links", PLAYER, {"topology": undilated, "place": own["link_requests"]}))
        return self._agent.task(task, topology.worker_nodes, own, timeout_s, beside)

    def _restore_links(self) -> None:
        """Have the links again as they were built."""
        if self._links_were_changed:
            current, self._current = self._current, None  # what cannot be had again must not be used again
            self._agent.request(Reset(), self.build_timeout_s)
            self._current, self._links_were_changed = current, False

    def image_digest(self) -> str:
        """No image: what runs is what lies here."""
        return ""

    def provenance(self) -> dict[str, Any]:
        """Nothing beyond this machine."""
        return {}

    def _build(self, topology: Topology, resources: Resources) -> None:
        self._current, self._links_were_changed = None, False
        self._agent.request(Build(topology=as_json(topology)), self.build_timeout_s)

    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        return self._agent.task(task, nodes, spec, timeout_s)


def examine() -> Iterator[Check]:
    """What ``pacbench doctor`` looks at. Nothing outside private universes is touched."""
    tools = [*_tools()]
    universe = _universe()
    yield from [*tools, universe]
    if universe.ok and all(tool.ok for tool in tools):
        yield from _qdiscs()
        yield _ceiling()


def _tools() -> Iterator[Check]:
    for program in PROGRAMS:
        path, package = programs.find(program), programs.package(program)
        fix = "" if path else f"install {package} (Debian: apt-get install {package})"
        yield Check(program, path is not None, path or "missing", fix, needed=True)


def _universe() -> Check:
    try:
        command = universe_command()
    except programs.MissingProgramError as error:
        return Check("private networks", False, "not tried", str(error), needed=True)
    except MeasurementError as error:
        return Check("private networks", False, "not allowed", str(error), needed=True)
    how = "rootless, by user namespaces" if "--user" in command else "as root"
    return Check("private networks", True, how, needed=True)


def _qdiscs() -> Iterator[Check]:
    trials = {
        "tbf": ("tbf rate 1mbit burst 64kb latency 300ms", "the kernel needs CONFIG_NET_SCH_TBF", True),
        "netem": (
            "netem delay 1ms",
            "delay and loss need CONFIG_NET_SCH_NETEM (try: modprobe sch_netem), or --on uml; rates work",
            False,
        ),
    }
    for name, (qdisc, fix, wanted) in trials.items():
        script = f"ip link add try0 type veth peer name try1 && tc qdisc add dev try0 root {qdisc}"
        done = programs.run([*universe_command(), "sh", "-c", script], capture_output=True, text=True, timeout=60)
        found = "works" if done.returncode == 0 else " ".join(done.stderr.split())
        yield Check(f"qdisc {name}", done.returncode == 0, found, "" if done.returncode == 0 else fix, wanted)


def _ceiling() -> Check:
    with NetnsCluster() as cluster:
        ceiling_bps = cluster.ceiling_bps(CEILING_WORKERS)
    found = f"{format_rate(ceiling_bps)} for each of {CEILING_WORKERS} workers at once, unshaped"
    return Check("ceiling", True, found)
