"""Measure many links, asked against found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.console import print_table, say
from harness.cli.json_output import print_json
from harness.cli.options import AsJson
from harness.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from harness.machine.calibrate import Calibration


def verb(
    on: Annotated[str, typer.Option("--on", help="netns, uml, or auto: this kernel where it can, else uml.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure many links, asked against found: rates, round trips, jitter, losses. Minutes."""
    from harness.machine import calibrate as calibration

    if on not in calibration.names():
        raise UsageError.at("command line", "--on", on, ", ".join(calibration.names()))
    found = list(calibration.calibrate(on))
    if as_json:
        print_json([{**vars(each), "ok": each.ok} for each in found])
    else:
        print_table(
            f"{len(found)} links, the worst reading of each",
            ["asked", "where", "rate", "RTT asked", "RTT measured", "lost, asked", "lost, counted", ""],
            [_calibration_row(each) for each in found],
        )
        for each in found:
            for complaint in each.complaints:
                say(f"{each.asked}: {complaint}")
    if failed := sum(not each.ok for each in found):
        raise MeasurementError(f"{failed} of {len(found)} links are not what was asked, or cannot be emulated here")


def _calibration_row(each: Calibration) -> list[str]:
    from harness.units import format_time

    return [
        each.asked,
        each.where,
        "" if each.rate_error is None else f"{each.rate_error:+.1%}",
        "" if each.rtt_s_asked is None else format_time(each.rtt_s_asked),
        "" if each.rtt_s_measured is None else format_time(each.rtt_s_measured),
        "" if each.loss_asked is None else f"{each.loss_asked:.3%}",
        "" if each.loss_measured is None else f"{each.loss_measured:.3%} of {each.counted}",
        ("ok" if each.ok else "NO") + (f" ({each.times}x)" if each.times > 1 else ""),
    ]
