"""What verbs print with ``--json``: one shape a verb. ``pacbench list json -v`` describes them; JSON.md is that.

Fields may be added; none changes its meaning or goes without a line in CHANGELOG.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any, Union

from typing_extensions import TypedDict

from harness.cli.json_of_jobs import ExecJson, PilotJson, RecheckJson
from harness.cli.json_of_links import CalibratedLink, DoctorJson, LinkJson, ProbeJson
from harness.cli.json_of_runs import (
    CompareJson,
    GateJson,
    MapJson,
    PlanJson,
    ReferenceJson,
    ReproduceJson,
    RunJson,
    StatusJson,
    TuneJson,
)


class Named(TypedDict):
    """What can be named."""

    name: str
    summary: str


SHAPES: Mapping[str, Any] = {
    "list": dict[str, list[Named]],
    "plan": PlanJson,
    "run": list[RunJson],
    "worker": RunJson,
    "status": StatusJson,
    "tune": TuneJson,
    "report": RunJson,
    "compare": CompareJson,
    "gate": GateJson,
    "reference": ReferenceJson,
    "reproduce": ReproduceJson,
    "map": MapJson,
    "exec": ExecJson,
    "pilot": Union[PilotJson, RecheckJson],  # noqa: UP007  # classes of TypedDict know no bar in Python 3.10
    "link": LinkJson,
    "probe": ProbeJson,
    "calibrate": list[CalibratedLink],
    "doctor": DoctorJson,
}
"""What each verb prints; ``gate --json FILE`` writes it into a file."""


def words_aside(as_json: bool) -> AbstractContextManager[object]:
    """In which words go to stderr, where JSON alone is asked for on stdout."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(value: object) -> None:
    """Print it, as ``as_text``."""
    print(as_text(value))


def as_text(value: object) -> str:
    """JSON in lines. Numbers that it does not have become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
