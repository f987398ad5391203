"""The container engine: what it must be able to do, what carries our label on it, its complaints with their fixes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from docker.client import DockerClient
from docker.errors import DockerException, ImageNotFound, NotFound
from requests.exceptions import RequestException

from harness import programs
from harness.cluster.protocol import Check
from harness.errors import MeasurementError
from harness.programs import MissingProgramError
from harness.provenance import boot, machine, namespace, started_s
from harness.units import format_size

IMAGE = "pacbench"
"""The image of the workers, as ``pacbench image`` builds it."""

RUN_LABEL = "pacbench.run"
"""The label of every object that pacbench makes, with the run's id. It removes nothing that lacks this label."""

OWNER_LABEL = "pacbench.owner"
"""The label that names the ``Maker``. What belongs to a process that lives, or that cannot be seen from here, is left
alone; so is what names nobody, such as the cluster by hand."""

MIN_ENGINE = (20, 10)
COMMAND_TIMEOUT_S = 180.0

LINE_LENGTH = 240
"""The most characters of a complaint that are shown. Its end says what happened, and much before it only where."""

NO_BASE = (
    "no registry that can be reached has this image: make a base image (docker/offline_base.sh) and name it by --base"
)

OVERLAP = "overlap"
"""What every engine says of a network that was to have the addresses of another one."""

FIXES = {
    "permission denied": "add yourself to the group of the engine's socket (usermod -aG docker $USER, then log in "
    "again), or run pacbench with sudo",
    "no space left": "the engine's disk is full: free some (docker system df; docker builder prune)",
    "disk quota": "the engine's disk is full: free some (docker system df; docker builder prune)",
    "non-overlapping ipv4 address pool": "remove networks that nobody uses: docker network prune, pacbench clean",
    OVERLAP: "another network has the addresses: see docker network ls; pacbench clean removes what runs left",
    "incorrect label": "another project has a network of that name: see docker network ls",
    "is already in use by container": "another container has that name: see docker ps -a; pacbench clean removes what "
    "runs left",
    "port is already allocated": "another program has that port: see docker ps",
    "no such image": "build it: pacbench image",
    "no matching distribution": "put its wheel into docker/wheels, or let pip reach an index (PIP_EXTRA_INDEX_URL)",
    "failed to do request": NO_BASE,
    "failed to resolve source metadata": NO_BASE,
    "pull access denied": NO_BASE,
    "mounts denied": "let the engine share this folder (Docker Desktop: Settings, Resources, File sharing)",
    "could not select device driver": "GPUs need the NVIDIA container toolkit on the engine's machine",
    "cannot connect to the docker daemon": "start the engine (pacbench doctor says more)",
    "connection refused": "start the engine (pacbench doctor says more)",
    "no such file or directory')": "start the engine (pacbench doctor says more)",
}
"""Complaints of engine and plugins, in small letters, with what to do about each."""


class EngineError(MeasurementError):
    """The engine did not do what it was asked; one line that ends with what to do."""


class AddressesTakenError(EngineError):
    """A network of ours was to have the addresses of another one."""


def connect() -> DockerClient:
    """The engine that the ``docker`` command talks to.

    Raises:
        EngineError: there is none, it is too old, or it may not be used.
    """
    host = os.environ.get("DOCKER_HOST") or command(["context", "inspect", "-f", "{{.Endpoints.docker.Host}}"])
    try:
        client = DockerClient.from_env() if "DOCKER_HOST" in os.environ else DockerClient(base_url=host)
        version = str(client.version()["Version"])
    except (DockerException, RequestException) as error:
        raise EngineError(f"no container engine answers at {host}: {explain(str(error))}") from None
    check_version(version)
    return client


