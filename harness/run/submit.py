"""A shared run as a job: the script by which Slurm or Ray starts processes that join it.

What a script looks like is in the templates in ``engines/``. All that is known of an engine otherwise is here: how an
option is written in its script, and the command that takes the script.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from uuid import uuid4

from harness import programs
from harness.errors import MeasurementError, UsageError
from harness.files import is_file, read_given
from harness.provenance import machine

FIELDS = ("tasks", "options", "command", "log")
"""What a template may name: how many tasks, a line for each option, the command of a task, and what the names of the
tasks' logs begin with."""

TEMPLATES = Path(__file__).parent / "engines"


@dataclass(frozen=True)
class Engine:
    """A program that starts tasks on many machines."""

    name: str
    suffix: str
    """Of its scripts' names."""
    option: str
    """A line of its script, with ``{}`` for what the user gives."""
    allowed: str
    """A regular expression that a user's option matches."""
    example: str
    quoted: Callable[[str], str]
    """How its script writes a text."""
    quoted_command: Callable[[list[str]], str]
    hand_over: Callable[[Path], list[str]]
    """The command that takes a script."""
    lacks: Callable[[], str | None]
    """Why there is no such engine here; None where there is."""

    @property
    def template(self) -> Path:
        """The script that comes with pacbench."""
        return TEMPLATES / f"{self.name}.template"


def _lacks_slurm() -> str | None:
    if programs.find_for_user("sbatch", os.environ):
        return None
    return "sbatch is not in PATH; on Debian: apt-get install slurm-client"


def _lacks_ray() -> str | None:
    return None if find_spec("ray") else "this Python has no ray; pip install ray"


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            name="slurm",
            suffix=".sh",
            option="#SBATCH {}",
            allowed=r"-.+",
            example="--time=2:00:00",
            quoted=shlex.quote,
            quoted_command=shlex.join,
            hand_over=lambda script: ["sbatch", str(script)],
            lacks=_lacks_slurm,
        ),
        Engine(
            name="ray",
            suffix=".py",
            option="OPTIONS.update({})",
            allowed=r"[a-z_]+=.+",
            example="num_cpus=4",
            quoted=json.dumps,
            quoted_command=json.dumps,
            hand_over=programs.python_script,
            lacks=_lacks_ray,
        ),
    )
}


def engine_named(name: str) -> Engine:
    """Raises:
    UsageError: there is none of that name.
    """
    if name not in ENGINES:
        raise UsageError.at("command line", "--engine", name, " or ".join(ENGINES))
    return ENGINES[name]


def check_engine(engine: Engine) -> None:
    """Refuse an engine that cannot take a script here.

    Raises:
        UsageError: with what is missing.
    """
    if reason := engine.lacks():
        raise UsageError.at("command line", "--engine", engine.name, f"with --go an engine that is here ({reason})")


def script(
    engine: Engine,
    folder: Path,
    arguments: Sequence[str],
    tasks: int,
    options: Sequence[str] = (),
    template: Path | None = None,
) -> tuple[Path, bytes]:
    """The script of a shared run, which belongs into its folder: its file, and what is in it.

    It is the mark as well by which each task knows that it sees this folder: ``pacbench run`` is told its name.

    Args:
        folder: of the run; absolute, since tasks start anywhere.
        arguments: of ``pacbench run``, but for those that join the run.
        options: lines for the engine, such as ``--time=2:00:00`` for Slurm.
        template: the file to fill in; default: the engine's own.

    Raises:
        UsageError: the template cannot be read, or names something else than ``FIELDS``; an option is none.
    """
    for option in options:
        if not re.fullmatch(engine.allowed, option):
            raise UsageError.at("command line", "--option", option, f"a line for {engine.name}: {engine.example}")
    file = folder / f"submit-{uuid4().hex[:8]}{engine.suffix}"
    command = [*programs.pacbench(), "run", *arguments, "--join", "--out", str(folder), "--mark", file.name]
    content = _filled(
        template or engine.template,
        {
            "tasks": str(tasks),
            "options": "\n".join(engine.option.format(option) for option in options),
            "command": engine.quoted_command(command),
            "log": engine.quoted(str(file.with_suffix(""))),
        },
    )
    return file, content.encode(errors="surrogateescape")  # paths may be any bytes


def _filled(template: Path, fields: dict[str, str]) -> str:
    """Raises:
    UsageError: it cannot be read, or names other fields.
    """
    allowed = f"{', '.join(f'${name}' for name in FIELDS)}, and $$ for a dollar sign"
    try:
        text = read_given(template).decode()
    except OSError as error:
        raise UsageError(f"{template}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{template}: cannot be read: it is not UTF-8") from None
    except ValueError as error:
        raise UsageError(f"{template}: cannot be read: {error}") from None
    try:
        return Template(text).substitute(fields)
    except KeyError as error:
        raise UsageError.at(template, "template", f"${error.args[0]}", allowed) from None
    except ValueError as error:  # a dollar sign before something else; it tells the line
        raise UsageError.at(template, "template", str(error), allowed) from None


def hand_over(engine: Engine, script: Path) -> None:
    """Give the script to its engine, whose words go to the terminal. Slurm takes it at once, Ray runs it to its end.

    Raises:
        MeasurementError: the engine refused it, or a task of Ray's failed.
    """
    command = engine.hand_over(script)
    if code := programs.start_for_user(command, os.environ).wait():
        raise MeasurementError(f"{shlex.join(command)} ended with {code}")


def check_mark(join: bool, folder: Path | None, mark: str) -> None:
    """Refuse to join a run in another folder than the one that the mark was left in.

    Raises:
        UsageError: it can be no mark, or no run is joined.
        MeasurementError: the folder is not shared with the machine that submitted this.
    """
    if not join or folder is None:
        raise UsageError.at("command line", "--mark", mark, "with --join and --out")
    if Path(mark).name != mark:
        raise UsageError.at("command line", "--mark", mark, "the name of a file in --out")
    if not is_file(folder / mark):
        raise MeasurementError(
            f"{folder} on {machine()} is not the folder that the run was submitted in: there is no {mark}; "
            "give --out a folder that all machines share"
        )
