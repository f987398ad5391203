"""What harness, agents and workers say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, Any]


Send = Callable[[Message], None]


Task = Callable[[Mapping[str, Any], str, Send], None]
"""What runs on a node: it gets the task's spec, the node's name, and a way to report."""


GLOO = "gloo"


BACKEND_VARIABLE = "PACBENCH_BACKEND"
"""Which collectives training uses: whoever gives out GPUs knows whether each worker has its own, as NCCL asks."""
