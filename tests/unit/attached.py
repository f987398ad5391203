"""Real scripts with real ranks, attached to by their environment alone; and the same scripts as they are."""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch.distributed
from forked import SERVER

from harness import attach
from harness.attach.begin import begin

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
    environment = _environment(attachment, findings, more)
    store = _store()
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


def run_forked(
    folder: Path, script: Path, *arguments: str, attachment: attach.Attachment | None = None, ranks: int = 2
) -> Ran:
    """The same in forks of a process that has torch already: as ``run``, but for how attachment begins."""
    findings = Path(tempfile.mkdtemp(dir=folder))
    environment = _environment(attachment, findings, {})
    store = _store()
    outputs = [[folder / f"rank-{rank}.{name}" for name in ("stdout", "stderr")] for rank in range(ranks)]
    processes = [
        SERVER.Process(
            target=_run_script, args=(script, arguments, {**environment, **_place(rank, ranks, store.port)}, *printed)
        )
        for rank, printed in enumerate(outputs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(ENDS_WITHIN_S)
        process.kill()
        process.join()
    stdout, stderr = ([file.read_text() for file in files] for files in zip(*outputs, strict=True))
    return Ran([process.exitcode for process in processes], stdout, stderr, findings)


def _run_script(
    script: Path, arguments: Sequence[str], environment: Mapping[str, str], stdout: Path, stderr: Path
) -> NoReturn:
    """What Python does with a script, in a process that was forked; it leaves as Python would."""
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    code = 0
    try:
        begin()
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _environment(attachment: attach.Attachment | None, findings: Path, more: Mapping[str, str]) -> dict[str, str]:
    attached = {} if attachment is None else attach.environment(attachment, findings)
    return {**os.environ, **more, **attached}


def _store() -> torch.distributed.TCPStore:
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


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
