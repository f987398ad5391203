"""How a trial may end, and what for it was run: words that plan and store share, without what either needs besides."""

DONE = "done"
DIVERGED, TIMEOUT = "diverged", "timeout"
STATUSES = (DONE, "failed", "crashed", DIVERGED, TIMEOUT, "interrupted")
"""How a trial may end. ``failed``: its links or its proofs did not hold, see the reason."""

MISSES = (DIVERGED, TIMEOUT)
"""How a training ends that can no longer reach its target. Whoever crashed tells nothing of that."""

ACCURACY = "accuracy"
"""The purpose of a trial on unshaped links that is one more seed for accuracy, and part of no figure of time."""
