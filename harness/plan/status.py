"""How a trial may end, what for it was run, and which of its steps never count: what plan and store share, without
what either needs besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from baselines import MethodState

DONE: Final = "done"
DIVERGED: Final = "diverged"
TIMEOUT: Final = "timeout"
DISTURBED: Final = "disturbed"
Status = Literal["done", "failed", "crashed", "diverged", "timeout", "interrupted", "disturbed"]
"""How a trial may end. ``failed``: its links or its proofs did not hold, see the reason. ``disturbed``: it
finished, but this machine made single steps far too long, so that it is run again."""

MISSES = (DIVERGED, TIMEOUT)
"""How a training ends that can no longer reach its target. Whoever crashed tells nothing of that."""

LEARNT = (DONE, DISTURBED)
"""How a training ends whose model counts. A disturbed one takes longer and learns the same."""

ACCURACY = "accuracy"
"""The purpose of a trial on unshaped links that is one more seed for accuracy, and part of no figure of time."""

UNSETTLED_STEPS = 2
"""DDP regroups its buckets after the first step and tells all ranks in the second, and TCP finds its pace: they are
never part of a steady state."""


def first_steady_step(state: MethodState) -> int:
    """Where the steady state of a training begins: DDP and TCP have settled, and so has the method."""
    return max(state.steady_from_step, UNSETTLED_STEPS)
