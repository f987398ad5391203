"""Plug-ins: models, data sets and methods of others, which are looked up when something names them.

A plug-in is named by its file, ``folder/file.py:name``; or by what an installed package calls it, among its entry
points of the groups ``pacbench.models``, ``pacbench.datasets`` and ``pacbench.methods``. Here a name becomes an object.
What it must be is said where such objects are made: ``workload/models.py``, ``workload/datasets.py``, ``methods.py``.

A plug-in's code is part of what a trial is, so a file stands alone: it does not find what lies beside it. What takes
several files is an installed package. Code is read once by a process, and what is read is what is hashed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from harness.errors import PacbenchError, UsageError, short_repr

T = TypeVar("T")

IN_A_FILE = re.compile(r"(?P<file>.+\.py):(?P<attribute>[^\W\d]\w*)")
FORM = "FILE.py:NAME"
"""How a plug-in in a file is named, in words."""

PACKAGE = "pacbench_plugins"
"""What Python calls the package of all plug-ins in files."""


@dataclass(frozen=True)
class Plugin:
    """An object that is not pacbench's own, and the code that made it."""

    name: str
    """What scenarios call it: ``/folder/file.py:name``, or an entry point's name."""
    origin: str
    """The file, or the installed package and its version."""
    module: ModuleType
    attribute: str
    """Name of the object in its module."""
    digest: str
    """Hash of the code, and of the version of an installed package."""

    def get(self, attribute: str | None = None) -> object:
        """An object of the module: the plug-in itself, or another.

        Raises:
            UsageError: the module has none of that name.
        """
        wanted = attribute or self.attribute
        try:
            return vars(self.module)[wanted]
        except KeyError:
            defined = [name for name, thing in vars(self.module).items() if _is_defined_in(thing, self.module)]
            there = f"; there are {', '.join(defined)}" if defined else ""
            raise UsageError(f"{self._file}: it has no {wanted}{there}") from None

    def error(self, why: str, attribute: str | None = None) -> UsageError:
        """An error that names the file, and the line on which an object of it is defined."""
        return UsageError(f"{_place(self._file, _line_of(self._file, attribute or self.attribute))}: {why}")

    def check_call(self, function: object, *arguments: object, attribute: str | None = None) -> None:
        """Refuse what cannot be called with so many arguments. Nothing is called.

        Raises:
            UsageError: it is no function, or takes others.
        """
        shown = attribute or self.attribute
        if not callable(function):
            raise self.error(f"{shown} is no function, but {type(function).__name__}", attribute)
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise self.error(
                f"{shown}{signature} is called with {len(arguments)} arguments: {error}", attribute
            ) from None

    def check_declared_shape(self, input_shape: object, classes: object) -> None:
        """Refuse an ``input_shape`` that is neither an image's nor that of a row of tokens, and too few classes."""
        is_shape = isinstance(input_shape, tuple) and len(input_shape) in (1, 3)
        if not is_shape or not all(isinstance(each, int) and each > 0 for each in input_shape):  # type: ignore[attr-defined]
            raise self.error(
                f"input_shape: found {short_repr(input_shape)}; allowed: (channels, rows, columns), or (tokens,)"
            )
        if not isinstance(classes, int) or classes < 2:
            raise self.error(f"classes: found {short_repr(classes)}; allowed: a number from 2 on")

    @contextmanager
    def blamed(self, attribute: str | None = None, passing: type[Exception] = PacbenchError) -> Iterator[None]:
        """What the plug-in's code raises within becomes a ``UsageError`` that names the line in its file.

        Args:
            attribute: the object whose line is named where no line of the file took part.
            passing: what is passed on as it is, beside what already is an error of pacbench.
        """
        try:
            yield
        except (PacbenchError, passing):
            raise
        except (Exception, SystemExit) as error:
            line = _line_in(self._file, error) or _line_of(self._file, attribute or self.attribute)
            raise UsageError(f"{_place(self._file, line)}: {_in_words(error)}") from None

    @property
    def _file(self) -> Path:
        return Path(str(self.module.__file__))


