"""The first of what runs in a Python of ours, so that nothing of the current folder runs in it by accident.

    python .../harness/start.py harness.cluster.universe ARGUMENTS...

Python puts the folder of a script, or with ``-m`` the current one, before its own library: a ``statistics.py`` that
happens to lie there is run in place of the one that was meant. That place is given up here, before anything but ``sys``
is imported; ``os`` is there already, Python itself has loaded it. What PYTHONPATH names stays where it was.
"""

import sys

TYPE_CHECKING = False  # as in typing, which is not to be imported yet
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec

OWN = ("baselines", "harness", "scenarios")

INTERRUPTED = "interrupted; what had finished is kept"

EXIT_INTERRUPTED = 130
"""A command ended by Ctrl-C (128 + SIGINT, as shells report it)."""


class OwnPackages:
    """Finds our packages where this file lies, whatever has their names elsewhere: one experiment, one code."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """See ``importlib.abc.MetaPathFinder.find_spec``."""
        if name not in OWN:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [_root()])


def main() -> None:
    """Run ``main()`` of the module that is named, with the arguments that follow."""
    if _a_folder_was_put_first():
        del sys.path[0]
    sys.meta_path.insert(0, OwnPackages)
    from importlib import import_module

    del sys.argv[0]
    import_module(sys.argv[0]).main()


def forget_current_folder() -> None:
    """The same where a user started Python: only what PYTHONPATH names is found in the current folder, and pacbench.

    Pacbench's own folder, if it is the current one, comes behind Python's library.
    """
    import os

    sys.meta_path.insert(0, OwnPackages)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return  # Python found no current folder either
    if _a_folder_was_put_first() and sys.path[0] == here:
        del sys.path[0]
    given = os.environ.get("PYTHONPATH")
    entries = given.split(os.pathsep) if given else []
    named = [os.path.abspath(entry) for entry in entries if entry]
    if "" in entries and here not in named and here in sys.path:
        sys.path.remove(here)  # PYTHONPATH=$PYTHONPATH:/x makes an empty entry, which is the current folder
    lead_to_own_packages()


def end_when_asked() -> None:
    """Whoever is asked to end before the command line is read does so at once, in one line: nothing was begun.

    Python would raise Ctrl-C as an error in whatever is being imported.
    """
    import os

    def end(*_: object) -> None:
        try:
            if sys.__stderr__ is not None:
                os.write(sys.__stderr__.fileno(), f"pacbench: {INTERRUPTED}\n".encode())
        finally:
            os._exit(EXIT_INTERRUPTED)

    hear(end)


def hear(handler: "Callable[..., object]") -> None:
    """Have a handler called when this process is asked to end, but by signals that whoever started it has it ignore."""
    import signal

    for number in ending_signals():
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)


def ending_signals() -> "tuple[signal.Signals, ...]":
    """By which a command is asked to end. There is no SIGHUP on Windows."""
    import signal

    return tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def lead_to_own_packages() -> None:
    """Our packages are found by ``sys.path``, too: processes that multiprocessing starts get no more than that."""
    import os

    if _root() not in sys.path:
        library = [os.path.dirname(os.__file__), "lib-dynload"]
        places = [
            place for place, entry in enumerate(sys.path) if entry in library or os.path.basename(entry) in library
        ]
        sys.path.insert(max(places, default=-1) + 1, _root())


def _a_folder_was_put_first() -> bool:
    """Whether Python did so: not with -I, nor with -P or PYTHONSAFEPATH, which there are from 3.11 on."""
    return not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))


def _root() -> str:
    """The folder that our packages lie in."""
    import os

    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


if __name__ == "__main__":
    main()
