"""The same for containers: whatever happens to one of them, to their networks, or to the way to the engine."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from containers import Passage, labelled
from docker.client import DockerClient
from docker.models.containers import Container
from host import wait_until
from ordeal import Ordeal, Undisturbed
from test_faults import ENDED_WELL, FAILED, INTERRUPTED, STOPPED_S, harness, send, survive

from harness.cluster.docker import engine

pytestmark = [pytest.mark.torture, pytest.mark.compose, pytest.mark.timeout(900)]

Strike = Callable[[Ordeal], object]


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


def container(node: str) -> Container:
    """The container of a node of the run under way."""
    filters = {"label": engine.RUN_LABEL}
    found: list[Container] = []

    def is_there() -> bool:
        found.extend(each for each in engine.connect().containers.list(filters=filters) if each.name.endswith(node))
        return bool(found)

    wait_until(is_there, 120)
    return found[0]


def pause(ordeal: Ordeal) -> None:
    paused = container("-w1")
    paused.pause()
    time.sleep(STOPPED_S)
    paused.unpause()


def disconnect(ordeal: Ordeal) -> None:
    cut = container("-w1")
    cut.reload()
    for network in cut.attrs["NetworkSettings"]["Networks"]:
        engine.connect().networks.get(network).disconnect(cut, force=True)


def slower(ordeal: Ordeal) -> None:
    shape = "tc qdisc replace dev eth0 root tbf rate 20mbit burst 32kb latency 100ms"
    container("-w1").exec_run(shape.split(), privileged=True)


FAULTS: dict[str, tuple[Strike, set[int]]] = {
    "a worker's container is killed": (lambda ordeal: container("-w1").kill(), {FAILED}),
    "the switch's container is killed": (lambda ordeal: container("-switch").kill(), {FAILED}),
    "a worker's container is removed": (lambda ordeal: container("-w0").remove(force=True), {FAILED}),
    "a worker's container is stopped": (lambda ordeal: container("-w0").stop(timeout=1), {FAILED}),
    "a container is paused for some seconds": (pause, {FAILED}),
    "a container loses its network": (disconnect, {FAILED}),
    "a queue is made slower": (slower, {FAILED}),
    "memory runs out": (lambda ordeal: container("-w1").update(mem_limit="64m", memswap_limit="64m"), {FAILED}),
    "Ctrl-C": (send(signal.SIGINT, to=harness), {INTERRUPTED}),
    "Ctrl-C twice": (send(signal.SIGINT, signal.SIGINT, to=harness), {INTERRUPTED}),
    "the terminal goes away": (send(signal.SIGHUP, to=harness), {INTERRUPTED}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_containers(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    survive(ordeal, undisturbed, *FAULTS[fault])


def test_a_harness_that_is_killed_leaves_what_clean_removes(
    ordeal: Ordeal, undisturbed: Undisturbed, client: DockerClient
) -> None:
    def kill_and_clean(ordeal: Ordeal) -> None:
        process = psutil.Process(ordeal.pid)
        process.kill()
        process.wait()
        ordeal.run("clean")
        assert labelled(client) == []

    survive(ordeal, undisturbed, kill_and_clean, {-signal.SIGKILL})


def test_the_way_to_the_engine_is_cut(ordeal: Ordeal, undisturbed: Undisturbed, tmp_path: Path) -> None:
    with Passage(tmp_path / "engine.sock") as passage:
        ordeal.environment = {"DOCKER_HOST": f"unix://{passage.path}"}

        def cut(ordeal: Ordeal) -> None:
            passage.close()
            ordeal.process.wait(60)  # type: ignore[union-attr]
            ordeal.run("clean")

        survive(ordeal, undisturbed, cut, {FAILED, ENDED_WELL})
