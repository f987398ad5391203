"""A Slurm of its own, whose controller and hosts are ``machines.py``'s, on shaped links.

Needs Debian's slurm-wlm and munge. Everything private lies in one folder: configuration, key, socket, state, logs. No
service of this machine is touched.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from host import wait_until
from machines import Machine, Machines

from harness import programs

CONTROLLER = "ctl"
TIMEOUT_S = 480
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


class Slurm(Machines):
    """Hosts with one CPU each, and their controller; a context.

    Args:
        folder: for all that is its own; its path is short, since a socket lies there.
        hosts, rate: see ``Machines``.
    """

    def __init__(self, folder: Path, hosts: int = 4, rate: str | None = "200mbit") -> None:
        super().__init__(folder, hosts, rate, others=(CONTROLLER,))

    def _make(self) -> None:
        super()._make()
        self._configure()
        self._start()

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

    def call(self, *words: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a command on the controller, where ``sbatch``, ``srun`` and ``squeue`` find this Slurm."""
        process = self._popen(CONTROLLER, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def run(self, hosts: int, *words: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a command over so many hosts at once, one process each, by ``srun``."""
        asked = (f"--nodes={hosts}", f"--ntasks={hosts}", "--ntasks-per-node=1", "--label")
        return self.call("srun", *asked, *words, timeout_s=timeout_s)

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
        """Until no job waits or runs. What Slurm has put into the queue again begins at once, not in two minutes."""

        def is_over() -> bool:
            jobs = [line.split() for line in self.jobs()]
            for number in (job[0] for job in jobs if job[1] == "PENDING"):
                self.call("scontrol", "update", f"JobId={number}", "StartTime=now")
            return not jobs

        wait_until(is_over, timeout_s)
