"""What steps of the user's job take on networks that nobody has measured it on, by the step model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.collectives import Network
from harness.plan.expected import state_of
from harness.record.pilot import Fit, Job, Predicted, Training
from harness.scenario.schema import MethodSpec

LEAST_BPS, MOST_BPS = 1e5, 1e13
"""Between which rates are looked for."""

HALVINGS = 40
"""Of that range, by its logarithm: far finer than any link is known."""

LEAST_PROGRESS = 0.01
"""What a method is taken to come forward with at least: six steps show little of an error feedback that is slow."""

UTILISATIONS = (0.50, 0.75, 0.90, 0.95, 0.99)
"""Shares of a step in which devices compute."""


class Forecast:
    """The step model with a job in it.

    Args:
        network: what its links are, and how many workers it has. Links that change are taken to keep their mean rate.
        per_node: ranks behind each link.
        beyond_s: what a step that synchronises takes beyond the model, see ``beyond_s``.
    """

    def __init__(self, job: Job, network: Topology, per_node: int = 1, beyond_s: float = 0.0) -> None:
        self.job, self.network, self.per_node, self.beyond_s = job, network.at_mean, per_node, beyond_s

    def step_s(self, method: MethodSpec, rate_bps: float | None = None) -> float:
        """Seconds of a step in the steady state, without what lies between steps.

        Args:
            rate_bps: of every link, both ways; None: the network as it is.
        """
        network = self._network if rate_bps is None else self._ranks_on(at_rate(self.network, rate_bps))
        state = state_of(method)
        caps = self.job.bucket_bytes, self.job.first_bucket_bytes
        modelled_s = predict.step_s(self.job.profile, method, state, network, *caps)
        return modelled_s + self.beyond_s / state.agrees_every

    def pace_s(self, method: MethodSpec, rate_bps: float | None = None) -> float:
        """From the end of a step to the end of the next."""
        return self.step_s(method, rate_bps) + self.job.between_s

    def break_even_bps(self, method: MethodSpec, plain: MethodSpec, steps_factor: float) -> float | None:
        """The rate from which on a method is no sooner at the same loss; None: it is nowhere, or everywhere.

        Args:
            steps_factor: how many times the plain all-reduce's steps it needs.
        """

        def is_sooner(rate_bps: float) -> bool:
            return self.is_sooner(method, plain, steps_factor, rate_bps)

        return _first_rate(lambda rate_bps: not is_sooner(rate_bps)) if is_sooner(LEAST_BPS) else None

    def is_sooner(
        self, method: MethodSpec, plain: MethodSpec, steps_factor: float, rate_bps: float | None = None
    ) -> bool:
        """Whether a method that needs so many times the steps of the plain all-reduce is sooner at the same loss.

        Args:
            rate_bps: see ``step_s``.
        """
        return steps_factor * self.pace_s(method, rate_bps) < self.pace_s(plain, rate_bps)

    def rate_for(self, method: MethodSpec, utilisation: float) -> float | None:
        """The least rate at which devices compute for such a share of a step; None: at none, since codecs take more."""
        computed_s = self.compute_s
        return _first_rate(lambda rate_bps: computed_s / self.step_s(method, rate_bps) >= utilisation)

    @property
    def compute_s(self) -> float:
        """What a step computes that nothing is compressed in."""
        profile = self.job.profile
        return profile.forward_s + profile.backward_s + profile.optimizer_s

    @cached_property
    def _network(self) -> Network:
        return self._ranks_on(self.network)

    def _ranks_on(self, network: Topology) -> Network:
        return Network(network.with_ranks(self.per_node))


def beyond_s(trainings: Sequence[Training], modelled: Forecast, plain: Sequence[str]) -> float:
    """What a step takes beyond the model, by observed trainings with the plain all-reduces; 0 where there are none.

    The model knows nothing of DDP's copies, of the collectives' own work, and of workers that share processors. What it
    leaves out is taken to be the same in each step that synchronises, and nothing in the others.

    Args:
        modelled: with nothing beyond the model in it.
    """
    found = [each.pace_s - modelled.pace_s(each.method) for each in trainings if each.label in plain]
    return max(0.0, fmean(found)) if found else 0.0


def at_rate(network: Topology, rate_bps: float) -> Topology:
    """The same with links that are alike, have this rate, and keep it."""
    alike: dict[str, object] = {"rate_bps": round(rate_bps), "trace": None, "up": None, "down": None, "workers": {}}
    link = network.link.model_copy(update=alike)
    return Topology(workers=network.workers, link=link, fabric=network.fabric, most_segments=network.most_segments)


def predictions(forecast: Forecast) -> list[Predicted]:
    """Every method on the pilot's network, the most promising first; those that cannot run in the script last."""
    found = [_predicted(forecast, fit) for fit in forecast.job.fits]
    return sorted(found, key=lambda each: math.inf if each.rank_s is None else each.rank_s)


def _predicted(forecast: Forecast, fit: Fit) -> Predicted:
    """A step takes as long as it is; but one that misses much of the gradient is a smaller step."""
    step_s = forecast.step_s(fit.method)
    rank_s = None
    if fit.refused is None:
        progress = 1.0 if fit.progress is None else min(1.0, max(LEAST_PROGRESS, fit.progress))
        rank_s = (step_s + forecast.job.between_s) / progress
    knows_progress = fit.refused is not None or fit.progress is not None
    return Predicted(label=fit.method.label, step_s=step_s, rank_s=rank_s, knows_progress=knows_progress)


def to_be_tested(ranked: Sequence[Predicted], plain: Sequence[str], count: int) -> list[str]:
    """Labels of the plain all-reduces, and of the most promising others.

    At most one of them is of those whose progress nobody has seen: all of them look exact.
    """
    others = [each for each in ranked if each.rank_s is not None and each.label not in plain]
    unseen = [each for each in others if not each.knows_progress]
    chosen = [each.label for each in others if each.knows_progress or each is unseen[0]]
    return [*plain, *chosen[:count]]


class Upgrade(NamedTuple):
    """What a step up of the links would bring, in seconds from step to step, by label."""

    rate_bps: float
    pace_s: dict[str, float]


def upgrades(forecast: Forecast, methods: Sequence[MethodSpec], factors: Sequence[float]) -> list[Upgrade]:
    """The network's own rate and multiples of it; none where its links are unshaped."""
    own_bps = forecast.network.slowest_bps
    if own_bps is None:
        return []
    return [
        Upgrade(factor * own_bps, {each.label: forecast.pace_s(each, factor * own_bps) for each in methods})
        for factor in factors
    ]


def _first_rate(holds: Callable[[float], bool]) -> float | None:
    """The rate from which on something holds that does not below; None: it holds at no rate."""
    low, high = math.log(LEAST_BPS), math.log(MOST_BPS)
    if not holds(MOST_BPS):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(math.exp(middle)) else (middle, high)
    return math.exp(high)
