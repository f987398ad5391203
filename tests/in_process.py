"""The command line in the process of the tests: quick, where a process of its own is not what is tested."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.cli.main import main
from harness.start import ending_signals


def call_pacbench(arguments: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script in a folder: what it prints, and its exit code. What it changes in the process is undone.

    An exception that it lets through fails the test, as a traceback on stderr would.
    """
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    with (
        _as_before(folder, ["pacbench", *arguments]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return subprocess.CompletedProcess(arguments, code, _text(stdout), _text(stderr))


@contextlib.contextmanager
def _as_before(folder: Path, arguments: list[str]) -> Iterator[None]:
    """Enter a folder with these arguments, and undo that and what ``main`` sets."""
    before, given = Path.cwd(), sys.argv
    handlers, threshold = {number: signal.getsignal(number) for number in ending_signals()}, gc.get_threshold()
    hook = sys.unraisablehook
    os.chdir(folder)
    sys.argv = arguments
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = given
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.set_threshold(*threshold)
        sys.unraisablehook = hook


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
