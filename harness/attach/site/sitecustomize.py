"""Python runs this before a script's first line, because its folder comes first on PYTHONPATH.

It loads the harness that it lies in, whatever else has that name, and then runs the ``sitecustomize`` that would have
run without it.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(OWN_FOLDER)))


def load(name: str, folders: "list[str] | None") -> None:
    """Import a module from one of these folders, or from ``sys.path``; without one, nothing happens."""
    spec = PathFinder.find_spec(name, folders)
    if spec is not None and spec.loader is not None:
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)


def attach() -> None:
    """Wait for torch, as the environment says."""
    load("harness", [ROOT])
    from harness.attach.begin import begin

    begin()


attach()
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != OWN_FOLDER]
load("sitecustomize", None)