def check_version(version: str) -> None:
    """Refuse an engine that is too old.

    Raises:
        EngineError: with the version that is needed.
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < MIN_ENGINE:
        needed = ".".join(map(str, MIN_ENGINE))
        raise EngineError(f"the container engine is {version}; needed: {needed} or newer; upgrade it")


def compose_version() -> str:
    """The version of the compose plugin.

    Raises:
        EngineError: there is no such plugin.
    """
    try:
        return command(["compose", "version", "--short"])
    except EngineError:
        raise EngineError(
            "`docker compose` does not work: install the compose plugin, version 2 (Debian: docker-compose-plugin of "
            "Docker's packages, or docker-compose of Debian 13 or newer)"
        ) from None


def image_facts(client: DockerClient, image: str) -> dict[str, Any]:
    """Digest, size and date of an image.

    Raises:
        EngineError: the engine does not have it.
    """
    try:
        attributes = client.images.get(image).attrs
    except ImageNotFound:
        raise EngineError(f"the image {image!r} is missing; build it: pacbench image") from None
    except (DockerException, RequestException) as error:
        raise EngineError(explain(str(error))) from None
    return {"image": image, "digest": attributes["Id"], "size_bytes": attributes["Size"], "made": attributes["Created"]}


def image_environment(client: DockerClient, image: str) -> dict[str, str]:
    """The variables that an image gives to what runs in it."""
    given: list[str] = client.images.get(image).attrs["Config"].get("Env") or []
    return dict(entry.split("=", 1) for entry in given)


def command(arguments: list[str], text: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """What a ``docker`` command prints, given ``text`` on its stdin.

    Raises:
        AddressesTakenError: it failed for that reason.
        EngineError: it is missing, failed, or took too long.
    """
    try:
        done = programs.run(
            ["docker", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,  # Ctrl-C reaches the harness alone
        )
    except MissingProgramError:
        raise EngineError("the docker command is missing; install Docker (docs.docker.com/engine/install)") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"`docker {arguments[0]}` took longer than {timeout_s:g} s") from None
    if done.returncode:
        kind = AddressesTakenError if OVERLAP in done.stderr else EngineError
        raise kind(f"`docker {arguments[0]}` failed: {explain(done.stderr)}")
    return str(done.stdout.strip())


def explain(complaint: str) -> str:
    """The line of a complaint that says most, with its fix where one is known."""
    lines = [" ".join(line.split())[-LINE_LENGTH:] for line in complaint.splitlines() if line.strip()]
    for line in reversed(lines):
        for sign, fix in FIXES.items():
            if sign in line.lower():
                return f"{line} -> {fix}"
    return lines[-1] if lines else "it said nothing"


class Maker(NamedTuple):
    """The process that made an object."""

    machine: str
    boot: str
    """Of its kernel; empty where kernels tell of none."""
    pids: str
    """The namespace in which ``pid`` says anything."""
    pid: str
    began: str = ""
    """When it did, see ``_beginning``: another process may get its number later. Older labels do not say."""

    @classmethod
    def this(cls) -> Maker:
        """This process."""
        return cls(machine(), boot(), str(namespace("pid")), str(os.getpid()), _beginning(os.getpid()))

    @property
    def place(self) -> tuple[str, ...]:
        """Where its number is its own."""
        return self[:3]

    @property
    def is_gone(self) -> bool:
        """Whether it has ended; it is of this place."""
        if self.began.partition("/")[0] != str(namespace("time")):  # by another clock, or nobody knows
            return not psutil.pid_exists(int(self.pid))
        return _beginning(int(self.pid)) != self.began


def _beginning(pid: int) -> str:
    """When a process began, behind the namespace whose clock says so; empty where it has ended."""
    began_s = started_s(pid)
    return "" if began_s is None else f"{namespace('time')}/{began_s}"


def labels(run: str) -> dict[str, str]:
    """What marks an object as made by this process for a run."""
    return {RUN_LABEL: run, OWNER_LABEL: " ".join(Maker.this())}


def remove(client: DockerClient, run: str | None = None) -> list[str]:
    """Remove what carries our label: of one run, or of every run whose process is gone.

    Returns:
        One line for each thing that was removed.

    Raises:
        EngineError: the engine refused.
    """
    label = RUN_LABEL if run is None else f"{RUN_LABEL}={run}"
    removed = []
    try:
        containers = client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        at_work = {container.labels[RUN_LABEL] for container in containers if container.status != "exited"}
        for container in containers:
            if run or _is_orphan(container.labels, at_work):
                container.remove(force=True, v=True)
                removed.append(f"removed container {container.name}")
        for network in client.networks.list(filters={"label": label}):
            if run or _is_orphan(network.attrs["Labels"], at_work):
                network.remove()
                removed.append(f"removed network {network.name}")
    except NotFound:
        return removed + remove(client, run)  # somebody else removed it just now
    except (DockerException, RequestException) as error:
        raise EngineError(explain(str(error))) from None
    return removed


def _is_orphan(owned: Mapping[str, str], at_work: set[str]) -> bool:
    """Whether the maker of an object is gone, as far as that can be seen from here.

    Args:
        at_work: runs with a container that has not ended.
    """
    told = owned.get(OWNER_LABEL, "").split(" ")
    if len(told) not in (len(Maker._fields) - 1, len(Maker._fields)):
        return False
    maker, here = Maker(*told), Maker.this()
    if maker.place == here.place:
        return maker.is_gone
    # What ran before this machine was started anew has ended with it; on another one of its name it would go on.
    return maker.machine == here.machine and maker.boot != here.boot and owned[RUN_LABEL] not in at_work


def subnets(client: DockerClient) -> Iterator[str]:
    """The subnets of all networks of the engine."""
    for network in client.networks.list():
        for entry in (network.attrs.get("IPAM") or {}).get("Config") or []:
            if "Subnet" in entry:
                yield entry["Subnet"]


def gpu_count() -> int:
    """How many GPUs this machine's driver names."""
    try:
        shown = programs.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (MissingProgramError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in shown.stdout.splitlines()) if shown.returncode == 0 else 0


