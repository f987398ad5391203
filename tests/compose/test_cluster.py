"""Real containers: links that are what was asked, files that are valid, and what cannot be had, in one line."""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import traps
from conftest import ROOT
from docker.client import DockerClient

from harness.cluster.docker import engine
from harness.cluster.docker.compose import ComposeCluster
from harness.cluster.docker.project import ONLY_BY_THE_LINK, Deployment, project
from harness.errors import MeasurementError, UsageError
from harness.network.topology import Topology
from harness.scenario.links import Link
from harness.scenario.schema import NO_LIMITS, Resources

pytestmark = pytest.mark.compose

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ON_GPU = Resources.model_validate({"device": "cuda"})

BY_HAND = ["compose", "-f", str(ROOT / "docker" / "compose.yaml")]


def star(workers: int, rate: str, **fields: object) -> Topology:
    return Topology(workers=workers, link=Link.model_validate({"rate": rate, **fields}))


@pytest.fixture(scope="module")
def cluster() -> Iterator[ComposeCluster]:
    with ComposeCluster() as opened:
        opened.use(star(8, "20mbit"))
        yield opened


@pytest.mark.parametrize(("workers", "rate"), [(8, "20mbit"), (4, "100mbit"), (3, "37mbit")])
def test_every_direction_of_every_link_has_the_rate_that_was_asked(
    cluster: ComposeCluster, client: DockerClient, workers: int, rate: str
) -> None:
    before = [container.id for container in client.containers.list()]
    readings = cluster.use(star(workers, rate))
    assert [(link.worker, link.direction) for link in readings.links] == [
        (worker, direction) for direction in ("up", "down") for worker in range(workers)
    ]
    assert readings.complaints() == []
    assert [container.id for container in client.containers.list()] == before, "one cluster serves them all"


def test_a_congestion_control_that_the_kernel_lacks_is_refused_with_those_it_has(cluster: ComposeCluster) -> None:
    with pytest.raises(UsageError, match=r"congestion_control: found 'carrier_pigeon'.*reno"):
        cluster.use(star(2, "50mbit", congestion_control="carrier_pigeon"))
    assert cluster.use(star(2, "50mbit")).complaints() == []


def test_containers_are_made_anew_where_one_cannot_be_started_again(
    cluster: ComposeCluster, client: DockerClient
) -> None:
    cluster.use(star(2, "50mbit"))
    cluster._fleet.close()
    (switch,) = (container for container in client.containers.list() if container.name.endswith("-switch"))
    switch.pause()
    assert cluster.use(star(2, "50mbit")).complaints() == []


