"""``pacbench link`` between two workers of an emulated network: what it finds of links that are known."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from harness.cluster.protocol import CommandCluster
from harness.messages import Output
from harness.network.path.findings import Findings
from harness.network.topology import Topology
from harness.run.command import Job, execute

BOTH = """
import os, re, subprocess, sys, time
link = [sys.executable, "-m", "harness", "link"]
if os.environ["RANK"] == "1":
    with open("served", "w") as served:
        sys.exit(subprocess.run([*link, "--serve", "--once"], stdout=served).returncode)
while not (os.path.exists("served") and (told := re.search("TOKEN=(\\\\S+) .*\\n", open("served").read()))):
    time.sleep(0.05)
with open("found.json", "w") as found:
    command = [*link, "w1", "--token", told[1], "-o", "link.toml", "--json", *sys.argv[1:]]
    sys.exit(subprocess.run(command, stdout=found).returncode)
"""
"""Worker 1 serves, worker 0 measures."""


TRIES = 3
"""On a busy machine a path only seems to be slow, or late: it is measured again."""

Check = Callable[[Findings, Path], None]
"""That what was found of a path, and written into a folder, is what is known of its links."""


def measure_until(check: Check, cluster: CommandCluster, topology: Topology, folder: Path, *arguments: str) -> None:
    """Measure the path between two workers, again where it is not what it should be; each time in a new folder."""
    for attempt in range(TRIES):
        own = folder / str(attempt)
        own.mkdir()
        try:
            check(measured(cluster, topology, own, *arguments), own)
        except AssertionError:
            if attempt == TRIES - 1:
                raise
        else:
            return


def measured(cluster: CommandCluster, topology: Topology, folder: Path, *arguments: str) -> Findings:
    """What worker 0 finds of the path to worker 1; it leaves ``link.toml`` in the folder."""
    heard: list[Output] = []
    job = Job([sys.executable, "-c", BOTH, *arguments], folder, dict(os.environ))
    done = execute(cluster, topology, job, heard.append, ["pacbench", "exec"])
    assert (done.exit_code, done.ending) == (0, "finished"), [line for said in heard for line in said.lines]
    return Findings.model_validate_json((folder / "found.json").read_text())
