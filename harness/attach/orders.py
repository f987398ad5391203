"""What a script's processes are told, through one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

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