def test_a_container_that_has_lost_its_network_is_not_used_again(
    cluster: ComposeCluster, client: DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.use(star(2, "50mbit"))
    (cut,) = (container for container in client.containers.list() if container.name.endswith("-w1"))
    for network in cut.attrs["NetworkSettings"]["Networks"]:
        client.networks.get(network).disconnect(cut)
    monkeypatch.setattr(cluster, "probe_timeout_s", 5.0)
    with pytest.raises(MeasurementError):
        cluster.verify()
    with pytest.raises(MeasurementError):
        cluster.use(star(2, "50mbit"))
    assert cluster.use(star(2, "50mbit")).complaints() == []


def test_an_interface_has_nothing_of_an_earlier_topology(cluster: ComposeCluster, client: DockerClient) -> None:
    for rate, segments in (("20mbit", 6), ("500mbit", 65535), ("20mbit", 6)):
        cluster._build(star(2, rate), NO_LIMITS)
        (worker,) = (container for container in client.containers.list() if container.name.endswith("-w0"))
        (shown,) = json.loads(worker.exec_run(["ip", "-d", "-j", "link", "show", "eth0"]).output)
        assert shown["gso_max_segs"] == segments


def test_subnets_that_somebody_takes_before_us_are_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else has the first one, which is not seen at the first look."""
    seen, looks = engine.subnets, itertools.count()
    monkeypatch.setattr(engine, "subnets", lambda client: seen(client) if next(looks) else iter(()))
    with ComposeCluster() as opened:
        assert opened.use(star(2, "50mbit")).complaints() == []
        assert next(looks) == 2


def test_probe_says_what_the_cluster_is_worth(tmp_path: Path) -> None:
    """To a user, on whose PATH the system's own programs are not, wherever that is."""
    here = traps.lay(tmp_path / "here")
    command = ("probe", "--on", "docker", "--workers", "4", "--rate", "100mbit", "--json")
    done = subprocess.run(
        [*traps.console_script(tmp_path / "bin"), *command],
        cwd=here,
        env={**os.environ, "PATH": "/usr/local/bin:/usr/bin:/bin:", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert traps.sprung(here) == []
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["links"]) == 8
    # A ring of four cannot beat its bound by more than the token bucket's first gulp.
    assert report["all_reduce"]["ratio_to_ring_bound"] > 0.98


def test_the_cluster_by_hand_trains_and_prints_a_result(tmp_path: Path) -> None:
    """From a checkout in whose root lie files by the names of Python's own modules."""
    checkout = traps.lay(tmp_path / "checkout", packages=(), programs=())
    for folder in ("baselines", "docker", "harness", "scenarios"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("wheels", "__pycache__"))
    (tmp_path / "tiny.toml").write_text('[train]\nsteps = 16\neval_every = 8\n[[methods]]\nname = "dense"\n')
    workers = [f"w{worker}" for worker in range(4)]
    extra = {"environment": {"SCENARIO": "/tiny/tiny.toml"}, "volumes": [f"{tmp_path}:/tiny:ro"]}
    (tmp_path / "tiny.json").write_text(json.dumps({"services": dict.fromkeys([*workers, "switch"], extra)}))
    files = ["compose", "-f", str(checkout / "docker" / "compose.yaml"), "-f", str(tmp_path / "tiny.json")]
    try:
        done = subprocess.run(
            ["docker", *files, "up", "--no-build"], capture_output=True, text=True, timeout=480, cwd=tmp_path
        )
    finally:
        engine.command([*files, "down", "-t", "0"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Mbit/s") == 8, done.stdout
    assert "dense: " in done.stdout
    assert "% after 16 steps" in done.stdout
    for word in ("Traceback", "Warning", "was run"):
        assert word not in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_file_by_hand_is_the_cluster_that_pacbench_makes() -> None:
    by_hand = json.loads(engine.command([*BY_HAND, "config", "--format", "json"]))
    subnets = {
        f"switch-{name}": ipaddress.IPv4Network(network["ipam"]["config"][0]["subnet"])
        for name, network in by_hand["networks"].items()
    }
    deployment = Deployment(star(4, "100mbit"), NO_LIMITS, mounts={}, subnets=subnets, gpus=0)
    made = project("x", deployment, image=engine.IMAGE, labels={})
    assert set(by_hand["services"]) == set(made["services"])
    assert not any(engine.OWNER_LABEL in each["labels"] for each in by_hand["services"].values()), "to be left by clean"
    for node, service in by_hand["services"].items():
        ours = made["services"][node]
        for field in ("image", "hostname", "init", "cap_add", "cap_drop", "security_opt", "read_only", "tmpfs"):
            assert service[field] == ours[field], (node, field)
        assert ours["environment"].items() <= service["environment"].items()
        assert [re.split("[:=]", entry) for entry in service["extra_hosts"]] == [
            entry.split(":") for entry in ours["extra_hosts"]
        ]
        assert set(service.get("sysctls", {})) == set(ours.get("sysctls", {}))
        assert addresses(service) == addresses(ours)
    assert json.loads(by_hand["services"]["switch"]["command"][-1]) == deployment.interfaces_of("switch")


def test_the_file_for_gpus_gives_each_worker_what_pacbench_gives() -> None:
    with_gpus = [*BY_HAND, "-f", str(ROOT / "docker" / "compose.gpu.yaml")]
    by_hand = json.loads(engine.command([*with_gpus, "config", "--format", "json"]))["services"]
    for worker in range(4):
        service = by_hand[f"w{worker}"]
        (reserved,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (reserved["driver"], reserved["device_ids"], reserved["capabilities"]) == (
            *("nvidia", [str(worker)]),
            ["gpu"],
        )
        expected = {"DEVICE": "cuda", "PACBENCH_BACKEND": "nccl", **ONLY_BY_THE_LINK}
        assert expected.items() <= service["environment"].items()


def test_gpus_that_are_not_there_are_refused(cluster: ComposeCluster) -> None:
    if engine.gpu_count():
        cluster.check(star(2, "50mbit"), ON_GPU)
    else:
        with pytest.raises(UsageError, match="cluster.device: found 'cuda'; allowed: cpu"):
            cluster.check(star(2, "50mbit"), ON_GPU)


def addresses(service: dict[str, Any]) -> set[str]:
    return {network["ipv4_address"] for network in service["networks"].values()}


@pytest.fixture
def docker_without_compose(tmp_path: Path) -> str:
    """A folder for PATH in which ``docker`` knows no ``compose``."""
    shim = tmp_path / "docker"
    refusal = "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1"
    shim.write_text(f'#!/bin/sh\n[ "$1" = compose ] && {{ {refusal}; }}\nexec {shutil.which("docker")} "$@"\n')
    shim.chmod(0o755)
    return os.pathsep.join([str(tmp_path), os.environ["PATH"]])


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 5, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_without_an_engine_one_line_says_so(pacbench: Run) -> None:
    said = one_line(pacbench("probe", "--on", "docker", DOCKER_HOST="unix:///nowhere/docker.sock"))
    assert "no container engine answers at unix:///nowhere/docker.sock" in said
    assert "start the engine" in said


def test_without_the_plugin_one_line_says_so(pacbench: Run, docker_without_compose: str) -> None:
    assert "install the compose plugin" in one_line(pacbench("probe", "--on", "docker", PATH=docker_without_compose))


def test_without_permission_one_line_says_so(pacbench: Run, tmp_path: Path) -> None:
    socket_of_root = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    tmp_path.chmod(0o755)
    said = one_line(pacbench("probe", "--on", "docker", prefix=socket_of_root, HOME="/nonexistent"))
    assert "group of the engine's socket" in said


def test_without_the_image_one_line_says_so() -> None:
    with pytest.raises(engine.EngineError, match="'pacbench-nowhere' is missing; build it: pacbench image"):
        ComposeCluster(image="pacbench-nowhere").__enter__()


def test_doctor_knows_the_engine(pacbench: Run) -> None:
    done = pacbench("doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("container engine", "compose plugin", "worker image"):
        assert checks[name]["ok"], checks[name]
