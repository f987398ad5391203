"""The compose file of a cluster: a container for each node, a network for each link, and what each may use."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import MeasurementError
from harness.messages import BACKEND_VARIABLE, GLOO
from harness.network.addresses import WORKER_INTERFACE, worker_number
from harness.network.topology import Topology
from harness.provenance import ROOT
from harness.scenario.schema import Resources

CODE = ("harness", "baselines")
"""What is mounted into every container, read-only."""

WORKDIR, CACHE = "/pacbench", "/cache"

ENVIRONMENT = {"XDG_CACHE_HOME": CACHE, "PYTHONPATH": ""}
"""The image's own PYTHONPATH would put what lies beside the code before Python's library; ``start.py`` needs none."""

WRITABLE = ("/tmp", "/var/tmp", "/run", CACHE)
"""In memory, and gone with the container; all else of its files nothing in it can write."""

NSSWITCH = Path(__file__).with_name("nsswitch.conf")
"""Names resolve without asking anybody: a resolver that cannot answer costs seconds, now and then."""

ONLY_BY_THE_LINK = {
    "NCCL_SOCKET_IFNAME": WORKER_INTERFACE,
    "NCCL_IB_DISABLE": "1",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
}
"""Without these, GPUs of one host would pass the shaped link by; the counters of its queue would tell."""

AS_OWNER = ("KILL", "SETGID", "SETUID")
"""What a container must be allowed to run a user's command as the owner of his folder, and to end it."""

SUBNETS = ipaddress.IPv4Network("198.19.0.0/16")
"""Where the engine's own addresses come from: the half of 198.18.0.0/15 that stars leave alone.
Trunks have theirs in it, too, but containers are given no groups."""

SUBNET_PREFIX = 29
"""Room for a bridge and the two ends of a wire."""

SUBNET_COUNT = 2 ** (SUBNET_PREFIX - SUBNETS.prefixlen)


class Plug(NamedTuple):
    """Where a network meets a container."""

    node: str
    interface: str


class Network(NamedTuple):
    """A network of the engine with two containers on it: it carries a link, whatever the link is shaped to."""

    name: str
    plugs: tuple[Plug, Plug]
    mtu_bytes: int


def networks(topology: Topology) -> list[Network]:
    """A network for each link of a topology."""
    return [
        Network(
            f"{wire.far.node}-{wire.far.interface}",
            (Plug(wire.far.node, wire.far.interface), Plug(wire.near.node, wire.near.interface)),
            topology.link.mtu_bytes,
        )
        for wire in topology.wires
    ]


@dataclass(frozen=True)
class Deployment:
    """What containers were made for."""

    topology: Topology
    resources: Resources
    mounts: dict[Path, str]
    """Folders and files that workers read, and where. The code is always mounted."""
    subnets: dict[str, ipaddress.IPv4Network]
    """A subnet for each network, by its name."""
    gpus: int
    """How many GPUs there are, for workers to compute on."""
    folders: tuple[Path, ...] = ()
    """The user's own, by the same names: in the first one workers run his command. They may write there."""

    def covers(self, topology: Topology, resources: Resources, mounts: Mapping[Path, str]) -> bool:
        """Whether they can serve this too: a star of eight contains a star of four."""
        return (
            set(networks(topology)) <= set(networks(self.topology))
            and resources == self.resources
            and mounts.items() <= self.mounts.items()
            and (resources.device != "cuda" or self.backend(topology) == self.backend(self.topology))
        )

    def backend(self, topology: Topology) -> str:
        """What workers on GPUs meet by. NCCL refuses two on one GPU; Gloo carries what is there by way of the CPU."""
        return "nccl" if self.gpus >= topology.workers else GLOO

    def interfaces_of(self, node: str) -> dict[str, str]:
        """The topology's name for each interface of a node, by the address that the engine gives it."""
        return {
            engine_address(self.subnets[network.name], number): plug.interface
            for network in networks(self.topology)
            for number, plug in enumerate(network.plugs)
            if plug.node == node
        }


