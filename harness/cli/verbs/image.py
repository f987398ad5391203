"""Build the image of the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verb(
    base: Annotated[str | None, typer.Option(help="The image to start from; default: the Dockerfile's.")] = None,
    torch: Annotated[str | None, typer.Option(help="As pip takes it, such as torch==2.13.0.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take wheels from docker/wheels alone.")] = False,
    certificate: Annotated[Path | None, typer.Option(exists=True, help="Of a proxy that opens TLS.")] = None,
) -> None:
    """Build the image of the workers for --on docker. It holds no code of pacbench, so an edit needs no new one."""
    from harness.cluster.docker.engine import build_image
    from harness.units import format_size

    facts = build_image(base=base, torch=torch, offline=offline, certificate=certificate)
    print(f"{facts['image']}: {format_size(facts['size_bytes'])}, {facts['digest']}")
