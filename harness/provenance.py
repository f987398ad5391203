"""Where a figure comes from: the code, the machine, the kernel and the versions that made it."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from harness import programs
from harness.errors import short_repr

ROOT = Path(__file__).resolve().parent.parent

LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "pyarrow")
SYSCTLS = (
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/default_qdisc",
)


LOOKING_ON = ("harness/analysis", "harness/report", "harness/cli")
"""Stages that judge and show what trials have left, and change nothing of what a trial does."""


@cache
def code_digest() -> str:
    """A hash of every Python file of harness/ and baselines/: which code made a page or a row.

    Unlike a commit it is right in a dirty tree and in an installed package, and an edit of the README leaves it alone.
    """
    return _digest_of(())


@cache
def trial_digest() -> str:
    """A hash of those of them that a trial depends on: what makes two trials the same experiment.

    A new sentence in a report does not make anybody train again.
    """
    return _digest_of(LOOKING_ON)


def _digest_of(without: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for package in ("baselines", "harness"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if not any(path.is_relative_to(ROOT / stage) for stage in without):
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def commit() -> str:
    """The commit that is checked out, with ``-dirty`` for changes of tracked files; the version without a checkout."""
    return described(ROOT).text


def machine() -> str:
    """The name by which this machine goes."""
    return socket.gethostname()


def boot() -> str:
    """Which start of its kernel this machine runs on, by a name that no other has; empty where kernels tell of none."""
    return read_setting("/proc/sys/kernel/random/boot_id")


def namespace(kind: str) -> int:
    """This process's namespace of a kind, by its number; 0 where the kernel knows none."""
    place = Path("/proc/self/ns") / kind
    return place.stat().st_ino if place.exists() else 0


def started_s(pid: int) -> float | None:
    """When a process began, by a clock that nobody can set (proc_pid_stat(5)); None where it has ended."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *numbers = told.rpartition(")")[2].split()  # before it stands the program's name, which may hold anything
    return None if state in "ZX" else int(numbers[18]) / os.sysconf("SC_CLK_TCK")


class Described(NamedTuple):
    """What is known of the commit."""

    text: str
    """The commit; without a checkout the version; of a checkout that git does not read ``unknown`` and the version."""
    problem: str | None
    """Why git does not read the checkout that there is; None: it does, or there is none."""


@cache
def described(root: Path) -> Described:
    """The commit of the code in a folder."""
    try:
        release = f"pacbench-{version('pacbench')}"
    except PackageNotFoundError:
        release = "unknown"
    if not (root / ".git").exists():
        return Described(release, None)
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = programs.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except (programs.NotStartedError, OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    else:
        if done.returncode == 0 and (found := done.stdout.strip()):
            return Described(found, None)
        problem = " ".join((done.stderr.strip() or f"git ended with {programs.how_it_ended(done.returncode)}").split())
    return Described(f"unknown, {release}", f"the commit of {root} is unknown: {problem}")


def code() -> dict[str, Any]:
    """Which code this is."""
    return {
        "version": _version("pacbench"),
        "commit": commit(),
        "commit_problem": described(ROOT).problem,
        "code_digest": code_digest(),
    }


def made_by(entries: Sequence[Mapping[str, Any]]) -> str:
    """Which code made something: ``pacbench version 0.1.0, code digest 0123456789ab, commit ...``; all that did."""

    def told(key: str) -> str:
        return " and ".join(dict.fromkeys(str(entry[key]) for entry in entries if entry.get(key))) or "unknown"

    return f"pacbench version {told('version')}, code digest {told('code_digest')}, commit {told('commit')}"


def run_by(entries: Sequence[Mapping[str, Any]]) -> str:
    """Which code made a run, and when it began, by the entries of all that started and resumed it."""
    started = entries[0].get("started") if entries else None
    return f"{made_by(entries)}, {started or 'when is unknown'}"


def collect(command: list[str]) -> dict[str, Any]:
    """Everything about this machine and code that a reader of a figure may ask for.

    Args:
        command: the command line that is making the figures.
    """
    import psutil

    return {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **code(),
        "python": sys.version.split()[0],
        "libraries": {name: _version(name) for name in LIBRARIES},
        "kernel": platform.release(),
        "system": _os_name(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "sysctls": {name.replace("/", "."): value for name in SYSCTLS if (value := read_setting(f"/proc/sys/{name}"))},
        "iproute2": _output("tc", "-V"),
    }


KINDS: Mapping[str, type] = {"command": list, "started": str, "cpu_count": int, "libraries": dict, "container": dict}
"""Of what stands in an entry, as far as readers do more with it than show it."""


def check(entries: object) -> None:
    """Refuse what no list of entries, which ``collect`` and the like have made, can be.

    Raises:
        ValueError: it says what it is.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is no list of tables")
    for entry in entries:
        for key, kind in KINDS.items():
            if not isinstance(found := entry.get(key), (kind, type(None))):
                raise ValueError(f"{key}: found {short_repr(found)}")
        if not all(isinstance(word, str) for word in entry.get("command") or ()):
            raise ValueError(f"command: found {short_repr(entry['command'])}")
        check([entry["container"]] if entry.get("container") else [])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _os_name() -> str:
    lines = dict(line.split("=", 1) for line in read_setting("/etc/os-release").splitlines() if "=" in line)
    return lines.get("PRETTY_NAME", platform.platform()).strip('"')


def cpu_model() -> str:
    """What the processor is called; where the kernel does not say, what kind it is."""
    lines = read_setting("/proc/cpuinfo").splitlines()
    models = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return models[0].strip() if models else platform.processor()


def read_setting(path: str) -> str:
    """What a file of the kernel says, or nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    try:
        return str(programs.run([*command], capture_output=True, text=True, timeout=10, check=True).stdout.strip())
    except (programs.NotStartedError, OSError, subprocess.SubprocessError):
        return ""
