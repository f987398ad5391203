"""Machines that are namespaces of this one, on a switch: each has a network, a host name and a clock of its own.

Needs root. Nothing of this machine's own network is touched, and when the process 1 of a machine is killed, the kernel
removes whatever runs there: its network, its mounts, its processes.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import psutil
from host import wait_until
from typing_extensions import Self

from harness import programs

NAMESPACES = ("--net", "--uts", "--mount", "--pid", "--mount-proc", "--time")

BUCKET_BYTES = 64 << 10
"""Of the token buckets that shape hosts' links: what an idle link lets through at once, as a provider's would."""

APART_S = 1000
"""By how much machines' monotonic clocks differ from one another, as those of hosts that were started apart do."""


class Machine:
    """Namespaces that are one machine: a network, mounts, processes, a host name, and a monotonic clock.

    Args:
        ahead_s: by how much the clock is ahead of this machine's.
        hosts: the file of all machines' names.
    """

    def __init__(self, name: str, ahead_s: int, hosts: Path | None = None) -> None:
        self.name = name
        unshare = ["unshare", *NAMESPACES, f"--monotonic={ahead_s}", f"--boottime={ahead_s}", "--fork", "--kill-child"]
        self._unshared = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "sleep", "inf"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._first() is not None, 10)
        first = self._first()
        assert first is not None
        self.first = first
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")
        if hosts:
            self.run("mount", "--bind", str(hosts), "/etc/hosts")

    def _first(self) -> psutil.Process | None:
        """Process 1, once it is a ``sleep`` and all its namespaces are there."""
        children = psutil.Process(self._unshared.pid).children()
        return next((child for child in children if child.name() == "sleep"), None)

    def command(self, *words: str) -> list[str]:
        """A command as it runs on this machine."""
        return ["nsenter", "--target", str(self.first.pid), "--net", "--uts", "--mount", "--pid", "--time", *words]

    def run(self, *words: str) -> None:
        """Run it, and fail where it does."""
        done = programs.run(self.command(*words), capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stderr}"

    def kill(self) -> None:
        """Take its power away."""
        if self.first.is_running():
            self.first.kill()
        self._unshared.wait(60)


class Machines:
    """Hosts ``h1``, ``h2``, ... and a switch that joins them; a context.

    Args:
        folder: for the file of their names.
        hosts: how many there are.
        rate: of each host's link in each direction, as tc writes it; None leaves links as the kernel makes them.
        others: names of further machines on the switch, which are no hosts.
    """

    def __init__(self, folder: Path, hosts: int, rate: str | None = None, others: tuple[str, ...] = ()) -> None:
        self.folder, self.rate, self._others = folder, rate, others
        self.names = [f"h{number}" for number in range(1, hosts + 1)]
        self.machines: dict[str, Machine] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._make()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def _make(self) -> None:
        switch = self._machine("switch")
        switch.run("ip", "link", "add", "br0", "type", "bridge")
        switch.run("ip", "link", "set", "br0", "up")
        addresses = {name: f"198.18.200.{number}" for number, name in enumerate([*self._others, *self.names], 1)}
        hosts = self.folder / "hosts"
        hosts.write_text(
            "".join(f"{address} {name}\n" for name, address in [("localhost", "127.0.0.1"), *addresses.items()])
        )
        for name, address in addresses.items():
            machine = self._machine(name, hosts)
            port = ["ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0"]
            # Only the network is entered: a process is named by its number outside.
            entered = ["nsenter", "--target", str(switch.first.pid), "--net"]
            programs.run([*entered, *port, "netns", str(machine.first.pid)], check=True)
            switch.run("ip", "link", "set", f"to-{name}", "master", "br0", "up")
            machine.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")
            for end, device in ((switch, f"to-{name}"), (machine, "eth0")) if self.rate else ():
                tbf = ["tbf", "rate", str(self.rate), "burst", str(BUCKET_BYTES), "latency", "300ms"]
                end.run("tc", "qdisc", "add", "dev", device, "root", *tbf)

    def _machine(self, name: str, hosts: Path | None = None) -> Machine:
        self.machines[name] = Machine(name, APART_S * len(self.machines), hosts)
        self._stack.callback(self.machines[name].kill)
        return self.machines[name]

    def kill(self, name: str) -> None:
        """Take a host's power away: everything that runs there ends at once."""
        self.machines[name].kill()
