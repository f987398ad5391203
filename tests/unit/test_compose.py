"""Containers as a file: wires, addresses, limits, owners; and what becomes of an engine's complaints. None is asked."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.attach.attachment import CODE
from harness.cluster.docker import compose, engine, standalone
from harness.cluster.docker.compose import MOST_CHOICES, ComposeCluster
from harness.cluster.docker.project import (
    SUBNET_COUNT,
    SUBNETS,
    Deployment,
    Plug,
    as_text,
    free_subnets,
    networks,
    project,
)
from harness.errors import MeasurementError, UsageError
from harness.messages import Build, Message
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.scenario.links import Link
from harness.scenario.schema import NO_LIMITS, ClusterSpec, Resources


def star(workers: int, **link: Any) -> Topology:
    return Topology(workers=workers, link=Link.model_validate(link))


def file(topology: Topology, resources: Resources = NO_LIMITS, gpus: int = 0) -> Any:
    names = [network.name for network in networks(topology)]
    subnets = dict(zip(names, free_subnets(len(names), []), strict=True))
    deployment = Deployment(topology, resources, {}, subnets, gpus)
    return project("pacbench-test", deployment, image="pacbench", labels={"pacbench.run": "test"})


@pytest.mark.parametrize("workers", [2, 8, 128])
def test_every_queue_of_a_topology_is_at_a_plug_of_a_network(workers: int) -> None:
    topology = star(workers)
    plugs = {plug for network in networks(topology) for plug in network.plugs}
    assert {Plug(queue.node, queue.interface) for queue in topology.queues()} == plugs
    assert len(networks(topology)) == workers


def test_each_wire_is_a_network_of_two_with_an_address_each() -> None:
    made = file(star(3, mtu=9000))
    for name, network in made["networks"].items():
        subnet = ipaddress.ip_network(network["ipam"]["config"][0]["subnet"])
        plugs = [service["networks"][name] for service in made["services"].values() if name in service["networks"]]
        addresses = {ipaddress.ip_address(plug["ipv4_address"]) for plug in plugs}
        assert len(addresses) == 2
        assert addresses <= set(subnet.hosts()) - {subnet[1]}, "the first is the bridge's"
        assert network["driver_opts"] == {"com.docker.network.driver.mtu": "9000"}
        assert "internal" not in network, "the engine drops what is forwarded between such networks"


def test_containers_get_one_capability_and_only_the_switch_forwards() -> None:
    services = file(star(2))["services"]
    assert set(services) == {"w0", "w1", "switch"}
    for service in services.values():
        assert (service["cap_drop"], service["cap_add"]) == (["ALL"], ["NET_ADMIN"])
        assert not {"privileged", "network_mode", "ports", "devices", "pid", "ipc", "userns_mode"} & set(service)
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"]
        assert all(volume["read_only"] for volume in service["volumes"])
        assert service["labels"] == {"pacbench.run": "test"}
    assert [name for name, service in services.items() if "sysctls" in service] == ["switch"]


def test_names_resolve_in_a_container_that_can_write_none_of_its_own_files() -> None:
    """A cluster of eight also serves smaller ones, whose workers have the same addresses."""
    for service in file(star(8))["services"].values():
        given = dict(entry.split(":") for entry in service["extra_hosts"])
        assert given == star(8).worker_addresses
        assert star(4).worker_addresses.items() <= given.items()
        (nsswitch,) = (each["source"] for each in service["volumes"] if each["target"] == "/etc/nsswitch.conf")
        assert Path(nsswitch).read_text() == "hosts: files\n"
        assert {each.split(":")[0] for each in service["tmpfs"]} == {"/tmp", "/var/tmp", "/run", "/cache"}


def test_limits_hold_for_workers_in_turn() -> None:
    resources = Resources.model_validate({"cpuset": "0-1;2", "memory": "1GB"})
    services = file(star(3), resources)["services"]
    assert [services[f"w{worker}"]["cpuset"] for worker in range(3)] == ["0-1", "2", "0-1"]
    assert services["w0"]["mem_limit"] == services["w0"]["memswap_limit"] == 10**9
    assert "cpuset" not in services["switch"]


def test_a_scenario_names_them_beside_its_workers() -> None:
    given = {"cpuset": "0;1", "memory": "1GB", "device": "cuda"}
    assert ClusterSpec.model_validate({"workers": 4, **given}).resources == Resources.model_validate(given)
    assert ClusterSpec.model_validate({"workers": 4}).resources == NO_LIMITS


@pytest.mark.parametrize(("gpus", "backend", "given"), [(2, "nccl", ["0", "1"]), (1, "gloo", ["0", "0"])])
def test_gpus_are_given_in_turn_and_only_the_link_connects_them(gpus: int, backend: str, given: list[str]) -> None:
    services = file(star(2), Resources.model_validate({"device": "cuda"}), gpus)["services"]
    for worker, device in enumerate(given):
        service = services[f"w{worker}"]
        (reserved,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (reserved["driver"], reserved["device_ids"], reserved["capabilities"]) == ("nvidia", [device], ["gpu"])
        assert service["environment"]["PACBENCH_BACKEND"] == backend
        assert service["environment"]["NCCL_SOCKET_IFNAME"] == "eth0"
        for bypass in ("IB", "P2P", "SHM"):
            assert service["environment"][f"NCCL_{bypass}_DISABLE"] == "1"
    assert "deploy" not in services["switch"]


def test_a_commands_folders_and_our_code_are_there_by_their_own_names() -> None:
    folders, own = (Path("/home/user"), Path("/records/findings")), str(CODE[1])
    topology = star(2)
    names = [network.name for network in networks(topology)]
    subnets = dict(zip(names, free_subnets(len(names), []), strict=True))
    deployment = Deployment(topology, NO_LIMITS, {CODE[1]: own}, subnets, 0, folders)
    made = project("pacbench-test", deployment, image="pacbench", labels={})
    volumes = made["services"]["w0"]["volumes"]
    writable = [volume["target"] for volume in volumes if not volume.get("read_only")]
    assert writable == ["/home/user", "/records/findings"]
    read = {volume["target"] for volume in volumes if volume.get("read_only") and volume["source"] == own}
    assert read == {own, "/pacbench/harness"}
    assert {"SETUID", "KILL"} <= set(made["services"]["w1"]["cap_add"])


def test_compose_finds_no_variable_in_the_name_of_a_folder() -> None:
    subnets = {network.name: subnet for network, subnet in zip(networks(star(2)), free_subnets(2, []), strict=True)}
    deployment = Deployment(star(2), NO_LIMITS, {Path("/data$HOME"): "/data"}, subnets, 0, (Path("/home/me/proj$old"),))
    text = as_text(project("pacbench-test", deployment, image="pacbench", labels={}))
    assert '"/data$$HOME"' in text
    assert '"/home/me/proj$$old"' in text
    assert "$" not in text.replace("$$", "")


def test_a_larger_star_serves_a_smaller_one() -> None:
    made = Deployment(star(8), NO_LIMITS, {Path("/data"): "/data"}, {}, 0)
    assert made.covers(star(4, rate="20mbit"), NO_LIMITS, {})
    assert not made.covers(star(9), NO_LIMITS, {})
    assert not made.covers(star(4, mtu=9000), NO_LIMITS, {})
    assert not made.covers(star(4), Resources.model_validate({"memory": "1GB"}), {})
    assert not made.covers(star(4), NO_LIMITS, {Path("/other"): "/other"})


def test_a_star_with_a_gpu_for_each_worker_serves_none_in_which_they_share_them_nor_the_other_way() -> None:
    """Their backends differ, whichever case is run first."""
    on_gpus = Resources.model_validate({"device": "cuda"})
    sharing, apart = (Deployment(star(workers), on_gpus, {}, {}, 4) for workers in (8, 4))
    assert not sharing.covers(star(4), on_gpus, {})
    assert sharing.covers(star(6), on_gpus, {})
    assert apart.covers(star(2), on_gpus, {})
    assert Deployment(star(8), NO_LIMITS, {}, {}, 4).covers(star(4), NO_LIMITS, {})


class Agent:
    """Of a container: it does what it is asked, and remembers it."""

    def __init__(self) -> None:
        self.alive = True
        self.asked: list[Message] = []

    def request(self, message: Message, timeout_s: float) -> None:
        self.asked.append(message)

    def close(self) -> None:
        self.alive = False


class Containers(ComposeCluster):
    """A cluster whose containers are agents alone, and whose links are always what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self._client = None
        self.agents: dict[str, Agent] = {}
        self.composed: list[str] = []
        self.chosen: list[ipaddress.IPv4Network] = []
        """The first subnet of each deployment that was to be started."""
        self.refusals: dict[str, list[engine.EngineError]] = {}
        """How the engine answers the next commands of each kind, before it does what it is asked."""

    def _agent(self, node: str) -> Any:
        self.agents[node] = Agent()
        return self.agents[node]

    def _compose(self, *arguments: str) -> None:
        assert self._deployment
        self.composed.append(arguments[0])
        if arguments[0] == "up":
            self.chosen.append(next(iter(self._deployment.subnets.values())))
        if self.refusals.get(arguments[0]):
            raise self.refusals[arguments[0]].pop(0)

    def _measured(self, topology: Topology, counted: int | None = None) -> Readings:
        return Readings(links=(), rtt_s=(), took_s=0.0)

    def links_of(self, node: str) -> list[Message]:
        return [message for message in self.agents[node].asked if isinstance(message, Build)]


