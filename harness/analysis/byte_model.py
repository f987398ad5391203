"""The byte model of a step, and where a method pays by it: bytes take their time at any rate, all else stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from harness.units import format_rate


@dataclass(frozen=True)
class StepModel:
    """The byte model of a step: bytes take their time on the busiest link at any rate, all else stays as measured."""

    fixed_s: float
    """Seconds that do not depend on the rate: computation, codec, latency, waiting for one another."""
    link_bytes: float
    """Payload and headers on the busiest direction of any link."""

    def step_s(self, rate_bps: float) -> float:
        """The step's time where links have this rate."""
        return self.fixed_s + 8 * self.link_bytes / rate_bps


class Payoff(NamedTuple):
    """At which rates a method is faster than the baseline, by the byte model."""

    where: Literal["below", "above", "at every rate", "at no rate"]
    rate_bps: float | None
    """The crossover; None where there is none."""

    def __str__(self) -> str:
        return f"{self.where} {format_rate(self.rate_bps)}" if self.rate_bps else self.where


def payoff(method: StepModel, baseline: StepModel) -> Payoff:
    """The rates at which a method's step is shorter than the baseline's."""
    extra_s = method.fixed_s - baseline.fixed_s
    saved_bytes = baseline.link_bytes - method.link_bytes
    if extra_s * saved_bytes > 0:
        return Payoff("below" if saved_bytes > 0 else "above", 8 * saved_bytes / extra_s)
    return Payoff("at every rate" if saved_bytes > 0 or extra_s < 0 else "at no rate", None)


def step_models(done: pd.DataFrame) -> dict[int, StepModel]:
    """The model of each finished trial, by round: its mean step without the time of its bytes at the rate it ran at.

    A trial that was too short to be timed has none.
    On unshaped links that time is taken to be none, and the bytes to be the mean of what the workers sent.
    """
    rate_bps, payload = done["rate_bps"], done["wire_bytes_per_step"]
    headers = (done["header_bytes_per_step"] / payload).fillna(0.0)
    link_bytes = (done["lower_bound_s_per_step"] * rate_bps / 8).fillna(payload) * (1 + headers)
    step_s = done["workers"] * done["batch_size"] / done["samples_per_s"]
    fixed_s = step_s - (8 * link_bytes / rate_bps).fillna(0.0)
    models = zip(done["round"], fixed_s, link_bytes, strict=True)
    return {number: StepModel(*each) for number, *each in models if all(map(math.isfinite, each))}


def mean_model(models: Sequence[StepModel]) -> StepModel | None:
    """The model of the mean trial; None where there is none."""
    if not models:
        return None
    return StepModel(
        float(np.mean([model.fixed_s for model in models])), float(np.mean([model.link_bytes for model in models]))
    )