def build_image(
    base: str | None = None,
    torch: str | None = None,
    offline: bool = False,
    certificate: Path | None = None,
) -> dict[str, Any]:
    """Build the workers' image from this checkout; what is there already is used again.

    Args:
        base: the image it starts from; the Dockerfile's choice by default.
        torch: as pip takes it, such as ``torch==2.13.0``.
        offline: take wheels from docker/wheels alone.
        certificate: of a proxy that opens TLS.

    Returns:
        ``image_facts`` of it.

    Raises:
        EngineError: it cannot be built.
    """
    from harness.provenance import ROOT

    dockerfile = ROOT / "docker" / "Dockerfile"
    if not dockerfile.is_file():
        raise EngineError(f"{dockerfile} is missing: an image is built from a checkout of pacbench")
    client = connect()
    given = {"BASE_IMAGE": base, "TORCH": torch, "PIP_NO_INDEX": "1" if offline else None}
    given["PIP_EXTRA_INDEX_URL"] = os.environ.get("PIP_EXTRA_INDEX_URL")
    arguments = [f"--build-arg={name}={value}" for name, value in given.items() if value]
    arguments += [f"--secret=id=ca,src={certificate}"] if certificate else []
    # The host's network reaches a proxy that listens on it; without an index there is nothing to reach.
    arguments.append(f"--network={'none' if offline else 'host'}")
    command(["build", "--progress=plain", "-f", str(dockerfile), "-t", IMAGE, *arguments, str(ROOT)], timeout_s=3600)
    return image_facts(client, IMAGE)


def examine() -> Iterator[Check]:
    """What ``pacbench doctor`` looks at: what containers take, in the order in which one needs the other."""
    steps: dict[str, Callable[[], str]] = {
        "container engine": lambda: str(connect().version()["Version"]),
        "compose plugin": compose_version,
        "worker image": lambda: format_size(image_facts(connect(), IMAGE)["size_bytes"]),
    }
    for name, look in steps.items():
        try:
            yield Check(name, True, look())
        except EngineError as error:
            yield Check(name, False, "no containers", str(error))
            return
