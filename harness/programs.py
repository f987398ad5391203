"""Other programs: how they are found and started, and what they get of the user's environment.

Everything that the harness starts, it starts here. Programs are found where distributions put them, also where the user
does not look (Debian has ip and tc in /usr/sbin, which is on root's PATH alone). And nothing of the current folder is
run because of an empty entry in a list of folders, which nobody means, and which PATH=$PATH:/x makes out of no PATH.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import MeasurementError

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

PACKAGES = {
    **dict.fromkeys(("ip", "ss", "tc"), "iproute2"),
    **dict.fromkeys(("setpriv", "unshare"), "util-linux"),
    "busybox": "busybox-static",
    "cc": "gcc libc6-dev",
    "linux.uml": "user-mode-linux",
    "stdbuf": "coreutils",
}
"""What Debian has programs in, where its name is another."""

LET_THROUGH = frozenset(
    (
        *("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "TERM", "LANG", "LANGUAGE"),
        *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"),
        *("PYTHONPYCACHEPREFIX", "PYTHONUTF8", "PYTHONCOERCECLOCALE"),  # where Python finds and puts its code, and text
        *("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),  # which GPUs there are
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "SSH_AUTH_SOCK"),  # how downloads are trusted
    )
)
"""What is let through of the user's environment, beside PATH: it says where things are, and changes no measurement.

All else stays behind, most of it without harm. But TORCH_DISTRIBUTED_DEBUG ends forked workers by a signal, GLOO_* and
NCCL_* lead traffic elsewhere, OMP_* and MKL_* change how long a step takes, LD_PRELOAD anything, GIT_DIR the commit.
What a user runs by ``pacbench exec`` has all of his environment.
"""

LET_THROUGH_ALL = ("LC_", "XDG_", "DOCKER_", "BUILDX_", "BUILDKIT_")
"""Likewise, all variables that begin so: locales and folders, and what docker's client goes by."""

START = Path(__file__).with_name("start.py")

OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""For Pythons of ours: importing torch makes many objects, all of which stay, and to search them for garbage takes a
fifth of that time."""


NO_MORE = {
    errno.EAGAIN: "this machine, or a limit (ulimit -u), allows no more processes",
    errno.EMFILE: "this process may open no more files (ulimit -n)",
    errno.ENFILE: "this machine may open no more files",
}
"""What the system has run out of where a process cannot be started: the same command may work later."""


class NotStartedError(MeasurementError):
    """A program could not be started. Whatever was asked of it is not to blame."""


class MissingProgramError(NotStartedError):
    """A program is not installed."""

    @classmethod
    def of(cls, program: str) -> MissingProgramError:
        """The error with its fix."""
        return cls(f"{program} is missing; on Debian: apt-get install {package(program)}")


def package(program: str) -> str:
    """What to install for a program, by Debian's name."""
    return PACKAGES.get(program, program)


def environment() -> dict[str, str]:
    """What is let through of the user's, for whatever is started; see ``LET_THROUGH``.

    PATH has the system's folders too, and no list of folders an empty entry.
    """
    given = {name: value for name, value in os.environ.items() if is_let_through(name)}
    for name in {"LD_LIBRARY_PATH", "PYTHONPATH"} & given.keys():
        given[name] = os.pathsep.join(_named(given[name]))
    return {**given, "PATH": _search_path()}


def is_let_through(name: str) -> bool:
    """Whether a variable of the user's reaches what is started."""
    return name in LET_THROUGH or name.startswith(LET_THROUGH_ALL)


def forget_other_variables() -> None:
    """Take all others out of this process, for what it starts by itself: a library's own processes, say."""
    for name in [name for name in os.environ if not is_let_through(name)]:
        del os.environ[name]


def find(program: str) -> str | None:
    """Where a program lies; None where it is missing."""
    return shutil.which(program, path=_search_path())


def require(*programs: str) -> None:
    """Refuse to go on without these.

    Raises:
        MissingProgramError: for the first that is missing.
    """
    for program in programs:
        if find(program) is None:
            raise MissingProgramError.of(program)


@contextmanager
def starting(program: str) -> Iterator[None]:
    """Within it a program is started, or a process that is called so.

    Raises:
        MissingProgramError: there is no such program.
        NotStartedError: there can be no more processes, or open files.
    """
    try:
        yield
    except FileNotFoundError:
        raise MissingProgramError.of(program) from None
    except OSError as error:
        if error.errno not in NO_MORE:
            raise
        raise NotStartedError(f"{program} cannot be started: {NO_MORE[error.errno]}") from None


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` in ``environment()``.

    Raises:
        NotStartedError: there is no such program, or it cannot be started.
    """
    with starting(command[0]):
        return subprocess.run(command, env=environment(), **options)


def start(command: list[str], more: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
    """``subprocess.Popen`` in ``environment()`` with more variables.

    Raises:
        NotStartedError: there is no such program, or it cannot be started.
    """
    with starting(command[0]):
        return subprocess.Popen(command, env={**environment(), **(more or {})}, **options)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """What is forked meanwhile hears none of those that end it, before it has called ``leave_signals_to_parent``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Of a process that works for another: a terminal gives Ctrl-C to both, and the other one decides what comes of it.

    Ended by SIGTERM, it ends at once and says nothing.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})


@contextmanager
def ending_children_if_it_fails() -> Iterator[None]:
    """Processes of multiprocessing that were made within it: where not all could be, nobody gives the others work."""
    import multiprocessing  # which most commands have no use for

    before = {*multiprocessing.active_children()}
    try:
        yield
    except BaseException:
        for process in {*multiprocessing.active_children()} - before:
            process.kill()
            process.join()
        raise


def find_for_user(command: str, environment: Mapping[str, str]) -> str | None:
    """Where a user's own command lies, as execvp(3) finds it by his PATH; None where it cannot be run."""
    return shutil.which(command, path=environment.get("PATH", os.defpath))


def start_for_user(command: list[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    """``subprocess.Popen`` of a user's own command, in exactly this environment and found by its PATH.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(command, env=dict(environment), **options)


def how_it_ended(code: int) -> str:
    """What a process ended with, by its exit code as `subprocess` has it: ``exit code 1``, ``SIGKILL``."""
    known = {each.value: each.name for each in signal.Signals}
    return f"exit code {code}" if code >= 0 else known.get(-code, f"signal {-code}")


def why_it_failed(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that a process said on stderr, or how it ended if it said nothing."""
    said = done.stderr.decode(errors="replace").splitlines()
    return said[-1] if said else f"ended with {how_it_ended(done.returncode)}"


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs ``main()`` of one of our modules in a Python of its own."""
    return [sys.executable, str(START), module, *arguments]


def python_script(script: Path) -> list[str]:
    """The command that runs a user's script by the Python that runs pacbench."""
    return [sys.executable, str(script)]


def pacbench() -> list[str]:
    """The command that is pacbench, wherever it is started: the console script, if it is installed beside Python."""
    script = Path(sys.executable).with_name("pacbench")
    return [str(script)] if script.exists() else python("harness.cli.main")


def _search_path() -> str:
    """PATH, which may be empty or not set at all, and behind it those of the system's folders that it lacks."""
    folders = _named(os.environ.get("PATH", "")) or _named(os.defpath)
    return os.pathsep.join([*folders, *(folder for folder in SYSTEM_FOLDERS if folder not in folders)])


def _named(folders: str) -> list[str]:
    return [folder for folder in folders.split(os.pathsep) if folder]