@pytest.fixture
def containers(monkeypatch: pytest.MonkeyPatch) -> Containers:
    monkeypatch.setattr(engine, "subnets", lambda client: [])
    monkeypatch.setattr(engine, "gpu_count", lambda: 0)
    return Containers()


def test_containers_that_were_replaced_for_a_file_get_their_links_before_they_are_used(
    containers: Containers, tmp_path: Path
) -> None:
    containers.use(star(2))
    before = dict(containers.agents)
    containers.share_file(tmp_path / "weights.pt")
    containers.preload()
    assert all(containers.agents[node] is not agent for node, agent in before.items())
    containers.use(star(2))
    assert all(len(containers.links_of(node)) == 1 for node in ("w0", "w1", "switch"))


def test_a_container_that_was_lost_before_data_were_read_gets_its_links_again(containers: Containers) -> None:
    containers.use(star(2))
    containers.agents["w1"].alive = False
    containers.preload()
    containers.use(star(2))
    assert len(containers.links_of("w1")) == 1
    assert len(containers.links_of("w0")) == 2, "both ends of a link are made together"


TAKEN = engine.AddressesTakenError("`docker compose` failed: Pool overlaps with other one on this address space")


def test_subnets_that_another_harness_took_first_are_chosen_elsewhere(
    containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda count: count - 1)
    containers.refusals["up"] = [TAKEN]
    containers.use(star(2))
    assert containers.composed == ["up", "down", "up"]
    assert list(map(str, containers.chosen)) == ["198.19.0.0/29", "198.19.255.248/29"]
    assert all(len(containers.links_of(node)) == 1 for node in ("w0", "w1", "switch"))


