"""A rank's part of a checkpoint: it is written by ``torch.save``, travels in messages, and is kept by the harness."""

from __future__ import annotations

import signal
import textwrap
from base64 import b64encode
from collections.abc import Mapping
from typing import IO, Any

import torch

from harness.errors import MeasurementError
from harness.messages import KEPT, PART_BYTES, Saved, Send


class _Away:
    """A file for ``torch.save`` that is sent as it is written, so that it is never whole in memory."""

    def __init__(self, send: Send, steps: int) -> None:
        self._send, self._steps = send, steps

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        for start in range(0, len(content), PART_BYTES):
            self._say(content[start : start + PART_BYTES])
        return len(content)

    def flush(self) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """It is whole."""
        self._say(b"", is_last=True)

    def _say(self, part: bytes | memoryview, is_last: bool = False) -> None:
        self._send(Saved(steps=self._steps, part=b64encode(part).decode(), is_last=is_last))


def wait_for_signal() -> None:
    """Have ``KEPT`` wait until ``save`` waits for it; in this thread and those that it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {KEPT})


def save(send: Send, steps: int, content: Mapping[str, Any]) -> None:
    """Send what a rank needs to go on after so many steps, and wait until that of all ranks is kept."""
    away = _Away(send, steps)
    torch.save(dict(content), away)  # type: ignore[arg-type]  # it writes, and flushes, and that is all
    away.end()
    signal.sigwait({KEPT})


def load(file: IO[bytes], whose: Mapping[str, Any]) -> dict[str, Any]:
    """What was saved.

    Args:
        whose: what it must say of the rank that saved it.

    Raises:
        MeasurementError: it was saved by another rank, or of another trial, or is damaged.
    """
    file.seek(0)
    try:
        saved: dict[str, Any] = torch.load(file, weights_only=True)
        found = {name: saved[name] for name in whose}
    except Exception as error:  # reading what is no such file may raise anything
        reason = textwrap.shorten(str(error) or type(error).__name__, 160)
        raise MeasurementError(f"checkpoint: damaged ({reason})") from None
    if found != dict(whose):
        raise MeasurementError(f"checkpoint: found one of {found}; allowed: one of {dict(whose)}")
    return saved


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Those of the generators that a model may draw by."""
    states = {"cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def restore_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Draw as if nothing had happened since they were saved."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
