"""The same for containers: whatever happens to one of them, to their networks, or to the way to the engine."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from containers import Passage, labelled
from docker.client import DockerClient
from docker.errors import DockerException
from docker.models.containers import Container
from drawing import of_kind
from host import wait_until
from ordeal import ROOT, Ordeal, Undisturbed
from test_faults import ENDED_WELL, FAILED, INTERRUPTED, STOPPED_S, harness, send, survive

from harness.cluster.docker import engine

pytestmark = [pytest.mark.torture, pytest.mark.compose, pytest.mark.timeout(900)]

Strike = Callable[[Ordeal], object]

ROOM_LEFT_BYTES = 64 << 20
"""Room for what trains while the limit is set."""


@pytest.fixture(scope="module")
def client() -> DockerClient:
    return engine.connect()


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_engine(client: DockerClient) -> Iterator[None]:
    yield
    assert labelled(client) == []


@pytest.fixture
def ordeal(tmp_path: Path, chance: random.Random) -> Ordeal:
    return Ordeal(tmp_path, chance, cluster="docker")


def container(ordeal: Ordeal, node: str) -> Container:
    """The container of a node of the run under way.

    Raises:
        StopIteration: the run has no need of it any more.
    """
    filters = {"label": engine.RUN_LABEL}
    found: list[Container] = []

    def is_there() -> bool:
        found.extend(each for each in engine.connect().containers.list(filters=filters) if each.name.endswith(node))
        return bool(found) or ordeal.is_over()

    wait_until(is_there)
    return next(iter(found))


def pause(node: str) -> Strike:
    def strike(ordeal: Ordeal) -> None:
        paused = container(ordeal, node)
        paused.pause()
        time.sleep(STOPPED_S)
        with suppress(DockerException):  # it was found to be of no use meanwhile, and was made anew
            paused.unpause()

    return strike


def disconnect(ordeal: Ordeal) -> None:
    cut = container(ordeal, "-w1")
    cut.reload()
    for network in cut.attrs["NetworkSettings"]["Networks"]:
        engine.connect().networks.get(network).disconnect(cut, force=True)


def remove_a_network(ordeal: Ordeal) -> None:
    """Everybody is disconnected from it first: the engine keeps what is in use."""
    container(ordeal, "-w1")
    network = engine.connect().networks.list(filters={"label": engine.RUN_LABEL})[0]
    network.reload()
    for member in network.containers:
        network.disconnect(member, force=True)
    network.remove()


def restart_the_engine(ordeal: Ordeal) -> None:
    """Its containers end with it. Nobody else's engine is stopped: it must be one that ``.ci/engine`` has started."""
    assert (ROOT / ".nox" / "engine" / "pid").exists(), "start an engine that may be stopped: .ci/engine start"
    container(ordeal, "-w1")
    subprocess.run([ROOT / ".ci" / "engine", "stop"], check=True, timeout=120)
    time.sleep(ordeal.chance.uniform(0.0, STOPPED_S))
    subprocess.run([ROOT / ".ci" / "engine", "start"], check=True, timeout=120)
    ordeal.wait()
    ordeal.run("clean")


def slower(ordeal: Ordeal) -> None:
    shape = "tc qdisc replace dev eth0 root tbf rate 20mbit burst 32kb latency 100ms"
    container(ordeal, "-w1").exec_run(shape.split(), privileged=True)


def run_out_of_memory(ordeal: Ordeal) -> None:
    """What is in use stays, as a limit below that may be refused; somebody who needs more than is left comes."""
    short = container(ordeal, "-w1")
    in_use = short.stats(stream=False)["memory_stats"]["usage"]
    limit = in_use + ROOM_LEFT_BYTES
    short.update(mem_limit=limit, memswap_limit=limit)
    short.exec_run(["python3", "-c", f"b'x' * {4 * ROOM_LEFT_BYTES}"])


FAULTS: dict[str, tuple[Strike, set[int]]] = {
    "a worker's container is killed": (lambda ordeal: container(ordeal, "-w1").kill(), {FAILED}),
    "the switch's container is killed": (lambda ordeal: container(ordeal, "-switch").kill(), {FAILED}),
    "a worker's container is removed": (lambda ordeal: container(ordeal, "-w0").remove(force=True), {FAILED}),
    "a worker's container is stopped": (lambda ordeal: container(ordeal, "-w0").stop(timeout=1), {FAILED}),
    "a worker's container is paused for some seconds": (pause("-w1"), {FAILED}),
    "the switch's container is paused for some seconds": (pause("-switch"), {FAILED}),
    "a container loses its network": (disconnect, {FAILED}),
    "a network is removed": (remove_a_network, {FAILED}),
    "the engine is stopped and started again": (restart_the_engine, {FAILED}),
    "a queue is made slower": (slower, {FAILED}),
    "memory runs out": (run_out_of_memory, {FAILED}),
    "Ctrl-C": (send(signal.SIGINT, to=harness), {INTERRUPTED}),
    "Ctrl-C twice": (send(signal.SIGINT, signal.SIGINT, to=harness), {INTERRUPTED}),
    "the terminal goes away": (send(signal.SIGHUP, to=harness), {INTERRUPTED}),
}


@pytest.mark.parametrize("fault", of_kind("engine", FAULTS))
def test_containers(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    strike, codes = FAULTS[fault]

    def strike_or_miss(ordeal: Ordeal) -> None:
        try:
            strike(ordeal)
        except DockerException:
            if ordeal.is_over():  # whatever was meant has gone by itself
                raise StopIteration from None
            raise

    survive(ordeal, undisturbed, strike_or_miss, codes)


@pytest.mark.fault("engine")
def test_a_harness_that_is_killed_leaves_what_clean_removes(
    ordeal: Ordeal, undisturbed: Undisturbed, client: DockerClient
) -> None:
    def kill_and_clean(ordeal: Ordeal) -> None:
        psutil.Process(ordeal.pid).kill()
        ordeal.wait()
        ordeal.run("clean")
        assert labelled(client) == []

    survive(ordeal, undisturbed, kill_and_clean, {-signal.SIGKILL})


@pytest.mark.fault("engine")
def test_the_way_to_the_engine_is_cut(ordeal: Ordeal, undisturbed: Undisturbed, tmp_path: Path) -> None:
    with Passage(tmp_path / "engine.sock") as passage:
        ordeal.environment = {"DOCKER_HOST": f"unix://{passage.path}"}

        def cut(ordeal: Ordeal) -> None:
            passage.close()
            ordeal.wait()
            ordeal.run("clean")

        survive(ordeal, undisturbed, cut, {FAILED, ENDED_WELL})
