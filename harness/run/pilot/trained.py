"""What the record of a command tells of the training in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import MeasurementError
from harness.plan.expected import state_of
from harness.plan.status import UNSETTLED_STEPS
from harness.record.execution import Execution
from harness.record.observed import ObservedStep
from harness.record.pilot import Training
from harness.run.attached import mean_of_known, means_from
from harness.scenario.schema import MethodSpec

FEWEST_STEADY = 3
"""Steps that a pace is made of, at least."""


def training_of(method: MethodSpec, seed: int, found: Execution, record: Path) -> Training:
    """What a record tells of a training.

    Raises:
        MeasurementError: it ended before its steady state.
    """
    seen, period = found.training, state_of(method).agrees_every
    if seen is None or seen.step_s is None or seen.steady_from_step is None:
        steps = seen.steps if seen else 0
        raise MeasurementError(f"{method.label}: the script ended after {steps} steps, before its steady state")
    steady = seen.curve[seen.steady_from_step - 1 :]
    if len(steady) < max(FEWEST_STEADY, period + 1):
        meeting = f", and ranks meet every {period} steps" if period > 1 else ""
        raise MeasurementError(
            f"{method.label}: {seen.steps} steps are too few: its steady state begins at step "
            f"{seen.steady_from_step}{meeting}"
        )
    pace_s = _pace_s(steady[(len(steady) - 1) % period :])  # whole periods: ranks meet equally often in each
    memory = [use.peak_memory_bytes for use in found.uses if use.peak_memory_bytes is not None]
    return Training(
        label=method.label,
        method=method,
        seed=seed,
        steps=seen.steps,
        pace_s=pace_s,
        lead_s=_lead_s(seen.curve, seen.steady_from_step, pace_s),
        exposed_s=seen.exposed_s,
        compute_s=seen.step_s - (seen.exposed_s or 0.0),
        encode_s=seen.encode_s,
        decode_s=seen.decode_s,
        sent_bytes=seen.sent_bytes,
        formula_bytes=seen.formula_bytes,
        peak_memory_bytes=max(memory, default=None),
        losses=tuple(step.loss for step in seen.curve),
        wall_s=found.wall_time_s,
        record=str(record),
    )


def cut(found: Execution, method: MethodSpec, steps: int) -> Execution:
    """A record as if its training had ended after so many steps; its times are those of all steps."""
    seen = found.training
    assert seen is not None, "nothing was observed"
    curve = seen.curve[:steps]
    steady = curve[means_from(seen.steady_from_step or 0, len(curve), state_of(method).agrees_every) :]
    shorter = {
        "steps": len(curve),
        "curve": curve,
        "sent_bytes": mean_of_known(step.sent_bytes for step in steady),
        "formula_bytes": mean_of_known(step.formula_bytes for step in steady),
    }
    return found.model_copy(update={"training": seen.model_copy(update=shorter)})


def _pace_s(steps: Sequence[ObservedStep]) -> float:
    """From the end of a step to the end of the next, the mean."""
    return (steps[-1].time_s - steps[0].time_s) / (len(steps) - 1)


def _lead_s(curve: Sequence[ObservedStep], warmup: int, pace_s: float) -> float:
    """What so many steps of a method's warm-up took longer than steady ones would have.

    The first ones of any training are slow by themselves, and are taken to be like the rest of the warm-up.
    """
    if warmup <= UNSETTLED_STEPS:
        return 0.0
    return warmup * (_pace_s(curve[UNSETTLED_STEPS - 1 : warmup]) - pace_s)
