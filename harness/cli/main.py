"""The console script: one verb, one clear line for every error, and the exit code that belongs to it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import TextIO

import typer

from harness.cli.app import make_app
from harness.cli.console import accept_any_text
from harness.errors import MeasurementError, PacbenchError, UsageError
from harness.files import NO_ROOM, NoRoomError
from harness.plain import visible
from harness.programs import NO_MORE, OBJECTS_BETWEEN_COLLECTIONS
from harness.start import EXIT_INTERRUPTED, INTERRUPTED, ending_signals, hear

MOST_TOLD = 4000
"""Signs of an error that are told. Much longer are only those that repeat a name or an argument without end."""

STRUCK_AGAIN_AFTER_S = 0.01

NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "can't start new thread")
"""What errors say that are no ``MemoryError``: of the loader of libraries, the kernel, torch and threads."""


class Interruption(KeyboardInterrupt):
    """Ctrl-C, or a request to end.

    Python ends a process by SIGINT, whatever its exit code is, when the last ``exec`` of text, by which dataclasses are
    made, was left by ``KeyboardInterrupt`` itself. A subclass is none to it.
    """


def main() -> None:
    """Run the verb that the command line names."""
    accept_any_text()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    sys.unraisablehook = _interrupt_again
    try:
        hear(_interrupt)  # whoever is asked to end in any way does so in good order
        code = make_app()(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt  # typer made an exit code of it
        if code:
            sys.exit(code)  # a verdict
    except (KeyboardInterrupt, typer.Abort):
        _leave(INTERRUPTED, EXIT_INTERRUPTED)
    except BrokenPipeError:
        _close(sys.stdout)  # the reader has gone: nothing to tell it
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        _leave(*told)
    finally:
        _hear_no_more()


def _told(error: Exception) -> tuple[str, int] | None:
    """What a user is told of an error, and the exit code; None of one that is a fault of ours."""
    if isinstance(error, PacbenchError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):
        return f"command line: {error.format_message()}", UsageError.exit_code
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        _close(sys.stdout)
        return f"{error.filename or 'what is printed'}: cannot be written: {error.strerror}", NoRoomError.exit_code
    if isinstance(error, OSError) and error.errno in NO_MORE:
        what = error.filename or "a file or process"
        return f"{what}: cannot be had now: {error.strerror}; what had finished is kept", MeasurementError.exit_code
    if _lacks_memory(error):
        return "there is no memory left for it; what had finished is kept", MeasurementError.exit_code
    return None


def _lacks_memory(error: BaseException) -> bool:
    """Whether it, or what led to it, is that memory could not be had: Python's, a library's, or that of a thread."""
    return (
        isinstance(error, MemoryError)
        or any(sign in str(error).lower() for sign in NO_MEMORY)
        or any(_lacks_memory(earlier) for earlier in (error.__cause__, error.__context__) if earlier is not None)
    )


def _interrupt(number: int, _: object) -> None:
    raise Interruption(number)


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Have an interruption that struck where Python lets no error out, in a destructor say, strike a moment later.

    By the same signal: another one may be ignored.
    """
    if isinstance(ignored.exc_value, Interruption):
        threading.Timer(STRUCK_AGAIN_AFTER_S, os.kill, (os.getpid(), ignored.exc_value.args[0])).start()
    else:
        sys.__unraisablehook__(ignored)


def _hear_no_more() -> None:
    """Ignore the next Ctrl-C: all is done, and Python, which takes its handlers away as it ends, would be killed by it.

    The exit code would be lost.
    """
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _close(stream: TextIO) -> None:
    """Have nothing more written there, also not what is still buffered when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _leave(message: str, code: int) -> None:
    _hear_no_more()
    told = visible(message)
    if len(told) > MOST_TOLD:
        told = f"{told[: MOST_TOLD // 2]} ... {told[-MOST_TOLD // 2 :]}"
    print(f"pacbench: {told}", file=sys.stderr)
    sys.exit(code)
