"""Replays: profiles that are read or refused, a model that waits, gradients that are made up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from abacus import codec, profile, replayed, written
from in_process import call_pacbench
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines import pactrain
from baselines._state import numel
from harness.cluster.fake import FakeCluster
from harness.errors import UsageError
from harness.plan.expected import shapes_of
from harness.plan.plan import make
from harness.record.store import Store
from harness.run import execute
from harness.scenario.load import load
from harness.scenario.schema import MethodSpec
from harness.workload.optimizers import WaitingSgd
from harness.workload.pace import Pace, PacedStopwatch
from harness.workload.profile import read
from harness.workload.replay import Replayed, make_materials, memory_bytes


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    whole = profile(codecs=[codec("topk", encode_s=0.1)], layers=[{"layer": "a", "forward_s": 0.1, "backward_s": 0.2}])
    (tmp_path / "p.json").write_text(whole.as_json())
    assert read(str(tmp_path / "p.json")) == whole


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"schema": 2}, r"schema: found 2; allowed: 1"),
        ({"speed": 1}, r"speed: unknown key; allowed: schema, model"),
        ({"forward_s": -1.0}, r"forward_s: found -1.0; allowed: greater than 0"),
        ({"backward_s": 0.001}, r"backward_s: found 0.001; allowed: at least 0.015"),
        ({"gradients": []}, r"gradients: found \[\]; allowed:"),
        ({"source": "guessed"}, r"source: found 'guessed'; allowed: 'measured' or 'modelled'"),
    ],
)
def test_what_is_no_profile_of_this_version_is_refused_in_one_line(
    damage: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({**json.loads(profile().as_json()), **damage}))
    with pytest.raises(UsageError, match=says) as refused:
        read(str(file))
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "[1]", "hello", "null"])
def test_a_file_of_something_else_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(UsageError) as refused:
        read(str(tmp_path / "p.json"))
    assert "\n" not in str(refused.value)


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"train\.replay: found 'abacus'; allowed: a profile's \.json file, or a name"):
        read("abacus")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["train.model=fashion-cnn"],
            r"train\.replay: found .*of digits-cnn with .*; allowed: a profile of fashion-cnn",
        ),
        (["train.batch_size=32"], r"train\.batch_size: found 32; allowed: 16, with which"),
        (["train.checkpoint=w.pt"], r"train\.checkpoint: found 'w.pt'; allowed: none with train\.replay"),
        (["cluster.device=cuda"], r"cluster\.device: found 'cuda'; allowed: cpu with train\.replay"),
        (
            ["train.dilation=0.0"],
            r"train\.dilation: found 0.0; allowed: a number greater than 0, up to 10000, or 'auto'",
        ),
        (["train.dilation=2", "link.rate=unshaped"], r"train\.dilation: found 2; allowed: 1 where links are unshaped"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_anything_starts(
    overrides: list[str], says: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "p.json")
    with pytest.raises(UsageError, match=says) as refused:
        make(load("quickstart", ["train.pace=none", f"train.replay={file}", *overrides]), "fake")
    assert "\n" not in str(refused.value)


def test_a_profile_of_other_shapes_under_the_same_name_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", gradients=[{"parameter": "p", "shape": (3,), "ready_s": 0.0}])
    with pytest.raises(UsageError, match=r"of digits-cnn with 3 parameters'; allowed: .* with 3\d{5}"):
        replayed(Path(file))


def test_dilation_is_for_what_a_profile_keeps_the_time_of() -> None:
    with pytest.raises(UsageError, match=r"train\.dilation: found 2; allowed: 1 without train\.pace or train\.replay"):
        load("quickstart", ["train.pace=none", "train.dilation=2"])


def test_what_does_not_fit_into_memory_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**8}))
    plan = replayed(Path(written(tmp_path / "p.json")), "rounds=1")
    store = Store.create(tmp_path / "run", plan.scenario)
    with pytest.raises(UsageError, match=r"train\.model: found 'digits-cnn on 3 workers .*100 MB that are free"):
        execute.run(plan, store, FakeCluster(), lambda _: None, lambda *_: None)
    assert store.attempts().empty


def test_memory_grows_with_workers_and_with_what_methods_hold() -> None:
    few, many = (memory_bytes(profile(), workers, most_copies=1) for workers in (2, 32))
    assert few < many < memory_bytes(profile(), 32, most_copies=4)


def test_memory_grows_with_what_all_workers_send_to_each() -> None:
    few, many = (
        trial.expected.memory_bytes
        for trial in make(load("paper/datacenter-bert-base", ["rounds=1", "train.shrink=1"], ["topk"]), "netns").trials
        if trial.method.label in ("topk-ratio=0.01", "topk-ratio=0.2")
    )
    assert few is not None
    assert many is not None
    sent = 8 * 8 * numel(shapes_of("bert-base"))  # to each of eight workers by each of eight, a value and its place
    assert many - few == pytest.approx(0.19 * 8 * sent, rel=0.01)


def test_an_id_knows_the_content_of_the_profile(tmp_path: Path) -> None:
    one, other = (replayed(Path(written(tmp_path / f"{s}.json", forward_s=s))) for s in (0.1, 0.2))
    assert not {trial.id for trial in one.trials} & {trial.id for trial in other.trials}


class MadeUpTime:
    """Stands for the module ``time``: it passes only while somebody sleeps, and then exactly."""

    def __init__(self) -> None:
        self.now_s = self.oversleeps_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    thread_time = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self.oversleeps_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MadeUpTime:
    """What replays take for the time."""
    made_up = MadeUpTime()
    monkeypatch.setattr("harness.workload.pace.time", made_up)
    monkeypatch.setattr("baselines._stopwatch.perf_counter", made_up.perf_counter)
    return made_up


def test_a_pace_is_as_late_as_its_device_and_what_was_really_done_is_part_of_it(clock: MadeUpTime) -> None:
    pace = Pace(dilation=3.0)
    pace.begin()
    clock.sleep(0.02)
    pace.work(0.01)
    pace.work(0.01)
    assert clock.now_s == pytest.approx(0.06), "3 x 20 ms, of which a third was really worked"
    pace.waited()
    clock.sleep(0.05)
    pace.work(0.01)
    pace.work(0.01)
    assert clock.now_s == pytest.approx(0.12), "60 ms are due, and 50 have gone"


def test_a_device_does_one_thing_at_a_time() -> None:
    """What another thread brings it (a bucket to decode) holds up the backward pass."""
    pace = Pace(dilation=2.0)
    pace.begin()
    start = time.perf_counter()
    beside = Thread(target=lambda: pace.work_beside(0.02, start))
    beside.start()
    pace.work(0.01)
    beside.join()
    pace.work(0.0)
    assert time.perf_counter() - start >= 2 * 0.03


def test_a_machine_that_is_slower_than_the_device_is_found_out(clock: MadeUpTime) -> None:
    pace = Pace(dilation=2.0)
    pace.begin()
    clock.sleep(0.05)
    pace.work(0.01)
    pace.waited()
    assert pace.take_overrun_s() == pytest.approx(0.015), "(50 - 20) / 2 ms"
    pace.waited()
    assert pace.take_overrun_s() == 0
    began = clock.now_s
    clock.sleep(0.02)
    pace.work_beside(0.0, began)
    assert pace.take_overrun_s() == pytest.approx(0.01)


def test_a_thread_that_wakes_late_is_late_by_less_afterwards_unless_it_then_waits(clock: MadeUpTime) -> None:
    pace = Pace(dilation=1.0)
    pace.begin()
    clock.oversleeps_s = 0.004
    pace.work(0.01)
    pace.work(0.01)
    assert clock.now_s == pytest.approx(0.024), "late once, not twice"
    pace.waited()
    assert pace.take_overrun_s() == pytest.approx(0.004)
    clock.oversleeps_s = 0.0
    pace.work(0.01)
    assert clock.now_s == pytest.approx(0.034), "what came over the network came at 24 ms"


def test_a_pace_forgets_what_it_was_late_by_when_the_device_waits(clock: MadeUpTime) -> None:
    pace = Pace(dilation=1.0)
    clock.sleep(0.05)
    pace.begin()
    pace.work(0.02)
    assert clock.now_s == pytest.approx(0.07)


COSTS = {"fp32": 0.01, "ternary": 0.03}


@pytest.mark.parametrize("dilation", [1.0, 4.0])
def test_a_codec_is_charged_by_the_profile_and_told_in_undilated_time(dilation: float, clock: MadeUpTime) -> None:
    known = profile(codecs=[codec("topk", encode_s=0.02, decode_s=0.01)])
    stopwatch = PacedStopwatch(Pace(dilation), known.codecs[0], known.numel)

    def step(*block_s: float) -> list[float]:
        """How long each block was made, in undilated seconds."""
        stopwatch._pace.begin()
        stopwatch.bucket_ready(known.numel)
        made_s = []
        for seconds in block_s:
            began_s = clock.now_s
            with stopwatch("encode"):
                clock.sleep(seconds * dilation)
            made_s.append((clock.now_s - began_s) / dilation)
        with stopwatch("decode"):
            clock.sleep(0.001 * dilation)
        lap = stopwatch.lap()
        assert lap.encode_s == pytest.approx(sum(made_s))
        return [*made_s, lap.decode_s]

    assert step(0.001, 0.004) == pytest.approx([0.02, 0.004, 0.006]), (
        "what the one took too long, another is shorter by"
    )
    assert step(0.002, 0.006) == pytest.approx([0.004, 0.016, 0.01]), "by what they took one step before"
    assert step(0.003) == pytest.approx([0.005, 0.01])
    assert step(0.001) == pytest.approx([0.035, 0.01]), "it pays what the step before has left unpaid"
    assert step(0.001) == pytest.approx([0.02, 0.01])


def test_a_step_without_codec_work_leaves_nothing_to_pay(clock: MadeUpTime) -> None:
    known = profile(codecs=[codec("topk", encode_s=0.02, decode_s=0.01)])
    stopwatch = PacedStopwatch(Pace(1.0), known.codecs[0], known.numel)
    for sends in (False, True, False, True):
        stopwatch._pace.begin()
        stopwatch.bucket_ready(known.numel)
        began_s = clock.now_s
        if sends:
            with stopwatch("encode"):
                clock.sleep(0.001)
        stopwatch.lap()
        assert clock.now_s - began_s == pytest.approx(0.02 if sends else 0.0)


def test_a_method_that_chooses_is_charged_for_what_it_has_chosen(clock: MadeUpTime) -> None:
    known = profile(codecs=[codec("pactrain", {"values": values}, encode_s=each) for values, each in COSTS.items()])
    ways = dict(zip(COSTS, known.codecs, strict=True))
    adaptive = MethodSpec(name="pactrain", label="adaptive", params=pactrain.State(adaptive=True).parameters)
    assert known.codec(adaptive, 4) == ways["ternary"], "as its byte formula: the least that it may choose to send"

    stopwatch = PacedStopwatch(Pace(1.0), None, known.numel)
    for values in ("fp32", "ternary", "ternary", "fp32"):
        stopwatch.charge_as(ways[values])
        stopwatch._pace.begin()
        stopwatch.bucket_ready(known.numel)
        began_s = clock.now_s
        with stopwatch("encode"):
            clock.sleep(0.001)
        stopwatch.lap()
        assert clock.now_s - began_s == pytest.approx(COSTS[values])


def test_a_codec_that_the_profile_does_not_know_is_charged_the_processors_time(clock: MadeUpTime) -> None:
    stopwatch = PacedStopwatch(Pace(5.0), None, 100)
    stopwatch.bucket_ready(100)
    stopwatch._pace.begin()
    with stopwatch("encode"):
        clock.sleep(0.02)
    assert clock.now_s == pytest.approx(0.1)


def test_a_replays_gradients_differ_by_worker_and_step_and_cost_no_memory() -> None:
    made = make_materials(profile())
    gradient = profile().gradients[3]
    one = made.gradient(gradient, 3, worker=0, step=1)
    assert one.shape == gradient.shape
    assert one.untyped_storage().data_ptr() == made.pool.untyped_storage().data_ptr()
    for worker, step in ((1, 1), (0, 2)):
        assert not torch.equal(one, made.gradient(gradient, 3, worker, step))
    assert abs(float(one.mean())) < 0.02
    assert float(one.std()) == pytest.approx(1, rel=0.02)


def test_a_density_is_the_share_of_entries_that_are_not_zero() -> None:
    pool = make_materials(profile(), density=0.1).pool
    assert float((pool != 0).float().mean()) == pytest.approx(0.1, rel=0.02)


def replay_steps(method: str, params: dict[str, Any], overlap: str) -> dict[str, Any]:
    """What is left after a few replayed steps, on each rank."""
    rank = torch.distributed.get_rank()
    made, pace = make_materials(profile(), density=0.3), Pace(1.0)
    pool_before = made.pool.clone()
    model = Replayed(profile(), made, pace, rank, overlap)  # type: ignore[arg-type]
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.3, gradient_as_bucket_view=True, init_sync=False)
    optimizer = WaitingSgd(model.parameters(), pace, 0.001, lr=0.1, momentum=0.9)
    state = baselines.get(method).State(**params)
    state.stopwatch = PacedStopwatch(pace, None, profile().numel)
    baselines.register(ddp, state, optimizer=optimizer)
    sent, step_s = [], []
    for _ in range(4):
        own = [
            made.gradient(each, place, rank if overlap == "random" else 0, model.step + 1)
            for place, each in enumerate(profile().gradients)
        ]
        pace.begin()  # as trials do: what this machine did between steps is no part of one
        start = time.perf_counter()
        ddp().backward()
        sent = [weight.grad.clone() for weight in reversed(list(model.parameters()))]
        optimizer.step()
        optimizer.zero_grad()
        step_s.append(time.perf_counter() - start)
    return {
        "mean": sent,
        "own": [each.clone() for each in own],
        "pool_is_whole": torch.equal(made.pool, pool_before),
        "weights_are_shared": all(
            weight.untyped_storage().data_ptr() == made.weights[0].untyped_storage().data_ptr()
            for weight in model.parameters()
        ),
        "step_s": step_s,
    }


@pytest.mark.parametrize("overlap", ["random", "full"])
def test_a_replay_sends_true_shapes_through_real_buckets(on_ranks: Callable[..., list[Any]], overlap: str) -> None:
    first, second = on_ranks(2, replay_steps, "dense", {}, overlap)
    for one, other, own, others_own in zip(first["mean"], second["mean"], first["own"], second["own"], strict=True):
        assert torch.equal(one, other)
        assert torch.allclose(one, (own + others_own) / 2, atol=1e-6)
        assert torch.equal(own, others_own) == (overlap == "full")
    assert first["pool_is_whole"]
    assert first["weights_are_shared"]
    least_s = 0.004 + 0.015 + 0.001
    assert min(first["step_s"]) >= least_s, "forward, the last gradient, optimizer"


@pytest.mark.parametrize(
    ("method", "params"), [("topk", {}), ("dgc", {"warmup_steps": 0}), ("pactrain", {"warmup_steps": 1})]
)
def test_methods_find_in_a_replay_what_they_need(
    on_ranks: Callable[..., list[Any]], method: str, params: dict[str, Any]
) -> None:
    first, second = on_ranks(2, replay_steps, method, params, "random")
    assert all(torch.equal(one, other) for one, other in zip(first["mean"], second["mean"], strict=True))
    assert first["pool_is_whole"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "quickstart", "--set", "train.replay=nowhere"), "train.replay: found 'nowhere'"),
        (("run", "quickstart", "--set", "train.replay=other.json"), "schema: found 7; allowed: 1"),
        (("run", "quickstart", "--set", "train.dilation=0.5"), "train.dilation: found 0.5"),
        (("profile", "--dataset", "fashion-mnist"), "--dataset: found 'fashion-mnist'; allowed: digits"),
        (
            ("profile", "--dataset", "digits", "--derive-for", "a40"),
            "--dataset: found 'digits'; allowed: none with --derive-for",
        ),
        (("profile", "--derive-for", "abacus"), "--derive-for: found 'abacus'; allowed: a40"),
    ],
)
def test_bad_input_ends_with_one_line_and_2(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": 7}')
    verb, *given = arguments
    more = {
        "run": ("--on", "netns", "--set", "train.pace=none"),
        "profile": ("digits-cnn", "-o", "p.json"),
    }[verb]
    refused = call_pacbench((verb, *given, *more), tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert says in refused.stderr
