"""A command on every worker of a kernel with netem: its links have a delay, and all else is this machine's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from containers import NODE

from harness.cluster.uml import UmlCluster
from harness.messages import Output
from harness.network.topology import Topology
from harness.run.command import Job, execute
from harness.scenario.links import Link

pytestmark = pytest.mark.netem

DELAYED = Topology(workers=2, link=Link.model_validate({"rate": "20mbit", "delay": "25ms"}))

ECHO = """
import os, socket, sys, time
if os.environ["RANK"] == "0":
    with socket.create_server(("", 7000)) as server:
        open("ready", "w").close()
        link, _ = server.accept()
        while got := link.recv(1 << 16):
            link.sendall(got)
    sys.exit(int(os.environ["ENDS_WITH"]))
while not os.path.exists("ready"):
    time.sleep(0.05)
link = socket.create_connection(("w0", 7000))
begun = time.monotonic()
link.sendall(b"x")
link.recv(1)
print("round trip", time.monotonic() - begun)
"""


@pytest.mark.parametrize("ends_with", [0, 7])
def test_a_command_runs_behind_delays_and_its_code_is_passed_on(ends_with: int, tmp_path: Path) -> None:
    heard: list[Output] = []
    job = Job([sys.executable, "-c", ECHO], tmp_path, {**os.environ, "ENDS_WITH": str(ends_with)})
    found = execute(UmlCluster(), DELAYED, job, heard.append, ["pacbench", "exec"])
    assert (found.exit_code, found.ending) == (ends_with, "failed" if ends_with else "finished"), heard
    (line,) = [line for said in heard if said.rank == 1 for line in said.lines if line.startswith("round trip")]
    assert float(line.split()[-1]) >= 0.9 * 4 * 0.025, "it cannot be answered before it has crossed four links"
    assert (tmp_path / "ready").exists(), "files are this machine's"
    assert found.before.complaints() == []


def test_a_containers_queue_has_nothing_of_an_earlier_topology(tmp_path: Path) -> None:
    """Netem that is replaced by netem keeps what is not said anew; the node reads its queue back each time."""
    links = [{"rate": "20mbit", "delay": "5ms", "jitter": "1ms", "corrupt": "1%"}, {"rate": "unshaped", "delay": "1ms"}]
    command = ["unshare", "--net", sys.executable, "-c", NODE, *map(json.dumps, links)]
    heard: list[Output] = []
    found = execute(UmlCluster(), DELAYED, Job(command, tmp_path, {**os.environ}), heard.append, ["pacbench", "exec"])
    assert found.exit_code == 0, heard
    lines = [line for said in heard if said.rank == 0 for line in said.lines]
    assert [line.split()[0] for line in lines] == ["netem", "netem"]
