"""How a trial may end: words that plan and store share, without what either needs besides."""

DONE = "done"
DIVERGED = "diverged"
STATUSES = (DONE, "failed", "crashed", DIVERGED, "timeout", "interrupted")
"""How a trial may end. ``failed``: its links or its proofs did not hold, see the reason."""
