"""What trials run on: what a plan must know of it, before anything has run there."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from harness.network.topology import Topology
    from harness.scenario.schema import Case

NETWORK_S = 3.0
"""To build a network of few workers, and to measure it twice."""


class Machine(NamedTuple):
    """What trials run on, as far as that says how long they take: a computer, or a kernel within one."""

    cpu_count: int
    carried_bps: float = math.inf
    """What the links of all workers carry together, about, while workers train; where more is asked for, time runs
    slower."""
    bring_up_s: float = 6.0
    """Until a cluster is there, with torch."""
    network_s: float = 0.5
    """To build a network of few workers; not to measure it."""
    trial_s: float = 1.0
    """What a trial takes beside its steps: processes that start, meet, evaluate and end."""
    error_s: float = 0.0
    """How uncertain it stays what the machine adds to a step, in real seconds: see ``run/added.py``."""
    slows_time: bool = True
    """Whether time can be dilated there: where links have delays of their own, they would stay what they are."""
    is_here: bool = False
    """Whether workers compute on this computer's processor, whose speed can be tried."""
    changes_links: bool = False
    """Whether workers may ask for slower links while they train: then a spec has ``undilated``, the network that its
    case asks for, as JSON."""

    def finds_dilation(self, case: Case) -> bool:
        """Whether a run there has to find the dilation of a case's trials."""
        return self.slows_time and case.chooses_dilation

    def slows_single_steps(self, topology: Topology) -> bool:
        """Whether some steps of a trial may run slower than others, and so show what the machine adds to them.

        Not where packets are lost: TCP's timers are those of the trial's own dilation, and each step loses others.
        """
        return self.changes_links and topology.link.trace is None and not topology.loses_packets


def this_machine() -> Machine:
    """The computer, with the CPUs that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(usable, is_here=True)
