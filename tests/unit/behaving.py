"""An agent whose tasks do what the tests of a fleet ask for: a program that imports no more than that takes."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from harness.cluster.agent import TASKS, Agent
from harness.messages import HANDED, Message, Send, message_kind


@message_kind
class Result(Message):
    """What the task reports."""

    value: str


def behave(spec: Mapping[str, Any], node: str, send: Send) -> None:
    """What a node does is in the spec."""
    match spec.get(node, "report"):
        case "report":
            send(Result(value=node.upper()))
        case "read":
            with spec[HANDED] as file:
                file.seek(0)
                send(Result(value=hashlib.sha256(file.read()).hexdigest()))
        case "hang":
            time.sleep(60)
        case "lose the agent":
            os.kill(os.getppid(), signal.SIGKILL)


if __name__ == "__main__":
    TASKS["behave"] = "behaving:behave"
    Agent(lambda _: None, {}).serve()
