"""The code of a script's own that it has imported: what makes a training this one, beside its command."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")

OURS = Path(__file__).parents[2]


def own_sources(began_s: float) -> list[tuple[str, str]]:
    """Path and hash of each file, by path.

    Args:
        began_s: when the training began, by ``time.time()``. Of a file that was written since, nobody knows what ran:
            its hash is empty.
    """
    return [(path, _hash_of(path, began_s)) for path in sorted(set(_imported()))]


def hash_of(path: str) -> str | None:
    """Of a file as it is now; None: it is not here, as where it lies in a container's image."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def _hash_of(path: str, began_s: float) -> str:
    try:
        is_newer = os.stat(path).st_mtime > began_s
    except OSError:
        return ""
    return "" if is_newer else hash_of(path) or ""


def _imported() -> Iterator[str]:
    of_python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or not path.endswith(".py"):
            continue
        path = os.path.abspath(path)
        is_installed = any(f"/{name}/" in path for name in INSTALLED)
        if not is_installed and not any(
            path.startswith(f"{folder}/") for folder in (*of_python, OURS / "harness", OURS / "baselines")
        ):
            yield path
