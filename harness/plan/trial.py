"""A trial: one training run of one method on one case, in one round."""

from __future__ import annotations

from harness.network.readings import Readings
from harness.network.topology import Topology
from harness.plan.code import PluginCode
from harness.plan.dilation import Dilation
from harness.plan.expected import Expected, expect, shrink_of, train_of
from harness.scenario.schema import Case, MethodSpec, Train
from harness.scenario.section import Section


class Trial(Section):
    """One training run of one method on one case, in one round. It is what a worker receives."""

    id: str
    scenario: str
    cluster: str
    """Kind of cluster it runs on: trials on different kinds are different trials."""
    image: str = ""
    """Digest of the workers' image, where they have one."""
    case: Case
    method: MethodSpec
    plugins: PluginCode = PluginCode()
    """Code that is not pacbench's own."""
    seed: int
    round: int
    for_accuracy: bool = False
    """Whether it is one more seed for accuracy alone: on unshaped links, and part of no figure of time."""
    found: Dilation | None = None
    """The dilation that the run has found for it; None where the case says it, or before that."""
    is_probe: bool = False
    """Whether it runs for the time of its steps alone, to find a dilation by: nothing is evaluated."""
    most_segments: int | None = None
    """How many packets its workers may hand to their links as one; None where its own links say it."""

    @property
    def train(self) -> Train:
        """What it trains with, the method's own learning rate and optimizer among it."""
        return train_of(self.case, self.method)

    @property
    def shrink(self) -> int:
        """How many times smaller than they are told its tensors, its buckets and its links' rates are."""
        return shrink_of(self.case, self.method)

    @property
    def for_workers(self) -> Trial:
        """The same with its shrink in the case, as a number: workers need not find it."""
        train = self.case.train.model_copy(update={"shrink": self.shrink})
        return self.model_copy(update={"case": self.case.model_copy(update={"train": train})})

    @property
    def slowing(self) -> Dilation:
        """How time runs in it."""
        return self.found or Dilation(steady=self.case.train.dilation or 1.0)

    @property
    def dilation(self) -> float:
        """How many times slower than it is told everything runs in the steady state."""
        return self.slowing.steady

    @property
    def network(self) -> Topology:
        """What it runs on, for steps as slow as its slowest. Segments too long for their buckets would be split then,
        which takes long, and other steps would be put beside those than they are."""
        built = self.expected.built_topology
        most_segments = self.most_segments or built.most_segments
        return built.model_copy(update={"slows_by": self.slowing.slows_by, "most_segments": most_segments})

    def told(self, readings: Readings) -> Readings:
        """What was measured of the links that were built, as the case speaks of them."""
        return readings.undilated(self.dilation, self.shrink)

    @property
    def expected(self) -> Expected:
        """What is known of it before it runs. It is worked out once for all trials of the method on the case."""
        return expect(self.case, self.method, self.dilation)
