"""What runs on each host: the agent of its rank. Its workers end with it, and use the host's own interface."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from harness import programs
from harness.cluster.agent import Agent
from harness.cluster.hosts.shaper import Shaper
from harness.errors import UsageError
from harness.messages import CheckFile, ShapeLink
from harness.provenance import machine
from harness.worker.processes import end_with_parent

MODULE = "harness.cluster.hosts.agent"

LEFT_ALONE = 3
"""The exit code of an agent whose leader went away without having said that it may end."""


def command(interface: str, address: str, shapes: bool) -> list[str]:
    """The command that is a host's agent.

    Args:
        shapes: whether the interface may be shaped.
    """
    own = json.dumps({"interface": interface, "address": address})
    return programs.python(MODULE, own, *([interface] if shapes else []))


def check_file(request: CheckFile) -> None:
    """Refuse a file that is another one here."""
    path = Path(request.path)
    if not path.is_file() or digest(path) != request.digest:
        raise UsageError.at(machine(), "file", request.path, "the one that rank 0 has: hosts share folders, or copies")


def digest(path: Path) -> str:
    """Of what is in a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Serve until rank 0 has no more to say.

    Arguments: what goes into every task's spec, as JSON; then, where it may be shaped, the interface.
    """
    own, shaped = json.loads(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    Agent(lambda _: end_with_parent(), {CheckFile: check_file, ShapeLink: Shaper(shaped)}, own).serve()
    sys.exit(LEFT_ALONE)