def free_subnets(count: int, taken: list[str], first: int = 0) -> list[ipaddress.IPv4Network]:
    """So many subnets for networks that overlap with nothing in ``taken``.

    Args:
        first: the number of the one to begin at.

    Raises:
        MeasurementError: there are not so many left.
    """
    used = [ipaddress.IPv4Network(text) for text in taken if ":" not in text]
    near = [network for network in used if network.overlaps(SUBNETS)]
    before, after = (SUBNETS.subnets(new_prefix=SUBNET_PREFIX) for _ in range(2))
    in_turn = chain(islice(after, first, None), islice(before, first))
    free = (each for each in in_turn if not any(map(each.overlaps, near)))
    chosen = [subnet for _, subnet in zip(range(count), free, strict=False)]
    if len(chosen) < count:
        raise MeasurementError(
            f"the engine's networks leave {len(chosen)} subnets of {SUBNETS}, {count} are needed; see docker network "
            "ls; pacbench clean removes what runs left"
        )
    return chosen


def engine_address(subnet: ipaddress.IPv4Network, plug: int) -> str:
    """The address that the engine gives a network's first or second plug; the bridge itself has the subnet's first."""
    return str(subnet[2 + plug])


def project(name: str, deployment: Deployment, *, image: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The compose file of a cluster.

    Args:
        name: of the project, and the prefix of all its objects.
    """
    common = _common(deployment, image, labels)
    services = {
        node: {
            **common,
            **_part_of(node, deployment),
            "hostname": node,
            "container_name": f"{name}-{node}",
            "networks": {
                network.name: {"ipv4_address": engine_address(deployment.subnets[network.name], number)}
                for network in networks(deployment.topology)
                for number, plug in enumerate(network.plugs)
                if plug.node == node
            },
        }
        for node in deployment.topology.nodes
    }
    made = {
        network.name: {
            "labels": dict(labels),
            "driver_opts": {"com.docker.network.driver.mtu": str(network.mtu_bytes)},
            "ipam": {"config": [{"subnet": str(deployment.subnets[network.name])}]},
        }
        for network in networks(deployment.topology)
    }
    return {"name": name, "services": services, "networks": made}


def as_text(file: Mapping[str, Any]) -> str:
    """A compose file as compose takes it: what stands behind a single ``$``, in a folder's name say, is a variable."""
    return json.dumps(file).replace("$", "$$")


def _common(deployment: Deployment, image: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """What all containers have."""
    given = [(ROOT / package, f"{WORKDIR}/{package}") for package in CODE]
    given += [(NSSWITCH, "/etc/nsswitch.conf"), *deployment.mounts.items()]
    return {
        "image": image,
        "pull_policy": "never",
        "init": True,
        "command": ["sleep", "infinity"],
        "cap_drop": ["ALL"],
        "cap_add": ["NET_ADMIN"],
        "read_only": True,
        "tmpfs": [f"{folder}:exec,mode=1777" for folder in WRITABLE],
        "extra_hosts": [f"{name}:{found}" for name, found in deployment.topology.worker_addresses.items()],
        "security_opt": ["no-new-privileges:true"],
        "labels": dict(labels),
        "stop_grace_period": "0s",
        "volumes": [
            {"type": "bind", "source": str(source), "target": target, "read_only": True} for source, target in given
        ]
        + [{"type": "bind", "source": str(own), "target": str(own)} for own in deployment.folders],
        "environment": ENVIRONMENT,
    }


def _part_of(node: str, deployment: Deployment) -> dict[str, Any]:
    """What a container has because of its part: a worker its limits, a switch leave to forward."""
    workers = deployment.topology.worker_nodes
    if node not in workers:
        return {"sysctls": {"net.ipv4.ip_forward": 1}}
    limits = _limits(deployment, worker_number(node))
    return {**limits, "cap_add": ["NET_ADMIN", *AS_OWNER]} if deployment.folders else limits


def _limits(deployment: Deployment, worker: int) -> dict[str, Any]:
    resources, limits = deployment.resources, dict[str, Any]()
    if resources.cpuset is not None:
        limits["cpuset"] = resources.cpuset_of(worker)
    if resources.memory_bytes is not None:
        limits |= {"mem_limit": resources.memory_bytes, "memswap_limit": resources.memory_bytes}
    if resources.device == "cuda":
        own = {"driver": "nvidia", "device_ids": [str(worker % deployment.gpus)], "capabilities": ["gpu"]}
        limits["deploy"] = {"resources": {"reservations": {"devices": [own]}}}
        backend = {BACKEND_VARIABLE: deployment.backend(deployment.topology)}
        limits["environment"] = {**ENVIRONMENT, **ONLY_BY_THE_LINK, **backend}
    return limits
