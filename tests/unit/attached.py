"""Real scripts with real ranks, attached to by their environment alone; and the same scripts as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch.distributed

from harness import attach

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts"

ENDS_WITHIN_S = 280
"""Far more than it takes, on a machine that does other things too."""


@dataclass(frozen=True)
class Ran:
    """How the ranks of a script ended."""

    codes: list[int]
    stdout: list[str]
    stderr: list[str]
    findings: Path

    @property
    def told(self) -> list[attach.RankFindings]:
        return attach.read(self.findings)


def run(
    folder: Path,
    script: Path,
    *arguments: str,
    attachment: attach.Attachment | None = None,
    ranks: int = 2,
    **more: str,
) -> Ran:
    """Run a script with torchrun's environment on this machine.

    Args:
        folder: where findings go.
        more: more variables of the environment.
    """
    findings = Path(tempfile.mkdtemp(dir=folder))
    environment = {**os.environ, **more}
    if attachment is not None:
        environment |= attach.environment(attachment, findings)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**environment, **_place(rank, ranks, store.port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=ENDS_WITHIN_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    return Ran(codes, [out for out, _ in outputs], [errors for _, errors in outputs], findings)


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun gives its workers, whose store is here: so no port is chosen before it is bound."""
    return {
        "RANK": f"{rank}",
        "LOCAL_RANK": f"{rank}",
        "WORLD_SIZE": f"{ranks}",
        "LOCAL_WORLD_SIZE": f"{ranks}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
