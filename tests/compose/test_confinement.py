"""What containers may: shape their own interfaces, and nothing else. The engine is asked, and so is the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from docker.client import DockerClient
from docker.models.containers import Container

from harness.cluster.docker import engine
from harness.cluster.docker.compose import ComposeCluster
from harness.network.topology import Topology
from harness.scenario.links import Link

pytestmark = pytest.mark.compose

LINKS = Topology(workers=2, link=Link.model_validate({"rate": "50mbit"}))

NET_ADMIN = 1 << 12
"""By <linux/capability.h>."""


def listening() -> set[tuple[str, int]]:
    """Where this machine listens, outside of all containers."""
    found = psutil.net_connections("inet")
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN and each.laddr}


@pytest.fixture(scope="module")
def before() -> set[tuple[str, int]]:
    return listening()


@pytest.fixture(scope="module")
def containers(client: DockerClient, before: set[tuple[str, int]]) -> Iterator[dict[str, Container]]:
    """The containers of two workers and their switch, by node, on links that were measured."""
    with ComposeCluster() as cluster:
        cluster.use(LINKS)
        found = client.containers.list(filters={"label": engine.RUN_LABEL})
        yield {container.attrs["Config"]["Hostname"]: container for container in found}


def run(container: Container, command: str) -> tuple[int, str]:
    code, output = container.exec_run(["sh", "-c", command])
    return code, output.decode()


def test_the_engine_confines_every_container(containers: dict[str, Container]) -> None:
    assert set(containers) == {"w0", "w1", "switch"}
    for container in containers.values():
        host = container.attrs["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert not host["Privileged"]
        assert [each.removeprefix("CAP_") for each in host["CapAdd"]] == ["NET_ADMIN"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert not host["PortBindings"]
        assert not host["Devices"]
        assert all(not mount["RW"] for mount in container.attrs["Mounts"] if mount["Type"] == "bind")


def test_the_kernel_gives_what_runs_in_it_one_capability(containers: dict[str, Container]) -> None:
    for container in containers.values():
        _, status = run(container, "cat /proc/self/status")
        said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        for name in ("CapEff", "CapPrm", "CapBnd"):
            assert int(said[name], 16) == NET_ADMIN, name
        assert said["NoNewPrivs"] == "1"


def test_what_runs_in_it_writes_to_memory_alone(containers: dict[str, Container]) -> None:
    for container in containers.values():
        for place in ("/", "/etc", "/usr/bin", "/opt/venv", "/root", "/pacbench/harness", "/etc/nsswitch.conf"):
            target = place if "." in place else f"{place}/new"
            code, said = run(container, f"echo x >>{target}")
            assert code, target
            assert "Read-only file system" in said, said
        for place in ("/tmp", "/var/tmp", "/run", "/cache", "/dev/shm"):
            assert run(container, f"echo x >{place}/new && rm {place}/new")[0] == 0, place


def test_names_of_workers_resolve_without_a_resolver(containers: dict[str, Container]) -> None:
    look = "python3 -c 'import socket; print(socket.gethostbyname(\"{}\"))'"
    for container in containers.values():
        for name, address in LINKS.worker_addresses.items():
            assert run(container, look.format(name)) == (0, f"{address}\n")
        assert run(container, look.format("example.org"))[0] != 0


def test_nothing_listens_outside_of_the_containers(
    containers: dict[str, Container], before: set[tuple[str, int]]
) -> None:
    assert not listening() - before
