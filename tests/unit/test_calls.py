"""The collectives that methods say they call are those which their hooks do call, and add up to their formulas."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from statistics import mean
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from ranks import Training, gradients
from test_methods import LARGE_SHAPES, SENT_BYTES, brisk

import baselines
from baselines._calls import AllGather, AllReduce, AllToAll, Barrier, Call, Pull, Push, Shift

FUNCTIONS = {
    AllReduce: "all_reduce",
    AllGather: "all_gather",
    AllToAll: "all_to_all_single",
    Push: "all_to_all_single",
    Pull: "all_to_all_single",
    Barrier: "barrier",
    Shift: "isend",
}

THRESHOLDS_FIT_LATER = ("oktopk",)
"""Methods of whose sizes a few steps tell nothing; runs hold them against the bytes that the kernel counted."""

VARIANTS = [*((name, {}) for name in baselines.names()), ("pactrain", {"values": "ternary"})]
VARIANTS += [("pactrain", {"variant": "local", "local_period": 2})]
VARIANTS += [("zen", {"ratio": 0.01}), ("omnireduce", {"ratio": 0.05}), ("parameter_server", {"servers": 2})]
VARIANTS += [("diloco", {"values": "int8"}), ("sparseloco", {"bits": 32, "ratio": 0.1}), ("demo", {"topk": 5})]
EVERY_VARIANT = pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=lambda value: str(value).strip("{}"))


@pytest.mark.parametrize("p", [4, 32])
@EVERY_VARIANT
def test_the_calls_add_up_to_the_byte_formula(name: str, parameters: dict[str, Any], p: int) -> None:
    state = brisk(name, **parameters)
    sent = sum(call.sent_bytes(p) for call in state.calls(LARGE_SHAPES, p)) / state.agrees_every
    counts = 64 * p
    assert sent == pytest.approx(state.wire_bytes(LARGE_SHAPES, p), rel=1e-3, abs=counts)


def recorded(name: str, parameters: dict[str, Any]) -> list[tuple[str, float]]:
    """Function and bytes of each collective that this rank begins in a step of the steady state; or, where each has a
    moment of its own, in a period of them, the largest first."""
    state = brisk(name, **parameters)
    training = Training(state, shapes=LARGE_SHAPES, bucket_cap_mb=25)
    made: list[tuple[str, float]] = []
    with ExitStack() as patches:
        for function in {*FUNCTIONS.values(), "broadcast", "reduce_scatter_tensor", "all_gather_into_tensor"}:
            patches.enter_context(mock.patch.object(dist, function, recording(function, made)))
        for step in range(6):
            if not state.is_streaming or step % state.agrees_every == 0:
                made.clear()
            training.step(gradients(step, dist.get_rank(), LARGE_SHAPES))
    return sorted(made, key=lambda each: -each[1]) if state.is_streaming else made


def recording(function: str, made: list[tuple[str, float]]) -> Any:
    collective = getattr(dist, function)
    signature, formula = inspect.signature(collective), SENT_BYTES[function]
    wanted = list(inspect.signature(formula).parameters)[1:]

    def wrapper(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        made.append((function, formula(dist.get_world_size(), *(bound.arguments[each] for each in wanted))))
        return collective(*arguments, **options)

    return wrapper


@EVERY_VARIANT
def test_hooks_make_the_calls_that_they_state(on_ranks: Any, name: str, parameters: dict[str, Any]) -> None:
    p = 4
    state = brisk(name, **parameters)
    stated: list[Call] = state.calls(LARGE_SHAPES, p)
    if state.is_streaming:
        stated = sorted(stated, key=lambda call: -call.sent_bytes(p))
    of_ranks = on_ranks(p, recorded, name, parameters)
    assert [function for function, _ in of_ranks[0]] == [FUNCTIONS[type(call)] for call in stated]
    for place, call in enumerate(stated if name not in THRESHOLDS_FIT_LATER else []):
        sent = mean(made[place][1] for made in of_ranks)
        assert sent == pytest.approx(call.sent_bytes(p), rel=0.1, abs=100), call
