"""Tell what this machine can do."""

from __future__ import annotations

from harness.cli.console import say
from harness.cli.json_output import print_json
from harness.cli.options import AsJson
from harness.errors import MeasurementError


def verb(as_json: AsJson = False) -> None:
    """Tell what this machine can do, and how to mend what it cannot."""
    from harness.machine.doctor import able, examine

    checks = examine()
    if as_json:
        print_json({"able": able(checks), "checks": [vars(check) for check in checks]})
    else:
        for check in checks:
            mark = "ok" if check.ok else "NO" if check.needed else "no"
            say(f"{mark:3} {check.name:24} {check.found}{f'  -> {check.fix}' if check.fix else ''}")
    if not able(checks):
        raise MeasurementError("no cluster can be run on this machine; see each NO above")
