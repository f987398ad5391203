"""A cluster of containers: the same topology, agents and proofs as in network namespaces, wherever an engine runs.

Every node is a container, every wire between two nodes a network of its own. The engine's addresses only serve to tell
a container's interfaces apart; ``node.py`` then gives them the topology's. So both directions are shaped where the
topology says, the switch forwards, and nothing on the host is written but by the engine. Containers get NET_ADMIN, and
are neither privileged nor on the host's network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from harness.cluster.connection import AgentConnection
from harness.cluster.docker import engine
from harness.cluster.docker.fleet import Fleet
from harness.cluster.emulated import EmulatedCluster, as_json, preload_request, watchers
from harness.errors import MeasurementError, UsageError
from harness.messages import BACKEND_VARIABLE, GLOO, Build, CheckCode, Message, Preload
from harness.network.addresses import SWITCH, WORKER_INTERFACE, worker_name, worker_number
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.provenance import ROOT, code_digest
from harness.scenario.schema import NO_LIMITS, Resources, Train
from harness.workload.data import DATASETS, cache, places

CODE = ("harness", "baselines")
"""What is mounted into every container, read-only."""

WORKDIR, CACHE = "/pacbench", "/cache"

ENVIRONMENT = {"XDG_CACHE_HOME": CACHE, "PYTHONPATH": ""}
"""The image's own PYTHONPATH would put what lies beside the code before Python's library; ``start.py`` needs none."""

ONLY_BY_THE_LINK = {
    "NCCL_SOCKET_IFNAME": WORKER_INTERFACE,
    "NCCL_IB_DISABLE": "1",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
}
"""Without these, GPUs of one host would pass the shaped link by; the counters of its queue would tell."""

LIST_LIBRARIES = (
    "python3",
    "-c",
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))",
)

SUBNETS = ipaddress.IPv4Network("198.19.0.0/16")
"""Where the engine's own addresses come from: the half of 198.18.0.0/15 that topologies leave alone."""

SUBNET_PREFIX = 29
"""Room for a bridge and the two ends of a wire."""

HELLO_TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 60.0

LINK_ADD = re.compile(r"link add (\S+) .*\bnetns (\S+) type veth peer name (\S+) .*\bnetns (\S+)")


class End(NamedTuple):
    """Where a wire is plugged in."""

    node: str
    interface: str


class Wire(NamedTuple):
    """A network with two containers on it."""

    name: str
    ends: tuple[End, End]
    mtu_bytes: int


def wires(topology: Topology) -> list[Wire]:
    """The wires of a topology, read off the very commands that make them between network namespaces."""
    found = []
    for command in topology.build():
        if match := LINK_ADD.match(command.line):
            first, second = End(match[2], match[1]), End(match[4], match[3])
            found.append(Wire(f"{first.node}-{first.interface}", (first, second), topology.link.mtu_bytes))
    return found


def free_subnets(count: int, taken: list[str]) -> list[ipaddress.IPv4Network]:
    """So many subnets for wires that overlap with nothing in ``taken``.

    Raises:
        MeasurementError: there are not so many left.
    """
    used = [ipaddress.IPv4Network(text) for text in taken if ":" not in text]
    near = [network for network in used if network.overlaps(SUBNETS)]
    free = (each for each in SUBNETS.subnets(new_prefix=SUBNET_PREFIX) if not any(map(each.overlaps, near)))
    chosen = [subnet for _, subnet in zip(range(count), free, strict=False)]
    if len(chosen) < count:
        raise MeasurementError(
            f"the engine's networks leave {len(chosen)} subnets of {SUBNETS}, {count} are needed; see docker network "
            "ls; pacbench clean removes what runs left"
        )
    return chosen


def engine_address(subnet: ipaddress.IPv4Network, end: int) -> str:
    """The address that the engine gives an end of a wire; the bridge itself has the subnet's first."""
    return str(subnet[2 + end])


