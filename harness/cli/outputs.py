"""Where a command's output goes: to the terminal, each line behind its worker's name, or into files, one a stream."""

from __future__ import annotations

import errno
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from typing_extensions import Self

from harness.files import UnwritableError, check_writable, make_folder, writing
from harness.messages import Output


class Terminal:
    """Each stream goes to ours.

    Args:
        per_node: ranks on a node; where there are several, the name tells them apart.
    """

    def __init__(self, per_node: int) -> None:
        self._per_node = per_node

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be closed."""

    def __call__(self, said: Output) -> None:
        """Show what a rank has printed."""
        prefix = name(said, self._per_node)
        stream = sys.stderr if said.to_stderr else sys.stdout
        try:
            stream.write("".join(f"{prefix} | {line}\n" for line in said.lines))
            stream.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise  # else the terminal has gone away; the record is still to be written


STREAM = re.compile(r"w\d+(\.\d+)?\.(out|err)")


class Files:
    """Files ``w0.out`` and ``w0.err``, or ``w0.1.out`` where a node has several ranks.

    Those of an earlier command are removed when this one says something, or has ended: what is there afterwards is all
    of this one. Of a command that could not be started they are left.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, per_node: int) -> None:
        self._folder, self._per_node = folder, per_node
        self._files: dict[str, TextIO] = {}
        self._holds_earlier_ones = True
        try:
            make_folder(folder)
            check_writable(folder / "w0.out")
        except UnwritableError as error:
            raise error.of_folder("--output", folder) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._remove_earlier_ones()
        for file in self._files.values():
            with suppress(OSError):  # each line was written at once: what could not be written was told then
                file.close()

    def __call__(self, said: Output) -> None:
        """Write what a rank has printed, at once: whoever follows the file sees it."""
        file = self._file(f"{name(said, self._per_node)}.{'err' if said.to_stderr else 'out'}")
        with writing(Path(file.name)):
            file.write("".join(f"{line}\n" for line in said.lines))
            file.flush()

    def _file(self, name: str) -> TextIO:
        self._remove_earlier_ones()
        if name not in self._files:
            try:
                with writing(self._folder / name):
                    self._files[name] = (self._folder / name).open("w", encoding="utf-8", errors="replace")
            except UnwritableError as error:
                raise error.of_folder("--output", self._folder) from None
        return self._files[name]

    def _remove_earlier_ones(self) -> None:
        if not self._holds_earlier_ones:
            return
        self._holds_earlier_ones = False
        try:
            for path in [*self._folder.iterdir()]:
                if STREAM.fullmatch(path.name):
                    with writing(path):
                        path.unlink()
        except UnwritableError as error:
            raise error.of_folder("--output", self._folder) from None


def name(said: Output, per_node: int) -> str:
    """What tells a rank from the others: its worker, and its number there if it is not alone."""
    return said.node if per_node == 1 else f"{said.node}.{said.rank % per_node}"
