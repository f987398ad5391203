"""What a container of ``docker/compose.yaml`` does: no harness stands outside, so every node takes its part by itself.

    docker compose -f docker/compose.yaml up

The switch measures every link; then the workers train each method of a scenario once, and the first one prints what
came of it. It is the cluster to look around in; ``pacbench run --on docker`` is the one that keeps records.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time

from harness.cluster.docker.node import Node
from harness.cluster.emulated import MEETING_PLACE, as_json
from harness.errors import MeasurementError, PacbenchError, UsageError
from harness.messages import Build, Events, Message, Trained
from harness.network import measure, probe_protocol, responder
from harness.network.addresses import SWITCH, address, worker_number
from harness.network.topology import Topology
from harness.plan.plan import make
from harness.plan.trial import Trial
from harness.scenario.load import load
from harness.scenario.schema import Case
from harness.units import format_rate, format_time

FIRST_PORT = 29500
LOOK_S = 1.0
GONE_S = 10.0
"""How long a worker on a busy link may take to refuse a connection."""

WORKERS = 4
"""The number of workers in the compose file; a scenario's own does not count."""


def main() -> None:
    """Be the node that the arguments name, as for ``node.py``; SCENARIO and DEVICE name what to train, and on what."""
    try:
        take_part(sys.argv[1], json.loads(sys.argv[2]), os.environ["SCENARIO"])
    except PacbenchError as error:
        sys.exit(f"{sys.argv[1]}: {error}")


def take_part(name: str, interfaces: dict[str, str], scenario: str) -> None:
    """Become a node, and forward or train until the scenario's first round is over.

    Raises:
        UsageError: the scenario asks for more than nodes can do by themselves.
        MeasurementError: a link is not what was asked.
    """
    own_pace = ("train.pace=none", f"cluster.device={os.environ['DEVICE']}")  # a GPU's, maybe
    plan = make(load(scenario, ["rounds=1", f"cluster.workers={WORKERS}", *own_pace]), "docker")
    case = plan.scenario.cases[0]
    check(scenario, case)
    topology = Topology(workers=WORKERS, link=case.link)
    node = Node(name, interfaces)
    node.build(Build(topology=as_json(topology)))
    if name == SWITCH:
        threading.Thread(target=responder.answer, daemon=True).start()
        measure_links(topology)
        forward()
    else:
        responder.answer()
        for number, trial in enumerate(each for each in plan.trials if each.case == case):
            train(trial, name, FIRST_PORT + number)


def check(scenario: str, case: Case) -> None:
    """Refuse what takes a harness outside.

    Raises:
        UsageError: the scenario asks for it.
    """
    train = case.train
    beyond = {
        "train.replay": (train.replay, "nobody dilates time here"),
        "train.pretrain": (train.pretrain and train.pretrain.steps, "nobody pre-trains here"),
        "train.save_every": (train.save_every, "nobody keeps checkpoints here"),
        "link.trace": (case.link.trace and f"{len(case.link.trace.rows)} rows", "nobody plays it here"),
        "fabric.groups": (case.fabric.groups, "the compose file has one switch"),
    }
    for field, (found, why) in beyond.items():
        if found:
            raise UsageError.at(scenario, field, found, f"none; {why}")


def measure_links(topology: Topology) -> None:
    """Measure every link, once all workers answer.

    Raises:
        MeasurementError: a link is not what was asked.
    """
    readings = measure.measure(topology)
    for link in readings.links:
        print(f"{link.link} {link.direction}: {format_rate(link.rate_bps_measured)}", flush=True)
    print(f"round trip: {format_time(readings.rtt_median_s)}", flush=True)
    if complaints := readings.complaints():
        raise MeasurementError("; ".join(complaints))


def forward() -> None:
    """The kernel forwards; this only stays for as long as the first worker is there to refuse a connection."""
    while True:
        time.sleep(LOOK_S)
        try:
            socket.create_connection((address(0), probe_protocol.PORT), timeout=GONE_S).close()
        except ConnectionRefusedError:
            continue
        except OSError:
            return


def train(trial: Trial, name: str, port: int) -> None:
    """Train one trial on this node; the first worker prints its accuracy and speed."""
    from harness.worker import train

    heard: list[Message] = []
    spec = {"trial": trial.for_workers.model_dump(mode="json", by_alias=True), "port": port, **MEETING_PLACE}
    train.train(spec, name, heard.append)
    if worker_number(name):
        return
    rows = [row for message in heard if isinstance(message, Events) for row in message.rows]
    accuracy = [value for _, _, kind, value in rows if kind == "accuracy"][-1]
    (result,) = (message for message in heard if isinstance(message, Trained))
    samples_per_s = result.steps * trial.case.train.samples_per_step * WORKERS / result.train_time_s
    print(
        f"{trial.method.label}: {100 * accuracy:.1f} % after {result.steps} steps, {samples_per_s:.0f} samples/s "
        "over all of them",
        flush=True,
    )
