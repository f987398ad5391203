"""What every synchronisation method must hold, found by ``baselines.names()``; and the two that torch has as well."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from attached import run_forked
from ranks import SHAPES, Training, flat, gradients
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import baselines

pytestmark = pytest.mark.methods

REPOSITORY = Path(__file__).resolve().parents[2]
EVERY_P = pytest.mark.parametrize("p", [2, 3, 4])
EVERY_METHOD = pytest.mark.parametrize("name", baselines.names())
VARIANTS = [
    *((name, {}) for name in baselines.names()),
    ("dgc", {"momentum_masking": False, "clip_norm": 0.1, "ratio": 0.1}),
    ("pactrain", {"values": "ternary"}),
    ("pactrain", {"variant": "best"}),
    ("pactrain", {"variant": "prototype", "stable_after": 2}),
    ("pactrain", {"values": "ternary", "compact": False}),
    ("pactrain", {"gse": False}),
    ("pactrain", {"prune_steps": 2, "prune_every": 1}),
    ("pactrain", {"adaptive": True}),
    ("dgc", {"dense_vectors": False}),
    ("topk", {"error_feedback": False, "ratio": 0.1, "selection": "exact"}),
    ("diloco", {"values": "int8"}),
    ("powersgd", {"warmup_steps": 0}),
    ("local_sgd", {"warmup_steps": 0}),
    ("loco", {"bits": 8, "beta": 1.0}),
    ("sparseloco", {"bits": 32, "ratio": 0.1}),
    ("demo", {"sign": False, "topk": 5}),
    ("zeroone_adam", {"warmup_steps": 3, "gap_doubles_after": 1}),
]
EVERY_VARIANT = pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=lambda value: str(value).strip("{}"))


def brisk(name: str, **parameters: Any) -> baselines.MethodState:
    """A state whose warm-up and whose period, where the method has one, end within a test."""
    state_type = baselines.get(name).State
    known = {field.name for field in fields(state_type)}
    short = {key: 2 for key in ("warmup_steps", "period") if key in known}
    return state_type(**{**short, **parameters})


# The same on every rank


class Branches(nn.Module):
    """One layer that all ranks use, one that a rank uses in some steps only, and one that nobody ever uses."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
        self.sometimes = nn.Linear(12, 4)
        self.never = nn.Linear(12, 4)

    def forward(self, inputs: torch.Tensor, detour: bool) -> torch.Tensor:
        outputs = self.always(inputs)
        return outputs + self.sometimes(inputs) if detour else outputs


def train_branches(name: str, parameters: dict[str, Any], ddp_options: dict[str, Any]) -> list[torch.Tensor]:
    """All parameters whenever the ranks should agree, in six steps on data of this rank's own."""
    torch.manual_seed(0)
    unused = ddp_options.get("find_unused_parameters", False)
    model = Branches() if unused else Branches().always
    ddp = DistributedDataParallel(model, bucket_cap_mb=1e-4, **ddp_options)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    state = brisk(name, **parameters)
    baselines.register(ddp, state, optimizer=optimizer)

    torch.manual_seed(1 + dist.get_rank())
    history = []
    for step in range(6):
        optimizer.zero_grad()
        detour = (step + dist.get_rank()) % 3 == 0
        outputs = ddp(torch.randn(8, 12), *([detour] if unused else []))
        nn.functional.cross_entropy(outputs, torch.randint(4, (8,))).backward()
        optimizer.step()
        if (step + 1) % state.agrees_every == 0:
            with state.common():
                history.append(flat(list(ddp.parameters())))
    if unused:
        assert model.never.weight.grad is None
    return history


RANKS_AND_OPTIONS = [(2, False, False), (2, True, True), (3, False, True), (3, True, False), (4, False, False)]
RANKS_AND_OPTIONS += [(4, True, True)]
"""Every two of their values meet: a number of ranks, and whether DDP has each option."""


@pytest.mark.parametrize(("p", "view", "unused"), RANKS_AND_OPTIONS)
@EVERY_VARIANT
def test_every_rank_holds_the_same_parameters(on_ranks, name, parameters, p, view, unused):
    options = {"gradient_as_bucket_view": view, "find_unused_parameters": unused}
    first, *others = on_ranks(p, train_branches, name, parameters, options)
    assert all(later.isfinite().all() and not torch.equal(later, sooner) for sooner, later in pairwise(first))
    for other in others:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, other, strict=True))


# The byte formulas


LARGE_SHAPES = ((200, 100), (300, 50), (70,))


