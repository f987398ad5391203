"""Files that appear whole or not at all, and what is said where they cannot be written or have no such name."""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from uuid import uuid4

from harness.errors import MeasurementError, UsageError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Of a disk that is full or broken, or a quota or limit that is reached: the same command may work later."""

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Of a disk that knows no hard links. Nothing can be shared on it, so that looking first will do."""

LOCK = ".lock"
"""Name of the file by which whoever works in a folder keeps others out."""

NAMES = re.compile(r"(?!\.)[^/\x00-\x1f\x7f]+")
"""Names that folders are made of, as a whole. One that begins with a dot would be hidden, or lead out of its folder."""

MOST_NAME_BYTES = 200
"""Of a name in UTF-8; what is put behind it, such as a time, has room in the 255 that a folder's may have."""

NAMES_IN_WORDS = f"1 to {MOST_NAME_BYTES} bytes, without '/' and control signs, and no '.' as the first one"

MOST_READ_BYTES = 64 * 2**20
"""Of a file that users write, or have written."""


class NoRoomError(MeasurementError):
    """A disk is full: what was written before is whole, and nothing more can be kept."""


class InUseError(UsageError):
    """Another command is using a folder: the same one may use it later."""


class UnreadableError(UsageError):
    """A file or folder cannot be read now: its disk or server does not answer, or this user may not."""


class OutOfFilesError(MeasurementError):
    """This process, or this machine, may open no more files: what the user gave is not at fault."""


class UnwritableError(UsageError):
    """There can be no such file: a folder is missing, or nothing may be written there."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"output: found {str(path)!r}; allowed: a file that can be written ({reason})")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)

    def of_folder(self, option: str, folder: Path) -> UsageError:
        """What is said where an option of the command line names the folder."""
        return UsageError.at("command line", option, str(folder), f"a folder that can be written ({self.reason})")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system raises while a file, or a folder, is written becomes one line that names it.

    Raises:
        NoRoomError: the disk is full or broken, or a quota or a limit of a file's size is reached.
        UnwritableError: there can be no such file.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM:
            raise NoRoomError(f"{path}: cannot be written: {reason}") from None
        raise UnwritableError(path, reason) from None


def write_whole(path: Path, content: bytes | str, sync: bool = True) -> None:
    """Write by temporary file and rename; names that begin with a dot are passed over by every reader.

    Args:
        content: text becomes UTF-8.
        sync: whether it must outlive a crash of the machine. What can be made again need not.

    Raises:
        NoRoomError, UnwritableError: it cannot be written; what had that name before is still there.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a device or a pipe, which no file is renamed to
            return
        target = Path(os.path.realpath(path))  # a link stays one
        with _replacing(target, sync) as handle:
            handle.write(data)


@contextmanager
def opened_whole(path: Path) -> Iterator[IO[bytes]]:
    """The same of content that is too much to be held in memory: it has the name once the context is left.

    Raises:
        NoRoomError, UnwritableError: it cannot be written; what had that name before is still there.
    """
    with writing(path), _replacing(path, sync=True) as handle:
        yield handle


@contextmanager
def _replacing(path: Path, sync: bool) -> Iterator[IO[bytes]]:
    """A file beside another, which has its name once the context is left, and is gone where that fails."""
    temporary = _beside(path)
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_new(path: Path, content: bytes) -> bool:
    """The same of a name that must be new, also where another machine chooses it at the same time.

    Returns:
        Whether it was written; there is such a file already if not, and it stays.

    Raises:
        NoRoomError, UnwritableError: it cannot be written.
    """
    temporary = _beside(path)
    with writing(path):
        try:
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            try:
                return link(temporary, path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if path.exists():
                    return False
                temporary.rename(path)
                return True
        finally:
            with suppress(OSError):
                temporary.unlink()


def link(existing: Path, name: Path) -> bool:
    """Give a file another name: atomic, also on NFS (open(2), at O_EXCL).

    Returns:
        Whether it has it; there is such a name already if not.

    Raises:
        OSError: the file system knows no hard links, say.
    """
    try:
        os.link(existing, name)
    except FileExistsError:
        return False
    except OSError:
        if existing.stat().st_nlink < 2:  # else NFS has made it, and has lost the answer
            raise
    return True


def _beside(path: Path) -> Path:
    """A file beside it that no other process chooses: in other containers and machines some have the same number."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:12]}")


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before hours are spent on what is to be in it.

    Raises:
        NoRoomError: the disk is full or broken.
        UnwritableError: its folder is not there, or nothing may be written in it.
    """
    if is_folder(path):
        raise UnwritableError(path, "it is a folder")
    if not is_folder(path.parent):
        raise UnwritableError(path, f"there is no folder {path.parent}")
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise UnwritableError(path, "nothing may be written there")
    if not os.path.exists(path) or is_file(path):  # else it is a device or a pipe
        with writing(path):
            _try_to_write(Path(os.path.realpath(path)))


def check_folder(folder: Path) -> None:
    """The same of a folder, which may yet have to be made, with those that it lies in.

    Raises:
        NoRoomError, UnwritableError: it cannot be made, or nothing can be written in it.
    """
    with writing(folder):
        place = folder.absolute()
        while not _is_there(place):
            place = place.parent
        _try_to_write(place / "new")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _try_to_write(path: Path) -> None:
    """Root may write anywhere, as far as permissions tell, and cannot make a file in /proc."""
    temporary = _beside(path)
    temporary.touch()
    temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, where they are not there.

    Raises:
        NoRoomError, UnwritableError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[str | None]:
    """Keep other commands out of a folder; the lock ends with the process that holds it.

    Args:
        shared: whether others that share the folder may be in it as well.

    Yields:
        Why there is no lock: the disk has none. None: there is one.

    Raises:
        InUseError: another one is using it.
        NoRoomError, UnwritableError: nothing can be written there.
    """
    with ExitStack() as stack:
        with writing(folder):
            handle = stack.enter_context((folder / LOCK).open("w"))
        lacks = None
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"{folder}: another pacbench run is using this folder") from None
        except OSError as error:
            lacks = error.strerror
        yield lacks


