"""A current folder in which whatever is run by accident leaves a trace, and does not do what was meant."""

from __future__ import annotations

import sys
from pathlib import Path

MODULE = 'open(__file__ + ".ran", "w").close()\nraise SystemExit(f"{__file__} was run")\n'
PROGRAM = '#!/bin/sh\n: >"$0.ran"\necho "$0 was run" >&2\nexit 1\n'

MODULES = ("json", "logging", "numpy", "queue", "random", "statistics", "torch")
EVERY_MODULE = (*sys.stdlib_module_names - set(sys.builtin_module_names), "numpy", "torch", "sitecustomize")
PACKAGES = ("baselines", "scenarios")
PROGRAMS = ("docker", "git", "ip", "mount", "ss", "stdbuf", "tc", "unshare")


def lay(
    folder: Path,
    modules: tuple[str, ...] = EVERY_MODULE,
    packages: tuple[str, ...] = ("harness", *PACKAGES),
    programs: tuple[str, ...] = PROGRAMS,
) -> Path:
    """Make the folder; by default there is no name that it lacks."""
    folder.mkdir()
    for name in modules:
        (folder / f"{name}.py").write_text(MODULE)
    for name in packages:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(MODULE)
    for name in programs:
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    return folder


def sprung(folder: Path) -> list[str]:
    """What was run, by accident."""
    return sorted(path.name for path in folder.rglob("*.ran"))


def console_script(folder: Path) -> list[str]:
    """The command ``pacbench`` as pip makes it: ``python -m harness`` would mean the folder of that name."""
    folder.mkdir()
    script = folder / "pacbench"
    script.write_text('from harness.__main__ import main\n\nif __name__ == "__main__":\n    main()\n')
    return [sys.executable, str(script)]
