"""Hooks do not wait for a GPU, but where they declare it; what they compute on one is what they compute on a CPU.

Without a GPU the tensors of a CPU pose as one's; where there is one, torch itself counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from posing import posing_as_a_gpu, watched_gpu
from ranks import SHAPES, SMALL_BUCKETS_MB, Given, flat, gradients
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines._regroup import Bucket
from baselines.spardl import apply_all, apply_some
from harness.worker.profiler import _keep_to_oneself

pytestmark = pytest.mark.methods

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

TRIED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in baselines.names()),
    ("dgc", {"warmup_steps": 0, "ratio": 0.1}),
    ("dgc", {"warmup_steps": 0, "ratio": 1.0}),
    ("topk", {"ratio": 0.1}),
    ("topk", {"ratio": 0.1, "selection": "exact"}),
    ("oktopk", {"ratio": 0.1}),
    ("oktopk", {"ratio": 0.1, "selection": "exact"}),
    ("omnireduce", {"ratio": 0.5}),
    ("zen", {"ratio": 0.05}),
    ("spardl", {"ratio": 0.2}),
    ("randomk", {"ratio": 0.1, "error_feedback": False}),
    ("pactrain", {"warmup_steps": 0}),
    ("pactrain", {"warmup_steps": 0, "values": "ternary"}),
    ("pactrain", {"warmup_steps": 0, "variant": "best"}),
    ("pactrain", {"warmup_steps": 0, "values": "ternary", "compact": False}),
    ("onebit_adam", {"warmup_steps": 1}),
    ("zeroone_adam", {"warmup_steps": 9, "gap_doubles_after": 1}),
    ("zeroone_adam", {"warmup_steps": 1, "period": 1}),
    ("sparseloco", {"period": 1}),
    ("diloco", {"period": 1, "values": "int8"}),
    ("local_sgd", {"period": 1}),
    ("streaming_diloco", {"period": 2, "fragments": 2, "delay": 0}),
    ("pactrain", {"warmup_steps": 0, "local_period": 1}),
]

ROLLING_AT_ONCE = [
    ("terngrad", {}),
    ("pactrain", {"warmup_steps": 0, "values": "ternary"}),
    ("pactrain", {"warmup_steps": 0, "values": "ternary", "compact": False}),
]
"""On a GPU they roll the dice for all parameters in one call, so that entries meet other numbers."""

ADDING_IN_ANOTHER_ORDER = [
    *((name, {}) for name in ("efsignsgd", "int8")),
    ("sparseloco", {"period": 1}),
    ("diloco", {"period": 1, "values": "int8"}),
]
"""On a GPU; what they send is the same but for rounding."""

SELECTING_BY_SAMPLE = [("spardl", {"ratio": 0.2}), ("zen", {"ratio": 0.05})]
"""On a GPU they select exactly, so their results differ."""


class Trained:
    """A model of given gradients on a device, in buckets, and a method."""

    def __init__(
        self, name: str, params: dict[str, Any], device: str, backend: str = "gloo", **ddp_options: Any
    ) -> None:
        self.device = device
        self.model = Given(*SHAPES).to(device)
        group = dist.new_group(backend=backend)
        options = {"process_group": group, "bucket_cap_mb": SMALL_BUCKETS_MB, **ddp_options}
        self.ddp = DistributedDataParallel(self.model, **options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.state = baselines.get(name).State(**params)
        self.buckets = 0
        bucket_ready = self.state.stopwatch.bucket_ready
        self.state.stopwatch.bucket_ready = lambda *given: (self._count(), bucket_ready(*given))[1]
        self.handle = baselines.register(self.ddp, self.state, optimizer=self.optimizer)

    def _count(self) -> None:
        self.buckets += 1

    def loss(self, step: int, sparse: bool = False) -> Tensor:
        """A scalar whose gradients are this rank's; of sparse ones most are zero."""
        given = [each.to(self.device) for each in gradients(step, dist.get_rank())]
        if sparse:
            given = [torch.where(each > 1.5, each, 0) for each in given]
        self.optimizer.zero_grad()
        loss: Tensor = self.ddp(given)
        return loss

    def step(self, step: int) -> None:
        self.loss(step).backward()
        self.optimizer.step()