class Catalogue(dict[str, T]):
    """Pacbench's own things of one kind, by name; ``catalogue[name]`` finds plug-ins too.

    Iteration goes over pacbench's own.

    Args:
        kind: ``model``, ``dataset`` or ``method``.
        read: makes such a thing of a plug-in; raises a ``UsageError`` where it is none.
    """

    def __init__(self, kind: str, read: Callable[[Plugin], T]) -> None:
        super().__init__()
        self.kind = kind
        self._read = cache(read)

    def __missing__(self, name: str) -> T:
        return self._read(load(self.kind, name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or is_plugin(self.kind, name)

    def is_plugin(self, name: str) -> bool:
        """Whether that name is not pacbench's own."""
        return not super().__contains__(name)

    def digest(self, name: str) -> str | None:
        """Hash of a plug-in's code; None of what is pacbench's own.

        Raises:
            UsageError: there is no such plug-in, or its code cannot be imported.
        """
        return load(self.kind, name).digest if self.is_plugin(name) else None

    @property
    def allowed(self) -> str:
        """What may be named, in words."""
        return allowed(self.kind, self)


def allowed(kind: str, own: Iterable[str]) -> str:
    """What may be named of a kind, in words: pacbench's own, what is installed, and files."""
    return f"{', '.join(dict.fromkeys([*own, *installed(kind)]))}, or {FORM}"


def anchored(name: T, folder: Path) -> T | str:
    """A name as it is known everywhere: of a plug-in in a file, that file's absolute path. All else stays as it is.

    Args:
        folder: what a relative path starts from.
    """
    found = _in_a_file(name)
    return f"{os.path.abspath(folder / found['file'])}:{found['attribute']}" if found else name


def short(name: T) -> T | str:
    """A name as it is shown, and as it is compared with names from other machines: without folders."""
    found = _in_a_file(name)
    return f"{Path(found['file']).name}:{found['attribute']}" if found else name


def plain(name: str) -> str:
    """What a plug-in calls itself: without its file."""
    found = _in_a_file(name)
    return found["attribute"] if found else name


def file_of(name: str) -> Path | None:
    """The file of a plug-in that is named by one."""
    found = _in_a_file(name)
    return Path(found["file"]) if found else None


def has_run(name: str) -> bool:
    """Whether this process has run the code of a plug-in that is named by its file."""
    file = file_of(name)
    modules = [module for key, module in sys.modules.items() if key.startswith(f"{PACKAGE}.")]
    return file is not None and os.path.abspath(file) in {module.__file__ for module in modules}


def is_plugin(kind: str, name: object) -> bool:
    """Whether a name, which is none of pacbench's own, can be that of a plug-in; a file may yet turn out missing."""
    return isinstance(name, str) and (_in_a_file(name) is not None or name in installed(kind))


@cache
def installed(kind: str) -> dict[str, list[EntryPoint]]:
    """Plug-ins of installed packages by name. Of each there should be one."""
    found: dict[str, list[EntryPoint]] = defaultdict(list)
    for entry in entry_points(group=f"pacbench.{kind}s"):
        found[entry.name].append(entry)
    return dict(sorted(found.items()))


@cache
def load(kind: str, name: str) -> Plugin:
    """A plug-in, imported.

    Raises:
        UsageError: nothing is called so, or its code cannot be imported.
    """
    if found := _in_a_file(name):
        file = Path(os.path.abspath(found["file"]))
        module, digest = _module_in(file)
        return Plugin(name, str(file), module, found["attribute"], digest)
    entries = installed(kind).get(name, [])
    if not entries:
        raise UsageError(f"no {kind} is called {name!r}, neither by pacbench nor by a package that is installed here")
    if len(entries) > 1:
        raise UsageError(f"{kind} {name!r} comes from {' and from '.join(map(origin_of, entries))}: uninstall one")
    (entry,) = entries
    module = _imported(entry)
    attribute = entry.attr or module.__name__.rpartition(".")[2]
    return Plugin(name, origin_of(entry), module, attribute, _digest_of(entry, module))


def origin_of(entry: EntryPoint) -> str:
    """The package that an entry point comes from, and its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _in_a_file(name: object) -> re.Match[str] | None:
    return IN_A_FILE.fullmatch(name) if isinstance(name, str) else None


@cache
def _module_in(file: Path) -> tuple[ModuleType, str]:
    """A file's module, and the hash of just the code that it was made of: Python's own cache goes by times."""
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: no plug-in: {error.strerror}") from None
    digest = _hash(source)
    module = ModuleType(f"{PACKAGE}.{file.stem}_{digest}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look for the names in annotations
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UsageError(f"{_place(file, _line_in(file, error))}: {_in_words(error)}") from None
    return module, digest


def _imported(entry: EntryPoint) -> ModuleType:
    try:
        return importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        raised = [frame for frame in frames if Path(frame.filename) not in (Path(__file__), Path(importlib.__file__))]
        place = f"{_place(Path(raised[-1].filename), raised[-1].lineno)}: " if raised else ""
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{_place(Path(error.filename), error.lineno)}: "
        raise UsageError(f"{place}{_in_words(error)} (plug-in {entry.name!r} of {origin_of(entry)})") from None


def _digest_of(entry: EntryPoint, module: ModuleType) -> str:
    """A hash of name and version of what is installed, and of every Python file of its package."""
    file = Path(str(module.__file__))
    folder = file.parent
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
    files = sorted(folder.rglob("*.py")) if (folder / "__init__.py").exists() else [file]
    parts = [part for each in files for part in (str(each.relative_to(folder)).encode(), each.read_bytes())]
    return _hash(b"\0".join([origin_of(entry).encode(), *parts]))


def _hash(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:12]


def _place(file: Path, line: int | None) -> str:
    return f"{file}:{line}" if line else str(file)


def _in_words(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}"
    reason = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _line_in(file: Path, error: BaseException) -> int | None:
    """The line of a file that an error comes from, however deep below it was raised."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return lines[-1] if lines else None


def _line_of(file: Path, attribute: str) -> int | None:
    """The line on which a file defines a name at its outermost level."""
    for statement in ast.parse(file.read_bytes()).body:
        if attribute in _defined_by(statement):
            return statement.lineno
    return None


def _defined_by(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (each.asname or each.name for each in names)
        case ast.Assign() | ast.AnnAssign():
            parts = (part for part in ast.walk(statement) if isinstance(part, ast.Name))
            yield from (part.id for part in parts if isinstance(part.ctx, ast.Store))


def _is_defined_in(thing: object, module: ModuleType) -> bool:
    return callable(thing) and getattr(thing, "__module__", None) == module.__name__