SENT_BYTES: dict[str, Callable[..., float]] = {
    "all_reduce": lambda p, tensor: 2 * (p - 1) / p * tensor.nbytes,
    "all_gather": lambda p, tensor: (p - 1) * tensor.nbytes,
    "all_gather_into_tensor": lambda p, input_tensor: (p - 1) * input_tensor.nbytes,
    "reduce_scatter_tensor": lambda p, input: (p - 1) / p * input.nbytes,
    "all_to_all_single": lambda p, input, input_split_sizes: input.nbytes - own_share(p, input, input_split_sizes),
    "broadcast": lambda p, tensor, src: (p - 1) * tensor.nbytes * (src == dist.get_rank()),
    "isend": lambda p, tensor: tensor.nbytes,
    "send": lambda p, tensor: tensor.nbytes,
    "barrier": lambda p: 0.0,
}
"""What a rank sends in a collective, from the arguments of that name."""


def own_share(p: int, rows: torch.Tensor, splits: list[int] | None) -> float:
    return rows[: splits[dist.get_rank()]].nbytes if splits else rows.nbytes / p


@contextmanager
def counted() -> Iterator[list[float]]:
    """The bytes of every collective that this rank begins meanwhile."""
    sent: list[float] = []

    def counting(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        signature, formula = inspect.signature(collective), SENT_BYTES[name]
        wanted = list(inspect.signature(formula).parameters)[1:]

        def wrapper(*arguments: Any, **options: Any) -> Any:
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            sent.append(formula(dist.get_world_size(), *(bound.arguments[argument] for argument in wanted)))
            return collective(*arguments, **options)

        return wrapper

    with ExitStack() as patches:
        for name in SENT_BYTES:
            patches.enter_context(mock.patch.object(dist, name, counting(name, getattr(dist, name))))
        yield sent


def sent_and_stated(name: str, parameters: dict[str, Any]) -> list[tuple[float, float]]:
    """For each step, the bytes that this rank sends, and what the formula says: for the values met, if it depends."""
    state = brisk(name, **parameters)
    training = Training(state, shapes=LARGE_SHAPES, bucket_cap_mb=25)
    steps = []
    for step in range(6):
        state.take_notes()
        with counted() as sent:
            training.step(gradients(step, dist.get_rank(), LARGE_SHAPES))
        noted = sum(value for kind, value in state.take_notes() if kind == "formula_bytes")
        steps.append((sum(sent), noted or state.wire_bytes(LARGE_SHAPES, dist.get_world_size(), step)))
    return steps


@EVERY_P
@EVERY_VARIANT
def test_the_byte_formula_states_what_is_sent_in_each_step(on_ranks, name, parameters, p):
    rounding_and_hash = 40
    for on_each_rank in zip(*on_ranks(p, sent_and_stated, name, parameters), strict=True):
        sent, stated = (mean(figures) for figures in zip(*on_each_rank, strict=True))
        assert sent == pytest.approx(stated, rel=0.01, abs=rounding_and_hash)


@EVERY_METHOD
def test_the_byte_formula_is_steady_when_the_method_says_so(name):
    state = brisk(name)
    steady = state.wire_bytes(LARGE_SHAPES, 4)
    for start in (state.steady_from_step, state.steady_from_step + 1000 * state.agrees_every):
        period = [state.wire_bytes(LARGE_SHAPES, 4, start + step) for step in range(state.agrees_every)]
        assert steady == pytest.approx(mean(period))


@EVERY_METHOD
def test_no_link_carries_less_than_the_mean(name):
    state = brisk(name)
    assert state.busiest_bytes(LARGE_SHAPES, 4) >= state.wire_bytes(LARGE_SHAPES, 4)


@EVERY_METHOD
def test_alone_a_worker_sends_nothing(name):
    assert brisk(name).wire_bytes(LARGE_SHAPES, 1) == 0


# What torch has as well


def train_beside(name: str, oracle: str, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each step's gradients as the method and as torch's own hook synchronise them."""
    ours = Training(brisk(name), dtype=dtype)
    theirs = Training(getattr(default_hooks, oracle), dtype=dtype)
    steps = (gradients(step, dist.get_rank(), dtype=dtype) for step in range(4))
    return [(ours.step(given), theirs.step(given)) for given in steps]


@EVERY_P
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(("name", "oracle"), [("dense", "allreduce_hook"), ("fp16", "fp16_compress_hook")])
def test_a_hook_that_torch_has_too_gives_the_same_bits(on_ranks, name, oracle, dtype, p):
    for steps in on_ranks(p, train_beside, name, oracle, dtype):
        assert all(torch.equal(ours, theirs) and ours.any() for ours, theirs in steps)


def synchronise_in_fp64(name: str, parameters: dict[str, Any]) -> list[torch.dtype]:
    training = Training(brisk(name, **parameters), dtype=torch.float64)
    return [training.step(gradients(step, dist.get_rank(), dtype=torch.float64)).dtype for step in range(4)]


@EVERY_VARIANT
def test_double_precision_works(on_ranks, name, parameters):
    assert on_ranks(2, synchronise_in_fp64, name, parameters) == [[torch.float64] * 4] * 2


RESIDUAL_BYTES = 2 * 4 * sum(math.prod(shape) for shape in SHAPES)  # what is remembered, and the draft of what will be
HELD_BYTES = {
    "dense": 0,
    "fp16": 0,
    "bf16": 0,
    "local_sgd": 0,
    "topk": RESIDUAL_BYTES,
    "efsignsgd": RESIDUAL_BYTES,
    "onebit": RESIDUAL_BYTES,
}


def used_by_training(name: str, parameters: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds of encoding and decoding, and the bytes that are held in the end."""
    state = brisk(name, **parameters)
    training = Training(state)
    for step in range(4):  # a warm-up of two steps, and a period of two
        training.step(gradients(step, dist.get_rank()))
    lap = state.stopwatch.lap()
    training.step(gradients(4, dist.get_rank()))
    return lap.encode_s, lap.decode_s, state.held_bytes()


@EVERY_VARIANT
def test_codec_work_is_timed_and_memory_that_is_held_is_counted(on_ranks, name, parameters):
    for encode_s, decode_s, held in on_ranks(2, used_by_training, name, parameters):
        assert (encode_s > 0) == (decode_s > 0) == (name != "dense")
        assert held >= 0
        assert parameters or held == HELD_BYTES.get(name, held)


def train_with_a_nan(name: str) -> tuple[bool, list[tuple[str, float]]]:
    """Whether what came out is finite, and what was noted, when one parameter's gradient is not on rank 1."""
    state = brisk(name)
    training = Training(state)
    for step in range(3):
        training.step(gradients(step, dist.get_rank()))
    state.take_notes()
    given = gradients(3, dist.get_rank())
    if dist.get_rank() == 1:
        given[4].fill_(math.nan)
    training.step(given)
    if state.agrees_every > 1:  # what is shared is the parameters
        training.step(gradients(4, dist.get_rank()))
    finite = bool(flat(training.weights).isfinite().all())
    return finite, [note for note in state.take_notes() if note[0] == "non_finite_gradient"]


@EVERY_METHOD
def test_a_gradient_that_is_not_finite_shows_on_every_rank_and_is_named_where_it_is(on_ranks, name):
    finite, notes = zip(*on_ranks(3, train_with_a_nan, name), strict=True)
    assert not any(finite)
    assert [set(each) for each in notes] == [set(), {("non_finite_gradient", 4)}, set()]


# How methods present themselves


def test_methods_differ_in_name_colour_and_marker():
    methods = [baselines.get(name) for name in baselines.names()]
    for trait in ("label", "color", "marker", "summary"):
        assert len({getattr(method, trait) for method in methods}) == len(methods), trait
    assert all(re.fullmatch("#[0-9A-F]{6}", method.color) for method in methods)


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("topk", {"ratio": 0.0}, "ratio.*greater than 0"),
        ("topk", {"ratio": 1.5}, "ratio.*less than or equal to 1"),
        ("dgc", {"momentum": 1.0}, "momentum.*less than 1"),
        ("dgc", {"sample_ratio": 0.001}, "sample_ratio.*greater than or equal to 0.01"),
        ("dgc", {"warmup_steps": -1}, "warmup_steps.*greater than or equal to 0"),
        ("pactrain", {"density": 2}, "density.*less than or equal to 1"),
        ("pactrain", {"values": "int4"}, "values.*'fp32' or 'ternary'"),
        ("pactrain", {"warmup_steps": 2.5}, "warmup_steps.*valid integer"),
        ("dense", {"ratio": 0.1}, "ratio: unknown parameter"),
        ("randomk", {"seed": 2**70}, "seed.*less than 4294967296"),
        ("diloco", {"outer_lr": math.inf}, "outer_lr.*less than or equal to 1000000000"),
        ("dgc", {"clip_norm": math.inf}, "clip_norm.*less than or equal to 1000000000"),
        ("powersgd", {"rank": 10**20}, "rank.*less than or equal to 1000000000"),
    ],
)
def test_a_parameter_out_of_range_is_named(name, parameters, complaint):
    with pytest.raises(ValueError, match=f"(?s){complaint}"):
        baselines.get(name).State(**parameters)


@EVERY_METHOD
@pytest.mark.parametrize("far", [10**30, -(10**30), 1e30, -1e30, math.inf, math.nan])
def test_no_parameter_takes_what_nobody_would_ask_for(name, far):
    state = baselines.get(name).State
    for parameter in state().parameters:
        with pytest.raises(ValueError, match=rf"(?s){name}\.{parameter}"):
            state(**{parameter: far})


def test_a_whole_number_will_do_for_a_share():
    assert baselines.get("topk").State(ratio=1).parameters == {
        "ratio": 1,
        "selection": "sampled",
        "error_feedback": True,
    }


# Anyone's own script


def test_the_example_trains(tmp_path):
    ran = run_forked(tmp_path, REPOSITORY / "examples" / "plain_ddp.py")
    said, nothing = ran.stdout
    assert ran.codes == [0, 0], ran.stderr
    assert float(said.removeprefix("accuracy ").removesuffix(" %\n")) > 90
    assert nothing == ""