def waits(
    name: str, params: dict[str, Any], device: str, ddp_options: dict[str, Any]
) -> tuple[dict[str, int], dict[str, int], int]:
    """Of a steady step: what waited in the backward pass, and at the end of the step; and how many buckets it had."""
    trained = Trained(name, params, device, **ddp_options)
    watched = watched_gpu if device == "cuda" else posing_as_a_gpu
    for step in range(3):
        with watched():
            trained.step(step)
    loss, trained.buckets = trained.loss(3), 0
    with watched() as in_hooks:
        loss.backward()
    with watched() as at_the_end:
        trained.optimizer.step()
    trained.handle.remove()
    return dict(in_hooks), dict(at_the_end), trained.buckets


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}], ids=lambda options: "".join(options))
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "params"), TRIED)
def test_a_hook_waits_no_oftener_than_it_declares(
    on_ranks, name: str, params: dict[str, Any], device: str, options: dict[str, Any]
) -> None:
    declared = baselines.get(name).State.host_synchronisations_a_bucket
    for in_hooks, at_the_end, buckets in on_ranks(2, waits, name, params, device, options):
        assert buckets > 2
        assert sum(in_hooks.values()) <= declared * buckets, in_hooks
        assert sum(at_the_end.values()) == 1, "non-finite gradients are noticed once a step"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "params"), [("omnireduce", {}), ("oktopk", {"ratio": 0.1}), ("zen", {"ratio": 0.05})])
def test_what_is_declared_is_needed(on_ranks, name: str, params: dict[str, Any], device: str) -> None:
    declared = baselines.get(name).State.host_synchronisations_a_bucket
    assert declared > 0
    for in_hooks, _, buckets in on_ranks(2, waits, name, params, device, {}):
        assert sum(in_hooks.values()) == declared * buckets


A, FLAGS = torch.arange(4.0), torch.tensor([True, False, True, True])


@pytest.mark.parametrize(
    "work",
    [
        *(lambda: bool(FLAGS[0]), lambda: int(A[1]), lambda: A.tolist(), lambda: A[0].item(), lambda: np.asarray(A)),
        *(lambda: A.cpu(), lambda: A.to("cpu"), lambda: A.to(device="cpu"), lambda: torch.tensor([1.0])),
        *(lambda: FLAGS.nonzero(), lambda: torch.nonzero(FLAGS), lambda: torch.where(FLAGS), lambda: FLAGS.argwhere()),
        *(lambda: A[FLAGS], lambda: A.view(2, 2)[FLAGS.view(2, 2)[0], :], lambda: A.masked_select(FLAGS)),
        *(lambda: A.clone().__setitem__(FLAGS, A[1:]), lambda: torch.unique(A), lambda: A.unique()),
        *(lambda: torch.equal(A, A), lambda: A.equal(A), lambda: torch.allclose(A, A)),
        lambda: torch.repeat_interleave(A, FLAGS.long()),
    ],
)
def test_who_would_wait_for_a_gpu_is_counted_once(work: Callable[[], object]) -> None:
    with posing_as_a_gpu() as counted:
        work()
    assert sum(counted.values()) == 1, counted


@pytest.mark.parametrize(
    "work",
    [
        *(lambda: A.to(FLAGS.device), lambda: A.to(torch.float64), lambda: torch.where(FLAGS, A, 0)),
        *(lambda: A[1:], lambda: A[torch.arange(2)], lambda: A.clone().__setitem__(FLAGS, 0.0)),
        *(lambda: A.clone().masked_fill_(FLAGS, 0), lambda: torch.nonzero_static(FLAGS, size=3)),
        lambda: FLAGS.count_nonzero(),
    ],
)
def test_who_would_not_is_not(work: Callable[[], object]) -> None:
    with posing_as_a_gpu() as counted:
        work()
    assert not sum(counted.values()), counted


def test_only_what_sends_lengths_that_depend_on_the_data_declares_any() -> None:
    declaring = {name for name in baselines.names() if baselines.get(name).State.host_synchronisations_a_bucket}
    assert declaring == {"oktopk", "omnireduce", "zen"}


