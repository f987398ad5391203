"""The command line as users run it, and a look at the host: what runs there, and that its network stays as it was."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from harness import programs
from harness.record.store import Store

PACBENCH = [sys.executable, "-m", "harness"]
TIMEOUT_S = 480

MARK = "XDG_PACBENCH_TESTS"
"""A variable that is let through to all that is started, since it begins with XDG: by it a process of tests knows what
is its own."""


def run_pacbench(
    folder: Path, *arguments: str, prefix: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder; ``prefix`` goes before it, and ``env`` to its environment."""
    return subprocess.run(
        [*prefix, *PACBENCH, *arguments],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def complaints(stderr: str) -> list[str]:
    """What was said on stderr, but for trials that run again because something else held up this machine."""
    return [line for line in stderr.splitlines() if ": disturbed: " not in line]


def universes() -> list[int]:
    """Processes of universes that this process's tests have started, inside and out, whoever is their parent now."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        is_ours = (process.info["environ"] or {}).get(MARK) == os.environ[MARK]
        if is_ours and {"harness.cluster.universe", "linux.uml"} & {*(process.info["cmdline"] or [])}:
            found.append(process.info["pid"])
    return found


NETWORK = [
    *("ip -o link", "ip -o addr", "ip rule", "ip -6 rule", "ip netns list", "tc qdisc show", "tc filter show"),
    *("ip route show table all", "ip -6 route show table all"),
]
"""What shows the host's network: its interfaces, addresses, routes of all tables, and queues."""

FIREWALL = ["nft --stateless list ruleset", "iptables-save", "ip6tables-save"]
"""What shows the host's firewall, if it has one."""

MOVES_BY_ITSELF = re.compile(r"(?<=_lft )\d+sec|(?<=expires )\d+sec|\[\d+:\d+\]|^#.*$", re.MULTILINE)
"""What changes in that without anyone: what is left of leases, counters of chains, dates."""

COUNTERS = re.compile(
    r"fs/(aio-nr|dentry-state|file-nr|inode-nr|inode-state|quota/.*)"
    r"|kernel/(ns_last_pid|perf_event_max_sample_rate|pty/nr|random/(entropy_avail|uuid))"
    r"|net/netfilter/nf_conntrack_count"
)
"""What is no setting in /proc/sys: the kernel counts there, or draws (Documentation/admin-guide/sysctl)."""


def host_network() -> str:
    """Everything about the host that pacbench must not touch: its network, its firewall, and every sysctl."""
    commands = NETWORK + [rules for rules in FIREWALL if programs.find(rules.split()[0])]
    shown = [programs.run(command.split(), capture_output=True, text=True).stdout for command in commands]
    return "\n".join([*(MOVES_BY_ITSELF.sub("", each) for each in shown), *_sysctls()])


def _sysctls() -> Iterator[str]:
    """Each that can be read and is no counter, with its value."""
    root = Path("/proc/sys")
    for file in sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names):
        name = str(file.relative_to(root))
        if not COUNTERS.fullmatch(name):
            with contextlib.suppress(OSError):  # some can only be written
                yield f"{name}: {file.read_bytes()!r}"


T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], timeout_s: float = 300.0) -> T:
    """Wait for a condition, which is what comes back, and fail when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def some_trial_is_done(run: Path) -> bool:
    """Whether a trial of a run is, which may not have begun; rows also come from attempts that something disturbed."""
    has_rows = any((run / "trials.parquet").glob("[!.]*.parquet"))
    return has_rows and bool((Store.open(run).trials()["status"] == "done").any())


def has_trained(worker: psutil.Process) -> bool:
    """Whether a worker has been at it for some steps: measuring a link takes less of a processor."""
    return computed_s(worker) > 0.5


def computed_s(worker: psutil.Process) -> float:
    """Processor time of its own code; 0 of one that is no more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return float(worker.cpu_times().user)
    return 0.0


def busiest_worker() -> psutil.Process:
    """The forked worker of this process's cluster that has computed most: while a trial trains, a rank of it.

    Others may run clusters on the same machine. Whoever is to be stopped or killed is looked for below this process.
    """
    agents = [each for each in psutil.Process().children(recursive=True) if each.pid in universes()]
    workers = [each for agent in agents if "unshare" not in agent.name() for each in agent.children()]
    return max(workers, key=computed_s)