def is_name(text: str) -> bool:
    """Whether a folder may have this name; see ``NAMES_IN_WORDS``."""
    return NAMES.fullmatch(text) is not None and len(text.encode(errors="surrogateescape")) <= MOST_NAME_BYTES


def read_given(path: Path) -> bytes:
    """What is in a file that a user names, without the byte order mark that some editors write.

    Pipes and devices, of which some never end and others never begin, are refused, and files that are far too large.

    Raises:
        OSError: the system refuses it.
        ValueError: it is no such file; the message says why, without the path.
    """
    kind = os.stat(path)
    if stat.S_ISDIR(kind.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(kind.st_mode):
        raise ValueError("it is no regular file")
    if kind.st_size > MOST_READ_BYTES:
        raise ValueError(f"it has {kind.st_size} bytes, and {MOST_READ_BYTES} is the most")
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def read_stored(path: Path) -> bytes:
    """What is in a file of ours.

    Raises:
        FileNotFoundError, IsADirectoryError: it is missing, or a folder lies there.
        OutOfFilesError, UnreadableError: it cannot be read now. That says nothing of what is in it.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise _unread(path, error) from None


def is_file(path: Path) -> bool:
    """Whether there is such a file. What can be no path at all, being too long, say, or cannot be looked at, is none.

    ``Path.is_file`` raises there.
    """
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Likewise, whether there is such a folder."""
    return os.path.isdir(path)


def names_in(folder: Path) -> list[str]:
    """The names of all that lies in a folder, in their order; none where there is no such folder.

    Raises:
        OutOfFilesError, UnreadableError: it cannot be read. ``Path.glob`` finds nothing there.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unread(folder, error) from None


def _unread(path: Path, error: OSError) -> OutOfFilesError | UnreadableError:
    kind = OutOfFilesError if error.errno in (errno.EMFILE, errno.ENFILE) else UnreadableError
    return kind(f"{path}: cannot be read: {error.strerror or error}")


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below it, in their order. Folders that may not be read are passed over."""
    return sorted(path for place, _, names in os.walk(folder) for name in names if is_file(path := Path(place, name)))


def keep_elsewhere(prefix: str, files: Mapping[str, bytes | str]) -> Path | None:
    """Write what has no room where it belongs into a new folder of another disk; the last resort is memory.

    Args:
        prefix: what the folder's name begins with.
        files: content by name, which may be that of a file in a folder.

    Returns:
        The folder; None where nothing has room.
    """
    home = os.path.expanduser("~")  # which stays what it is where nobody knows a home
    for place in dict.fromkeys(("/var/tmp", os.environ.get("TMPDIR", "/tmp"), home, "/dev/shm")):
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        except OSError:
            continue
        try:
            for name, content in files.items():
                make_folder((folder / name).parent)
                write_whole(folder / name, content)
        except (NoRoomError, UnwritableError):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return folder
    return None


@contextmanager
def temporary() -> Iterator[None]:
    """Within it a temporary file or folder is made.

    Raises:
        NoRoomError: there is no place for it.
    """
    try:
        yield
    except OSError as error:
        raise NoRoomError(f"no temporary file can be written: {error.strerror or error}") from None


def as_name(text: str) -> str:
    """Any text as the name of a file or folder, or as a part of one: what would part folders is written as ``%2F``."""
    return quote(text, safe=" !#$&'()+,:;=@[]{}~")
