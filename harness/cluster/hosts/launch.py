"""What a scheduler tells each process it starts: torchrun's variables, or Slurm's where those are absent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import UsageError
from harness.scenario.schema import MOST_WORKERS

TOKEN = "PACBENCH_TOKEN"

CONTRACT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Of torchrun, and of all that do as it does."""

FIRST_PORT, PORTS = 20_000, 10_000
"""Where ranks of a Slurm job meet that is told no port: by the job's number."""

HOW = "what a scheduler sets: srun pacbench worker ..., or torchrun --no-python pacbench worker ..."


@dataclass(frozen=True)
class Launch:
    """A process's place among all ranks."""

    rank: int
    world_size: int
    leader: str
    """Name or address of rank 0's host."""
    port: int
    """Where rank 0 awaits the others. torchrun itself listens at MASTER_PORT, so it is the next one."""
    token: bytes
    """What all processes of the job know: ``PACBENCH_TOKEN``, or the job's own id, which is no secret."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Launch:
        """Read a process's environment.

        Raises:
            UsageError: a variable is absent, or is none of what it can be.
        """
        given = {**_of_slurm(environment), **{name: environment[name] for name in CONTRACT if name in environment}}
        if absent := [name for name in CONTRACT if name not in given]:
            raise UsageError.at("environment", absent[0], "nothing", HOW)
        _check_host(given["MASTER_ADDR"])
        size = _number(given, "WORLD_SIZE", 2, MOST_WORKERS)
        rank = _number(given, "RANK", 0, size - 1)
        port = _number(given, "MASTER_PORT", 1, 65_534)
        job = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")]
        token = environment.get(TOKEN) or " ".join([*job, given["MASTER_ADDR"], given["MASTER_PORT"]])
        return cls(rank, size, given["MASTER_ADDR"], port + 1, token.encode(errors="surrogateescape"))


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """The contract's variables, as far as Slurm's tell them (srun(1), output environment variables)."""
    sources = {
        "RANK": ("SLURM_PROCID",),
        "WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "MASTER_ADDR": ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"),
        "MASTER_PORT": ("SLURM_JOB_ID",),
    }
    told = {
        name: next(environment[each] for each in places if each in environment)
        for name, places in sources.items()
        if any(each in environment for each in places)
    }
    if "MASTER_ADDR" in told:
        told["MASTER_ADDR"] = first_host(told["MASTER_ADDR"])
    if "MASTER_PORT" in told and told["MASTER_PORT"].isdecimal():
        told["MASTER_PORT"] = str(FIRST_PORT + int(told["MASTER_PORT"]) % PORTS)
    return told


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts, such as ``h[01-03,7],login``."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _check_host(name: str) -> None:
    """Refuse what no resolver is ever asked for."""
    try:
        name.encode("idna")  # as Python's sockets do
    except UnicodeError:
        raise UsageError.at("environment", "MASTER_ADDR", name, "a host's name or address") from None


def _number(given: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = given[name]
    if not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise UsageError.at("environment", name, text, f"a number from {least} to {most}")
    return int(text)
