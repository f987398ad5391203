"""Processes that start in milliseconds: forked by a server that has imported everything once, alone.

Forking the test process itself would copy whatever threads other tests have left in it. (The first optimizer made in a
process imports torch._dynamo, which takes as long as torch itself.)
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TIMEOUT_S = 120

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("baselines", "hypothesis", "pytest", "torch._dynamo"),
        *("harness.cli.main", "harness.analysis.compare", "harness.run.execute", "harness.report.export"),
        *("harness.analysis.gate", "harness.report.page"),
    ]
)


def run_pacbench(arguments: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own, run in a folder.

    Raises:
        subprocess.TimeoutExpired: it took too long; it has been ended.
    """
    with TemporaryDirectory() as outputs:
        stdout, stderr = (Path(outputs, name) for name in ("stdout", "stderr"))
        process = SERVER.Process(target=_main, args=(arguments, folder, stdout, stderr))
        process.start()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, TIMEOUT_S)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, stdout.read_text(), stderr.read_text())


def _main(arguments: tuple[str, ...], folder: Path, stdout: Path, stderr: Path) -> None:
    from harness.cli.main import main

    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    sys.argv = ["pacbench", *arguments]
    main()
