"""A trial: one training run of one method on one case, in one round."""

from __future__ import annotations

from functools import cache

import baselines
from baselines import MethodState
from harness.network.topology import Topology
from harness.scenario.schema import Case, MethodSpec
from harness.scenario.section import Section
from harness.workload import profile as profiles

UNSETTLED_STEPS = 2
"""DDP regroups its buckets after the first step, and TCP finds its pace: never part of a steady state."""


class Trial(Section):
    """One training run of one method on one case, in one round. It is what a worker receives."""

    id: str
    scenario: str
    cluster: str
    """The kind of cluster it runs on: trials on different kinds are different trials."""
    image: str = ""
    """The digest of the workers' image, where they have one."""
    case: Case
    method: MethodSpec
    seed: int
    round: int
    for_accuracy: bool = False
    """Whether it is one more seed for accuracy alone: on unshaped links, and part of no figure of time."""

    @property
    def dilation(self) -> float:
        """How many times slower than it is told everything runs: as its case says, or more, as its method needs."""
        rate_bps, slowed_to_bps = self.case.link.rate_bps, self.method.slowed_to_bps
        return max(self.case.train.dilation, rate_bps / slowed_to_bps if rate_bps and slowed_to_bps else 1.0)


@cache
def topology_of(case: Case) -> Topology:
    """The network that a case asks for."""
    return Topology(workers=case.cluster.workers, link=case.link, fabric=case.fabric)


def built_topology_of(trial: Trial) -> Topology:
    """The network that is built for a trial: the one that its case asks for, or a slower one, where time is dilated."""
    return _slowed(trial.case, trial.dilation)


@cache
def _slowed(case: Case, dilation: float) -> Topology:
    return topology_of(case).slowed(dilation)


def profile_of(case: Case) -> profiles.Profile | None:
    """The profile that a case replays; None where it trains."""
    return profiles.read(case.train.replay) if case.train.replay else None


def state_of(method: MethodSpec) -> MethodState:
    """A fresh, unbound state with the method's parameters."""
    return baselines.get(method.name).State(**method.params)