def project(
    name: str,
    *,
    topology: Topology,
    resources: Resources,
    mounts: Mapping[Path, str],
    subnets: Mapping[str, ipaddress.IPv4Network],
    gpus: int,
    image: str,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """The compose file of a cluster.

    Args:
        name: of the project, and the prefix of all its objects.
        mounts: folders that workers read, and where; the code is always mounted.
        subnets: one for each wire, by its name.
        gpus: how many there are, for workers to compute on.
    """
    plugs: dict[str, dict[str, Any]] = {node: {} for node in topology.nodes}
    for wire in wires(topology):
        for number, end in enumerate(wire.ends):
            plugs[end.node][wire.name] = {"ipv4_address": engine_address(subnets[wire.name], number)}
    workers = worker_nodes(topology)
    folders = {**{ROOT / package: f"{WORKDIR}/{package}" for package in CODE}, **mounts}
    common: dict[str, Any] = {
        "image": image,
        "pull_policy": "never",
        "init": True,
        "command": ["sleep", "infinity"],
        "cap_drop": ["ALL"],
        "cap_add": ["NET_ADMIN"],
        "security_opt": ["no-new-privileges:true"],
        "labels": dict(labels),
        "stop_grace_period": "0s",
        "volumes": [
            {"type": "bind", "source": str(source), "target": target, "read_only": True}
            for source, target in folders.items()
        ],
        "environment": ENVIRONMENT,
    }
    services = {}
    for node in topology.nodes:
        limits = _limits(resources, worker_number(node), len(workers), gpus) if node in workers else {}
        forwards = {} if node in workers else {"sysctls": {"net.ipv4.ip_forward": 1}}
        services[node] = {
            **common,
            **limits,
            **forwards,
            "hostname": node,
            "container_name": f"{name}-{node}",
            "networks": plugs[node],
        }
    networks = {
        wire.name: {
            "labels": dict(labels),
            "driver_opts": {"com.docker.network.driver.mtu": str(wire.mtu_bytes)},
            "ipam": {"config": [{"subnet": str(subnets[wire.name])}]},
        }
        for wire in wires(topology)
    }
    return {"name": name, "services": services, "networks": networks}


def _limits(resources: Resources, worker: int, workers: int, gpus: int) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if resources.cpuset is not None:
        limits["cpuset"] = resources.cpuset_of(worker)
    if resources.memory_bytes is not None:
        limits |= {"mem_limit": resources.memory_bytes, "memswap_limit": resources.memory_bytes}
    if resources.device == "cuda":
        own = {"driver": "nvidia", "device_ids": [str(worker % gpus)], "capabilities": ["gpu"]}
        limits["deploy"] = {"resources": {"reservations": {"devices": [own]}}}
        # NCCL refuses two workers on one GPU; Gloo carries what is on GPUs, by way of the CPU.
        backend = {BACKEND_VARIABLE: "nccl" if gpus >= workers else GLOO}
        limits["environment"] = {**ENVIRONMENT, **ONLY_BY_THE_LINK, **backend}
    return limits


class ComposeCluster(EmulatedCluster):
    """See the module. Entered, it has found the engine and the image; containers come with the first topology.

    Args:
        keep: leave the containers as they are at the end, and say how to enter them.
        image: of the workers.
    """

    name = "docker"

    def __init__(self, keep: bool = False, image: str = engine.IMAGE) -> None:
        super().__init__()
        self._keep = keep
        self._image = image
        self._run = uuid.uuid4().hex[:8]
        self._name = f"pacbench-{self._run}"
        self._fleet = Fleet()
        self._deployment: Deployment | None = None
        self._mounts: dict[Path, str] = {}
        self._preloads: list[Preload] = []

    def __enter__(self) -> Self:
        self._client = engine.connect()
        engine.compose_version()
        engine.image_facts(self._client, self._image)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _uninterrupted():
            if self._keep and self._deployment:
                self._fleet.close()
                enter = f"docker exec -it {self._name}-w0 bash (-w1, ..., -{SWITCH})"
                print(f"kept: {enter}; removed by: pacbench clean", file=sys.stderr)
                return
            try:
                self._take_down()
                engine.remove(self._client, self._run)  # also what a command that was cut short began
            except engine.EngineError as complaint:
                print(f"pacbench: containers may be left: {complaint}; then: pacbench clean", file=sys.stderr)

    def image_digest(self) -> str:
        """See ``Cluster.image_digest``."""
        return str(engine.image_facts(engine.connect(), self._image)["digest"])

    def provenance(self) -> dict[str, Any]:
        """See ``Cluster.provenance``: engine, image, and the versions inside it."""
        client = engine.connect()
        marks = [f"--label={name}={value}" for name, value in engine.labels(self._run).items()]
        shown = engine.command(["run", "--rm", "--network=none", *marks, self._image, *LIST_LIBRARIES])
        return {
            "engine": client.version()["Version"],
            "compose": engine.compose_version(),
            "container": {**engine.image_facts(client, self._image), "libraries": json.loads(shown)},
        }

    def check(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check``."""
        if resources.device == "cuda" and not engine.gpu_count():
            raise UsageError.at("scenario", "cluster.device", "cuda", "cpu, as `nvidia-smi -L` names no GPU here")
        if topology.fabric.groups:
            raise UsageError.at("scenario", "fabric.groups", topology.fabric.groups, "none on docker, but on netns")
        if topology.link.trace:
            raise UsageError.at("scenario", "link.trace", "a trace", "none on docker, but on netns")
        super().check(topology, resources)

    def share_file(self, file: Path) -> None:
        """See ``Cluster.share_file``."""
        self._mounts[file.resolve()] = os.path.join(WORKDIR, file)

    def preload(self, train: Train | None = None) -> None:
        """See ``Cluster.preload``. A data set is looked for, or downloaded, here; the workers read it from here."""
        if train and not train.replay:
            folder = Path(train.data_dir) if train.data_dir else None
            DATASETS[train.dataset].load(folder)
            found = [place for place in places(folder) if place.is_dir()]
            self._mounts |= {place.resolve(): _inside(place, train.data_dir) for place in found}
        request = preload_request(train)
        self._preloads.append(request)
        if self._deployment:
            started = self._bring_up(self._deployment.topology, self._deployment.resources)
            others = [node for node in worker_nodes(self._deployment.topology) if node not in started]
            self._fleet.request(dict.fromkeys(others, request), self.preload_timeout_s)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """See ``Cluster.run``."""
        assert self._current, "a topology must be in use"
        topology = self._current[0]
        beside = watchers(topology) if task == "train" else []
        return self._fleet.task(task, worker_nodes(topology), spec, timeout_s, beside)

    def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
        """See ``Cluster.use``; containers that were lost are started again, and all links measured anew."""
        if self._current and not all(map(self._fleet.serves, topology.nodes)):
            self._current = None
        return super().use(topology, resources)

    def _build(self, topology: Topology, resources: Resources) -> None:
        self._current = None
        self._bring_up(topology, resources)
        request = Build(topology=as_json(topology))
        self._fleet.request(dict.fromkeys(topology.nodes, request), BUILD_TIMEOUT_S)

    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        return self._fleet.task(task, nodes, spec, timeout_s)

    def _bring_up(self, topology: Topology, resources: Resources) -> list[str]:
        """Have the containers of a topology running, each with its agent, torch and data; what is there stays.

        Returns:
            The nodes that were started.
        """
        if not self._deployment or not self._deployment.covers(topology, resources, self._mounts):
            self._take_down()
            names = [wire.name for wire in wires(topology)]
            subnets = dict(zip(names, free_subnets(len(names), list(engine.subnets(self._client))), strict=True))
            self._deployment = Deployment(topology, resources, dict(self._mounts), subnets, engine.gpu_count())
        missing = [node for node in self._deployment.topology.nodes if not self._fleet.serves(node)]
        if missing:
            self._compose("up", "-d", "--no-build")
            for node in missing:
                self._fleet.add(node, self._agent(node))
            check = CheckCode(digest=code_digest())
            self._fleet.request(dict.fromkeys(missing, check), HELLO_TIMEOUT_S)
            workers = [node for node in worker_nodes(self._deployment.topology) if node in missing]
            for preload in self._preloads:
                self._fleet.request(dict.fromkeys(workers, preload), self.preload_timeout_s)
        return missing

    def _take_down(self) -> None:
        self._fleet.close()
        if self._deployment:
            self._compose("down", "-t", "0")
            self._deployment = None

    def _agent(self, node: str) -> AgentConnection:
        assert self._deployment
        interfaces = {
            engine_address(self._deployment.subnets[wire.name], number): end.interface
            for wire in wires(self._deployment.topology)
            for number, end in enumerate(wire.ends)
            if end.node == node
        }
        inside = ["python3", f"{WORKDIR}/harness/start.py", "harness.cluster.docker.node", node, json.dumps(interfaces)]
        return AgentConnection(["docker", "exec", "-i", f"{self._name}-{node}", *inside])

    def _compose(self, *arguments: str) -> None:
        assert self._deployment
        file = project(self._name, **vars(self._deployment), image=self._image, labels=engine.labels(self._run))
        engine.command(["compose", "-p", self._name, "-f", "-", *arguments], json.dumps(file))


@dataclass(frozen=True)
class Deployment:
    """What containers were made for."""

    topology: Topology
    resources: Resources
    mounts: dict[Path, str]
    subnets: dict[str, ipaddress.IPv4Network]
    gpus: int

    def covers(self, topology: Topology, resources: Resources, mounts: Mapping[Path, str]) -> bool:
        """Whether they can serve this too: a star of eight contains a star of four."""
        return (
            set(wires(topology)) <= set(wires(self.topology))
            and resources == self.resources
            and mounts.items() <= self.mounts.items()
        )


def worker_nodes(topology: Topology) -> list[str]:
    """The nodes that compute."""
    return [worker_name(worker) for worker in range(topology.workers)]


def _inside(place: Path, data_dir: str | None) -> str:
    """Where workers find a folder: as the scenario names it, or where their own look-up goes."""
    if data_dir is not None:
        return os.path.join(WORKDIR, data_dir)
    return str(place).replace(str(cache()), f"{CACHE}/pacbench")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let nothing interrupt the removal of what was made."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