def on_both(name: str, params: dict[str, Any], sparse: bool) -> tuple[Tensor, Tensor]:
    """The weights after some steps, and after the same with tensors that pose as a GPU's."""
    weights = []
    for posing in (False, True):
        trained = Trained(name, params, "cpu")
        for step in range(4):
            loss = trained.loss(step, sparse)
            if posing:
                with posing_as_a_gpu():
                    loss.backward()
                    trained.optimizer.step()
            else:
                loss.backward()
                trained.optimizer.step()
        trained.handle.remove()
        weights.append(flat(list(trained.model.parameters())))
    return weights[0], weights[1]


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        (name, params)
        for name, params in TRIED
        if (name, params) not in [*SELECTING_BY_SAMPLE, *ROLLING_AT_ONCE]
        and not (name in ("topk", "oktopk", "dgc", "spardl") and params.get("selection") != "exact")
    ],
)
def test_the_way_of_a_gpu_leads_to_the_same_bits(on_ranks, name: str, params: dict[str, Any], sparse: bool) -> None:
    for plain, posing in on_ranks(3, on_both, name, params, sparse):
        if (name, params) in ADDING_IN_ANOTHER_ORDER:
            torch.testing.assert_close(plain, posing)
        else:
            assert torch.equal(plain, posing)


if torch.cuda.is_available():

    def trained_by(backend: str, name: str, params: dict[str, Any]) -> Tensor:
        """The weights after some steps on a GPU."""
        trained = Trained(name, params, "cuda", backend)
        for step in range(4):
            trained.step(step)
        trained.handle.remove()
        return flat([weight.cpu() for weight in trained.model.parameters()])

    @pytest.mark.parametrize(("name", "params"), TRIED)
    def test_nccl_with_one_rank_trains_as_gloo_does(on_ranks, name: str, params: dict[str, Any]) -> None:
        (by_gloo,), (by_nccl,) = (on_ranks(1, trained_by, backend, name, params) for backend in ("gloo", "nccl"))
        torch.testing.assert_close(by_nccl, by_gloo)


@pytest.mark.parametrize("n", [40, 37])
def test_final_choices_are_applied_alike_entry_by_entry_and_by_passes(n: int) -> None:
    dice = torch.Generator().manual_seed(n)
    blocks = torch.randn(4, 10, generator=dice)
    blocks.view(-1)[n:] = 0
    a = torch.randn(n, generator=dice)
    tops = []
    for row in range(4):
        places = torch.randperm(7, generator=dice)[:3].int()  # of the last block, none behind the end of 37
        values = torch.randn(3, generator=dice)
        values[0] = 0  # chosen, yet nothing
        tops.append((torch.cat((values, torch.zeros(2))), torch.cat((places, torch.zeros(2, dtype=torch.int32)))))
        assert row * 10 + int(places.max()) < n
    one, other = (
        (apply([(v.clone(), i.clone()) for v, i in tops], blocks, rest := a.clone(), torch.zeros(n)), rest)
        for apply in (apply_some, apply_all)
    )
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert one[0].count_nonzero() == 8


def noticed(place: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """What is noted after the backward pass, and at the end of the step, of a NaN in that parameter's gradient."""
    trained = Trained("topk", {}, "cpu")
    trained.step(0)
    given = gradients(1, dist.get_rank())
    given[place].view(-1)[3] = torch.nan
    trained.optimizer.zero_grad()
    loss = trained.ddp(given)
    trained.state.take_notes()
    with posing_as_a_gpu():
        loss.backward()
        in_hooks = trained.state.take_notes()
        trained.optimizer.step()
        at_the_end = trained.state.take_notes()
    trained.handle.remove()
    return in_hooks, at_the_end


def test_what_is_not_finite_on_a_gpu_is_named_at_the_end_of_the_step(on_ranks) -> None:
    assert on_ranks(2, noticed, 2) == [([], [("non_finite_gradient", 2)])] * 2


def test_the_hook_that_profiles_a_model_works_on_a_gpu_and_hoards_nothing() -> None:
    model = Given(*SHAPES)
    state = baselines.get("dense").State()
    state.model = model
    members = list(model.parameters())
    bucket = Bucket(torch.ones(sum(member.numel() for member in members)), members)
    with posing_as_a_gpu():
        assert _keep_to_oneself(state, bucket).wait() is bucket.buffer()
        assert state._suspects
        state.end_step()
    assert not state._suspects
