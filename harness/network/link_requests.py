"""Links that change when workers ask for it: how slow everything is to be from the next step on.

A request is a file, whose name ends in its number, and so is the answer: all nodes of a universe share ``/run``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.files import write_whole
from harness.messages import Send
from harness.network.iproute import TcConsole, apply
from harness.network.topology import Topology

PATIENCE_S = 60.0

POLL_S = 1e-3


class LinkRequests:
    """For the one who asks.

    Args:
        place: the path that all requests of a trial begin with.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._numbers = place, itertools.count()

    def __call__(self, dilation: float) -> None:
        """Have links and delays so many times slower than the case says; returns when they are.

        Raises:
            TimeoutError: nobody answers.
        """
        request = Path(f"{self._place}.{next(self._numbers)}")
        write_whole(request, repr(dilation).encode())
        wait_for(_answer(request), PATIENCE_S)


def serve(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """Change the links of ``topology`` as workers ask at ``place``, until this process is ended. Runs in a universe."""
    topology, place = Topology.model_validate(spec["topology"]), spec["place"]
    with ExitStack() as stack:
        consoles = {node: stack.enter_context(TcConsole(node)) for node in topology.nodes}
        for number in itertools.count():
            request = Path(f"{place}.{number}")
            wait_for(request)
            apply(topology.slowed(float(request.read_text())).reshape(), consoles)
            _answer(request).touch()


def _answer(request: Path) -> Path:
    return Path(f"{request}.done")


def wait_for(file: Path, patience_s: float | None = None) -> None:
    """Wait until a file is there.

    Args:
        patience_s: how long; None: without an end, since this process ends with those who make the file.

    Raises:
        TimeoutError: it is not there by then.
    """
    deadline = None if patience_s is None else time.monotonic() + patience_s
    while not file.exists():
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError("the links were not changed as the workers asked")
        time.sleep(POLL_S)
