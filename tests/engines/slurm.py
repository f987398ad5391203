"""A Slurm of its own: a controller and hosts, each in namespaces that are one machine; a switch with shaped links.

Needs root, and Debian's slurm-wlm and munge. Everything private lies in one folder: configuration, key, socket, state,
logs. Nothing of the machine's own network or services is touched, and when the process 1 of a host is killed, the
kernel removes whatever runs there: its network, its mounts, its processes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
from host import wait_until
from typing_extensions import Self

from harness import programs

CONTROLLER = "ctl"
TIMEOUT_S = 240
DOWN_AFTER_S = 10
"""A host that does not answer for so long is down, and what ran there is put into the queue again."""

CONFIG = """
ClusterName=pacbench
SlurmctldHost={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdTimeout={down_after_s}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName=h[1-{hosts}] CPUs=1 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=h[1-{hosts}] Default=YES MaxTime=INFINITE State=UP
"""

CGROUP_CONFIG = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n"
CGROUPS = ("freezer", "memory", "cpuset", "cpuacct", "devices")
"""Debian's slurmd wants to see these of version 1, also where it is to use none."""


NAMESPACES = ("--net", "--uts", "--mount", "--pid", "--mount-proc")


class Machine:
    """Namespaces that are one machine: a network, mounts, processes, and a host name.

    Args:
        hosts: the file of all machines' names.
    """

    def __init__(self, name: str, hosts: Path | None = None) -> None:
        self.name = name
        self._unshared = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child", "sleep", "inf"],
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
        return ["nsenter", "--target", str(self.first.pid), "--net", "--uts", "--mount", "--pid", *words]

    def run(self, *words: str) -> None:
        """Run it, and fail where it does."""
        done = programs.run(self.command(*words), capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stderr}"

    def kill(self) -> None:
        """Take its power away."""
        if self.first.is_running():
            self.first.kill()
        self._unshared.wait(60)


class Slurm:
    """A cluster of hosts ``h1``, ``h2``, ...; a context.

    Args:
        folder: for all that is its own; its path is short, since a socket lies there.
        hosts: how many there are besides the controller, with one CPU each.
        rate: of each host's link in each direction, as tc writes it; None leaves links as the kernel makes them.
    """

    def __init__(self, folder: Path, hosts: int = 4, rate: str | None = "200mbit") -> None:
        self.folder, self.rate = folder, rate
        self.names = [f"h{number}" for number in range(1, hosts + 1)]
        self.machines: dict[str, Machine] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._make_network()
            self._configure()
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def _make_network(self) -> None:
        switch = self._machine("switch")
        switch.run("ip", "link", "add", "br0", "type", "bridge")
        switch.run("ip", "link", "set", "br0", "up")
        addresses = {name: f"198.18.200.{number}" for number, name in enumerate([CONTROLLER, *self.names], 1)}
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
                tbf = ["tbf", "rate", str(self.rate), "burst", "64kb", "latency", "300ms"]
                end.run("tc", "qdisc", "add", "dev", device, "root", *tbf)

    def _machine(self, name: str, hosts: Path | None = None) -> Machine:
        self.machines[name] = Machine(name, hosts)
        self._stack.callback(self.machines[name].kill)
        return self.machines[name]

    def _configure(self) -> None:
        for part in ("state", "munge", *(f"spool-{name}" for name in self.names)):
            (self.folder / part).mkdir()
        config = CONFIG.format(
            controller=CONTROLLER, folder=self.folder, hosts=len(self.names), down_after_s=DOWN_AFTER_S
        )
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "cgroup.conf").write_text(CGROUP_CONFIG)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "munge").chmod(0o711)

    def _start(self) -> None:
        munge = self.folder / "munge"
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        self._serve(
            CONTROLLER,
            "munged",
            "--foreground",
            "--force",
            *(f"--{option}={munge / name}" for option, name in files.items()),
        )
        wait_until(lambda: (munge / "socket").exists(), 20)
        self._serve(CONTROLLER, "slurmctld", "-D")
        for name in self.names:
            self._mount_cgroups(self.machines[name])
            self._serve(name, "slurmd", "-D", "-N", name)
        wait_until(lambda: self.call("sinfo", "-h", "-o", "%T %D").stdout.split() == ["idle", str(len(self.names))], 60)

    def _mount_cgroups(self, machine: Machine) -> None:
        machine.run("mount", "-t", "tmpfs", "cgroups", "/sys/fs/cgroup")
        for name in CGROUPS:
            machine.run("mkdir", f"/sys/fs/cgroup/{name}")
            machine.run("mount", "-t", "cgroup", "-o", name, name, f"/sys/fs/cgroup/{name}")

    def _serve(self, machine: str, *words: str) -> None:
        with (self.folder / f"{machine}-{words[0]}.out").open("w") as output:
            self._popen(machine, words, stdout=output, stderr=subprocess.STDOUT)

    def _popen(self, machine: str, words: Sequence[str], **options: object) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": programs.environment()["PATH"],
        }
        return subprocess.Popen(self.machines[machine].command(*words), env=environment, text=True, **options)  # type: ignore[call-overload,no-any-return]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the controller, where ``sbatch``, ``srun`` and ``squeue`` find this Slurm."""
        process = self._popen(CONTROLLER, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def run(self, hosts: int, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command over so many hosts at once, one process each, by ``srun``."""
        return self.call("srun", f"--nodes={hosts}", f"--ntasks={hosts}", "--ntasks-per-node=1", "--label", *words)

    def submit(self, *words: str) -> str:
        """Give ``sbatch`` a script, with its options: the number of the job."""
        done = self.call("sbatch", "--parsable", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def jobs(self) -> list[str]:
        """The jobs that wait or run, a line each: number, state, host."""
        return self.call("squeue", "-h", "-r", "-o", "%i %T %N").stdout.splitlines()

    def busy(self) -> list[str]:
        """The hosts on which something runs."""
        return sorted(line.split()[2] for line in self.jobs() if line.split()[1] == "RUNNING")

    def wait(self, timeout_s: float = TIMEOUT_S) -> None:
        """Until no job waits or runs."""
        wait_until(lambda: not self.jobs(), timeout_s)

    def kill(self, name: str) -> None:
        """Take a host's power away: everything that runs there ends at once."""
        self.machines[name].kill()