def test_a_trial_that_finds_no_subnets_costs_the_next_one_nothing(containers: Containers) -> None:
    containers.refusals["up"] = [TAKEN] * MOST_CHOICES
    with pytest.raises(engine.EngineError, match="Pool overlaps"):
        containers.use(star(2))
    assert containers.composed == ["up", "down"] * MOST_CHOICES
    containers.use(star(2))


def test_containers_that_cannot_be_taken_down_together_are_removed_one_by_one(
    containers: Containers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    removed = []
    monkeypatch.setattr(engine, "remove", lambda client, run: removed.append(run))
    containers.use(star(2))
    containers.refusals["down"] = [engine.EngineError("`docker compose` took longer than 180 s")]
    containers.__exit__(None, None, None)
    assert removed == [containers._run]
    assert capsys.readouterr().err == "", "nothing is left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_by_which_a_run_ends_also_ends_the_removal_of_its_containers(
    containers: Containers, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The command line has each of them be an interrupt."""
    removed = []

    def remove(client: object, run: str) -> None:
        os.kill(os.getpid(), number)
        removed.append(run)

    monkeypatch.setattr(engine, "remove", remove)
    before = signal.signal(number, signal.default_int_handler)
    try:
        containers.__exit__(None, None, None)
    except KeyboardInterrupt:
        pytest.fail("the removal was interrupted")
    finally:
        after = signal.signal(number, before)
    assert removed == [containers._run]
    assert after is signal.default_int_handler


def test_subnets_avoid_those_of_others_and_run_out_with_one_line() -> None:
    others = ["198.19.0.0/29", "198.19.0.16/28", "10.0.0.0/8", "fd00::/64"]
    assert [str(subnet) for subnet in free_subnets(2, others)] == ["198.19.0.8/29", "198.19.0.32/29"]
    assert len(free_subnets(8192, [])) == 8192
    with pytest.raises(MeasurementError, match="leave 8191 subnets of 198.19.0.0/16, 8192 are needed"):
        free_subnets(8192, others[:1])
    assert ipaddress.ip_network("198.18.0.0/15").supernet_of(SUBNETS)


def test_subnets_are_looked_for_from_any_of_them_on_and_round() -> None:
    assert [str(subnet) for subnet in free_subnets(2, [], SUBNET_COUNT - 1)] == ["198.19.255.248/29", "198.19.0.0/29"]
    assert set(free_subnets(SUBNET_COUNT, [], 17)) == set(free_subnets(SUBNET_COUNT, []))


def test_addresses_that_another_network_has_are_told_from_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaint = "Error response from daemon: Pool overlaps with other one on this address space"
    (tmp_path / "docker").write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(engine.AddressesTakenError, match="Pool overlaps .* -> another network has the addresses"):
        engine.command(["compose", "up"])


NO_PROCESS = str(2**22)
"""More than the number of any process (proc_sys_kernel(5), pid_max)."""


def is_orphan(maker: engine.Maker, *at_work: str) -> bool:
    return engine._is_orphan({engine.RUN_LABEL: "run", engine.OWNER_LABEL: " ".join(maker)}, set(at_work))


def test_what_was_made_is_left_where_its_maker_is_seen_to_be_gone_or_its_machine_was_started_anew() -> None:
    here = engine.Maker.this()
    gone = here._replace(pid=NO_PROCESS)
    assert engine.labels("run")[engine.OWNER_LABEL] == " ".join(here)
    assert is_orphan(gone, "run")
    assert not is_orphan(here)
    for elsewhere in ({"machine": "other"}, {"pids": "1"}, {"machine": "other", "boot": "other"}):
        assert not is_orphan(gone._replace(**elsewhere)), elsewhere
    assert is_orphan(here._replace(boot="earlier"))
    assert not is_orphan(here._replace(boot="earlier"), "run"), "another machine may have the same name"


def test_a_process_that_has_the_makers_number_now_is_another() -> None:
    here = engine.Maker.this()
    with subprocess.Popen(["sleep", "600"]) as unrelated:
        its_number = here._replace(pid=str(unrelated.pid))
        assert here.began != engine._beginning(unrelated.pid)
        assert is_orphan(its_number, "run")
        assert not is_orphan(its_number._replace(began=engine._beginning(unrelated.pid)))
        older = {engine.RUN_LABEL: "run", engine.OWNER_LABEL: " ".join(its_number[:-1])}
        assert not engine._is_orphan(older, set()), "which tells of no beginning"
        assert not is_orphan(its_number._replace(began="1/0.5")), "by another clock"
        unrelated.kill()
    assert engine._is_orphan(older, set())


@pytest.mark.parametrize("owner", [{}, {engine.OWNER_LABEL: f"host:{NO_PROCESS}"}])
def test_what_names_no_maker_is_nobodys_to_remove(owner: dict[str, str]) -> None:
    """The cluster by hand does not."""
    assert not engine._is_orphan({engine.RUN_LABEL: "by-hand", **owner}, set())


def test_a_run_is_left_alone_by_those_who_cannot_see_its_process() -> None:
    """As in two containers of one host name that share the engine's socket."""
    asks = f"from harness.cluster.docker import engine; print(engine._is_orphan({engine.labels('run')}, set()))"
    there = ("unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-c", asks)
    done = subprocess.run(there, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        ("permission denied while trying to connect to the Docker daemon socket", "group of the engine's socket"),
        ("ERROR: failed to solve: write /opt/venv/x: no space left on device", "docker builder prune"),
        ("Error response from daemon: Pool overlaps with other one on this address space", "docker network ls"),
        ("could not find an available, non-overlapping IPv4 address pool among the defaults", "docker network prune"),
        ("network x was found but has incorrect label com.docker.compose.network", "another project has a network"),
        ('Conflict. The container name "/x" is already in use by container "y"', "another container has that name"),
        ("Bind for 0.0.0.0:80 failed: port is already allocated", "docker ps"),
        ("#9 3.1 ERROR: No matching distribution found for torch==9.9", "docker/wheels"),
        ('failed to do request: Head "https://registry/v2/x": dial tcp: lookup registry', "docker/offline_base.sh"),
        ("Error response from daemon: No such image: pacbench:latest", "pacbench image"),
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "NVIDIA container toolkit"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "start the engine"),
    ],
)
def test_a_complaint_becomes_one_line_with_its_fix(complaint: str, says: str) -> None:
    line = engine.explain(f"#1 building\n\n{complaint}\n  and a hint that helps nobody\n")
    assert line.startswith(" ".join(complaint.split()))
    assert says in line
    assert "\n" not in line


