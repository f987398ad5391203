"""A cluster of containers: the same topology, agents and proofs as in network namespaces, wherever an engine runs.

Every node is a container, every wire between two nodes a network of its own. The engine's addresses only serve to tell
a container's interfaces apart; ``node.py`` then gives them the topology's. So both directions are shaped where the
topology says, the switch forwards, and nothing on the host is written but by the engine. Containers get NET_ADMIN, and
are neither privileged nor on the host's network.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from harness.cluster.connection import AgentConnection
from harness.cluster.docker import engine
from harness.cluster.docker.project import (
    CACHE,
    SUBNET_COUNT,
    WORKDIR,
    Deployment,
    as_text,
    free_subnets,
    networks,
    project,
)
from harness.cluster.emulated import MEETING_PLACE, EmulatedCluster, as_json, preload_request, watchers
from harness.cluster.fleet import Fleet
from harness.cluster.protocol import EXECUTE
from harness.errors import MeasurementError, UsageError
from harness.files import is_folder
from harness.messages import Build, CheckCode, Message, Preload
from harness.network.addresses import SWITCH
from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.provenance import code_digest
from harness.scenario.schema import NO_LIMITS, Resources, Train
from harness.start import ending_signals
from harness.workload.data import DATASETS, cache, places

LIST_LIBRARIES = (
    "python3",
    "-c",
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))",
)

CONFINED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true")

INHERITED = ["HOME", "HOSTNAME"]
"""Variables that the engine gives to a container, beside those of its image."""

MOST_CHOICES = 5
"""How often subnets are chosen, where another harness takes the same ones before us."""

HELLO_TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 60.0


class ComposeCluster(EmulatedCluster):
    """See the module. Entered, it has found the engine and the image; containers come with the first topology.

    Args:
        keep: leave the containers as they are at the end, and say how to enter them.
        image: of the workers.
    """

    name = "docker"

    @classmethod
    def why_it_works(cls) -> str:
        """Why this machine can have one.

        Raises:
            EngineError: it cannot.
        """
        engine.connect()
        engine.compose_version()
        return "containers can be made here"

    def __init__(self, keep: bool = False, image: str = engine.IMAGE) -> None:
        super().__init__()
        self._keep = keep
        self._image = image
        self._run = uuid.uuid4().hex[:8]
        self._name = f"pacbench-{self._run}"
        self._fleet = Fleet()
        self._deployment: Deployment | None = None
        self._mounts: dict[Path, str] = {}
        self._folders: tuple[Path, ...] = ()
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
            with contextlib.suppress(engine.EngineError):  # what it leaves is removed piece by piece
                self._take_down()
            try:
                engine.remove(self._client, self._run)  # also what a command that was cut short began
            except engine.EngineError as complaint:
                print(f"left, perhaps: containers: {complaint}; removed by: pacbench clean", file=sys.stderr)

    def image_digest(self) -> str:
        """See ``Cluster.image_digest``."""
        return str(engine.image_facts(engine.connect(), self._image)["digest"])

    def provenance(self) -> dict[str, Any]:
        """See ``Cluster.provenance``: engine, image, and the versions inside it."""
        client = engine.connect()
        marks = [f"--label={name}={value}" for name, value in engine.labels(self._run).items()]
        shown = engine.command(["run", "--rm", *CONFINED, *marks, self._image, *LIST_LIBRARIES])
        return {
            "engine": client.version()["Version"],
            "compose": engine.compose_version(),
            "container": {**engine.image_facts(client, self._image), "libraries": json.loads(shown)},
        }

    def check_kind(self, topology: Topology, resources: Resources = NO_LIMITS) -> None:
        """See ``Cluster.check_kind``."""
        if resources.device == "cuda" and not engine.gpu_count():
            raise UsageError.at("scenario", "cluster.device", "cuda", "cpu, as `nvidia-smi -L` names no GPU here")
        if topology.fabric.groups:
            raise UsageError.at("scenario", "fabric.groups", topology.fabric.groups, "none on docker, but on netns")
        if topology.link.trace:
            raise UsageError.at("scenario", "link.trace", "a trace", "none on docker, but on netns")

    def share_file(self, file: Path) -> None:
        """See ``Cluster.share_file``."""
        self._mounts[file.resolve()] = os.path.join(WORKDIR, file)

    def share_folder(self, folder: Path) -> None:
        """See ``CommandCluster.share_folder``."""
        self._folders += (folder.resolve(),)

    def find_command(self, command: str, environment: Mapping[str, str]) -> None:
        """See ``CommandCluster.find_command``: what the image has only a container knows."""

    def signal(self, number: int) -> None:
        """See ``Cluster.signal``."""
        assert self._current, "a topology must be in use"
        self._fleet.signal(self._current[0].worker_nodes, number)

    def preload(self, train: Train | None = None) -> None:
        """See ``Cluster.preload``. A data set is looked for, or downloaded, here; the workers read it from here."""
        if train and not train.replay:
            folder = Path(train.data_dir) if train.data_dir else None
            DATASETS[train.dataset].load(folder)
            found = [place for place in places(folder) if is_folder(place)]
            self._mounts |= {place.resolve(): _inside(place, train.data_dir) for place in found}
        request = preload_request(train)
        self._preloads.append(request)
        if self._deployment:
            started = self._bring_up(self._deployment.topology, self._deployment.resources)
            others = [node for node in self._deployment.topology.worker_nodes if node not in started]
            self._fleet.request(dict.fromkeys(others, request), self.preload_timeout_s)

    def run(self, task: str, spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        """See ``Cluster.run``."""
        assert self._current, "a topology must be in use"
        topology = self._current[0]
        own: dict[str, Any] = {**spec, **MEETING_PLACE}
        if task == EXECUTE:
            own |= {"environment": engine.image_environment(self._client, self._image), "inherited": INHERITED}
            own["as_owner"] = True
        return self._fleet.task(task, topology.worker_nodes, own, timeout_s, watchers(task, topology, spec))

    def use(self, topology: Topology, resources: Resources = NO_LIMITS) -> Readings:
        """See ``Cluster.use``; containers that were lost are started again, and all links measured anew.

        Where links cannot be had, the next trial gets other containers: these may have lost their networks. Those that
        are to be kept stay, to be looked at.
        """
        if self._current and not all(map(self._fleet.serves, topology.nodes)):
            self._current = None
        try:
            return super().use(topology, resources)
        except MeasurementError:
            if not self._keep:
                with contextlib.suppress(MeasurementError):
                    self._take_down()
            raise

    def _build(self, topology: Topology, resources: Resources) -> None:
        self._current = None
        self._bring_up(topology, resources)
        request = Build(topology=as_json(topology))
        self._fleet.request(dict.fromkeys(topology.nodes, request), BUILD_TIMEOUT_S)

    def _task(self, task: str, nodes: list[str], spec: Mapping[str, Any], timeout_s: float) -> Iterator[Message]:
        return self._fleet.task(task, nodes, spec, timeout_s)

    def _bring_up(self, topology: Topology, resources: Resources, choices: int = MOST_CHOICES) -> list[str]:
        """Have the containers of a topology running, each with its agent, torch and data; what is there stays.

        Where some of them cannot be started again, such as one that somebody paused, all are made anew.

        Args:
            choices: how often subnets may be chosen yet.

        Returns:
            The nodes that were started.
        """
        before = self._deployment
        if not self._deployment or not self._deployment.covers(topology, resources, self._mounts):
            self._take_down()
            # Whoever took our first ones would also take the next ones at the same time as we.
            first = 0 if choices == MOST_CHOICES else secrets.randbelow(SUBNET_COUNT)
            names = [network.name for network in networks(topology)]
            subnets = dict(zip(names, free_subnets(len(names), [*engine.subnets(self._client)], first), strict=True))
            mounts, gpus = dict(self._mounts), engine.gpu_count()
            self._deployment = Deployment(topology, resources, mounts, subnets, gpus, self._folders)
        anew = self._deployment is not before
        missing = [node for node in self._deployment.topology.nodes if not self._fleet.serves(node)]
        if missing:
            self._current = None  # its links ended with the containers
            try:
                self._compose("up", "-d", "--no-build")
            except engine.EngineError as error:
                self._take_down()
                if not anew:
                    return self._bring_up(topology, resources, choices)
                if isinstance(error, engine.AddressesTakenError) and choices > 1:
                    return self._bring_up(topology, resources, choices - 1)
                raise
            for node in missing:
                self._fleet.add(node, self._agent(node))
            check = CheckCode(digest=code_digest())
            self._fleet.request(dict.fromkeys(missing, check), HELLO_TIMEOUT_S)
            workers = [node for node in self._deployment.topology.worker_nodes if node in missing]
            for preload in self._preloads:
                self._fleet.request(dict.fromkeys(workers, preload), self.preload_timeout_s)
        return missing

    def _take_down(self) -> None:
        self._current = None
        self._fleet.close()
        if self._deployment:
            self._compose("down", "-t", "0")
            self._deployment = None

    def _agent(self, node: str) -> AgentConnection:
        assert self._deployment
        interfaces = json.dumps(self._deployment.interfaces_of(node))
        inside = ["python3", f"{WORKDIR}/harness/start.py", "harness.cluster.docker.node", node, interfaces]
        return AgentConnection(["docker", "exec", "-i", f"{self._name}-{node}", *inside])

    def _compose(self, *arguments: str) -> None:
        assert self._deployment
        file = project(self._name, self._deployment, image=self._image, labels=engine.labels(self._run))
        engine.command(["compose", "-p", self._name, "-f", "-", *arguments], as_text(file))


def _inside(place: Path, data_dir: str | None) -> str:
    """Where workers find a folder: as the scenario names it, or where their own look-up goes."""
    if data_dir is not None:
        return os.path.join(WORKDIR, data_dir)
    return str(place).replace(str(cache()), f"{CACHE}/pacbench")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let nothing interrupt the removal of what was made, neither whoever does so nor the terminal that goes away."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
