"""What a script's processes are told, through one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

SETTLING_STEPS, TIMED_STEPS, COPIED_STEPS = 4, 12, 6
"""Steps of a look, one kind after the other: until DDP's buckets are settled, those that are timed, and those whose
gradients are copied."""

LOOK_STEPS = SETTLING_STEPS + TIMED_STEPS + COPIED_STEPS

SEEDS = 2**32
"""Below which seeds of numpy and of Python's hashes must be."""

Viewed = tuple[str, dict[str, Any], str | None]
"""A method that a look tries on copied gradients: its name, its parameters, and the hash of a plug-in's code."""

VARIABLE = "PACBENCH_ATTACH"
"""Holds ``Orders`` as JSON. A Python without it is left alone."""


@dataclass(frozen=True)
class Orders:
    """See ``Attachment``, which checks what is written here."""

    folder: str
    """Where findings are written; an absolute path."""
    method: str | None
    method_code: str | None
    """Hash of its code, if it is a plug-in: what was checked is what is to run."""
    params: dict[str, Any]
    observe: bool
    seed: int | None
    steps: int | None
    interface: str | None = None
    shifts_seeds: bool = False
    look: list[Viewed] | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a model under DDP is looked for at all."""
        return self.observe or self.method is not None

    def to_json(self) -> str:
        """See ``read_orders``."""
        return json.dumps(asdict(self))


def read_orders() -> Orders | None:
    """What this process is told; None: nothing."""
    text = os.environ.get(VARIABLE)
    return Orders(**json.loads(text)) if text else None
