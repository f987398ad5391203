"""matplotlib as pacbench uses it: by its own defaults and our style alone, whatever the user's settings say.

matplotlib reads ``MPLBACKEND``, ``MATPLOTLIBRC`` and a ``matplotlibrc`` in the working directory when it is first
imported, and fails there, or changes the process's locale, where these say so. Therefore it is imported here, before
anything else of it. Whoever wants settings of his own in the same process imports it before us: they stay as they are.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _without_settings() -> Iterator[None]:
    """No backend and an empty file of settings; nothing is said of a folder for caches that cannot be written."""
    given = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    logger, folder = logging.getLogger("matplotlib"), os.getcwd() if os.path.exists("matplotlibrc") else None
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ["MATPLOTLIBRC"] = os.devnull
    if folder:
        os.chdir(Path(__file__).parent)  # a file in the working directory goes before any other
    try:
        yield
    finally:
        if folder:
            os.chdir(folder)
        logger.setLevel(level)
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in given.items() if value is not None})


if "matplotlib" not in sys.modules:
    with _without_settings():
        import matplotlib.font_manager  # it seeks its folder for caches here
import matplotlib  # noqa: E402 - it may come now

__all__ = ["STYLE_FILE", "matplotlib", "style"]

STYLE_FILE = Path(__file__).parent / "figures.mplstyle"

NOT_LOOKS = ("backend", "backend_fallback", "interactive")
"""Settings that say where figures are shown, not how they look."""


@contextmanager
def style(changes: Mapping[Any, Any] = {}) -> Iterator[None]:
    """While it lasts, figures are made by matplotlib's defaults, the style file and changes, each over the last."""
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in NOT_LOOKS}
    with matplotlib.rc_context(plain), matplotlib.rc_context(fname=STYLE_FILE), matplotlib.rc_context(dict(changes)):
        yield