def test_an_unknown_complaint_is_its_last_line() -> None:
    assert engine.explain("one\n\n  two   three\n\n") == "two three"
    assert engine.explain("") == "it said nothing"


@pytest.mark.parametrize(("version", "ok"), [("20.10.24+dfsg1", True), ("28.2.2", True), ("19.03.15", False)])
def test_an_engine_that_is_too_old_is_refused(version: str, ok: bool) -> None:
    if ok:
        engine.check_version(version)
    else:
        with pytest.raises(engine.EngineError, match=rf"is {version}; needed: 20.10 or newer"):
            engine.check_version(version)


@pytest.mark.parametrize("cpuset", ["", "a", "0;", "0-", ";1"])
def test_a_set_of_cpus_is_checked(cpuset: str) -> None:
    with pytest.raises(ValueError, match="cpuset"):
        Resources.model_validate({"cpuset": cpuset})


BY_HAND = (Path(compose.__file__).parents[3] / "docker" / "compose.yaml").read_text()


class ReachedError(Exception):
    """A scenario came as far as the nodes."""


def a_node(name: str, interfaces: Mapping[str, str]) -> None:
    raise ReachedError


@pytest.mark.parametrize("scenario", sorted(set(re.findall(r"SCENARIO(?:=|:-)([\w-]+)", BY_HAND))))
def test_the_scenarios_that_the_file_by_hand_names_can_be_trained_there(
    scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(standalone, "Node", a_node)
    with pytest.raises(ReachedError):
        standalone.take_part("w0", {}, scenario)


@pytest.mark.parametrize(
    ("scenario", "field"),
    [
        ("ci", "train.replay"),
        ("pretrained", "train.pretrain"),
        ("changing-rate", "link.trace"),
        ("racks", "fabric.groups"),
    ],
)
def test_what_takes_a_harness_outside_is_refused_by_hand(
    scenario: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICE", "cpu")
    with pytest.raises(UsageError, match=rf"^{scenario}: {field}: found .*; allowed: none; "):
        standalone.take_part("w0", {}, scenario)
