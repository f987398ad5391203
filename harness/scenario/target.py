"""How good a model must be, and when it first was: what "time to accuracy" is read from.

A target is a figure of evaluations on the test set and a value of it: ``accuracy 95%``, ``loss 0.35``,
``perplexity 12``. Accuracy must be at least as much, a loss or a perplexity at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from harness.units import parse_share

Metric = Literal["accuracy", "loss", "perplexity"]

EVENT_KINDS: dict[Metric, str] = {"accuracy": "accuracy", "loss": "test_loss", "perplexity": "perplexity"}
"""The kind of a worker's event that has the metric."""

FINAL_COLUMNS: dict[Metric, str] = {
    "accuracy": "final_accuracy",
    "loss": "final_loss",
    "perplexity": "final_perplexity",
}
"""The column of a trial's row that has the metric's last value."""

EXPECTED = "a target such as 'accuracy 95%', 'loss 0.35' or 'perplexity 12'"


class Target(NamedTuple):
    """A metric, and the value from which on a model is good enough. Its text is what a scenario says."""

    metric: Metric
    value: float

    @classmethod
    def parse(cls, text: object) -> Target:
        """Read what ``str`` writes.

        Raises:
            ValueError: it is no metric followed by a value that the metric can have.
        """
        metric, _, value = str(text).strip().partition(" ")
        try:
            if metric == "accuracy" and 0 < (share := parse_share(_number_or_text(value))) <= 1:
                return cls("accuracy", share)
            if metric in ("loss", "perplexity") and 0 < (most := float(value)) < float("inf"):
                return cls("loss" if metric == "loss" else "perplexity", most)
        except ValueError:
            pass
        raise ValueError(EXPECTED)

    def __str__(self) -> str:
        return f"{self.metric} {self.value!r}"

    @property
    def words(self) -> str:
        """As people say it: ``95 % accuracy``, ``perplexity 12``."""
        return f"{100 * self.value:g} % accuracy" if self.metric == "accuracy" else f"{self.metric} {self.value:g}"

    def is_reached(self, value: float) -> bool:
        """Whether an evaluation that found this value is good enough."""
        return value >= self.value if self.metric == "accuracy" else value <= self.value


class Evaluation(NamedTuple):
    """What an evaluation found: after so many steps, at this time on the training clock."""

    steps: float
    time_s: float
    value: float


class Crossing(NamedTuple):
    """When a training first reached its target."""

    steps: float
    time_s: float


def crossing(target: Target, evaluations: Iterable[Evaluation]) -> Crossing | None:
    """When the target was first reached: by a line from the evaluation before to the first that is good enough.

    None where no evaluation is. Later ones that fall back behind the target change nothing. A training whose very first
    evaluation is good enough has reached it by then.

    Args:
        evaluations: in the order of their steps.
    """
    before: Evaluation | None = None
    for found in evaluations:
        if target.is_reached(found.value):
            share = (target.value - before.value) / (found.value - before.value) if before else 1.0
            start = before or found
            return Crossing(
                start.steps + share * (found.steps - start.steps), start.time_s + share * (found.time_s - start.time_s)
            )
        before = found
    return None


def _number_or_text(value: str) -> float | str:
    """A share may be written as 0.95, or as 95 %."""
    try:
        return float(value)
    except ValueError:
        return value
