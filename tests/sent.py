"""What trials sent, as the kernel counted it, beside what their methods say that they send."""

from __future__ import annotations

import pandas as pd

SEGMENT_BYTES = 1500


def assert_sends_its_formula(trials: pd.DataFrame) -> None:
    """Within 5 %, but for what TCP sent again.

    Where a machine is late, TCP sends the last segment of a burst once more: much of a few steps of few bytes.
    """
    sent, formula = trials["wire_bytes_per_step"], trials["formula_bytes_per_step"]
    counted_steps = trials["steps"] - trials["steady_from_step"]
    sent_again = SEGMENT_BYTES * trials["retransmits"] * trials["shrink"].fillna(1) / counted_steps
    assert sent.between(0.95 * formula, 1.05 * formula + sent_again).all(), pd.DataFrame(
        {"label": trials.get("label", trials.index), "sent": sent, "formula": formula, "sent again": sent_again}
    ).to_dict("records")
