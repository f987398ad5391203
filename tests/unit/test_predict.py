"""Steps that are predicted from a profile, a method's bytes and the links."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from abacus import SHAPES, codec, profile
from hypothesis import given
from hypothesis import strategies as st

import baselines
from baselines._calls import AllReduce
from harness.network.flows import fair
from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.collectives import Network
from harness.plan.expected import state_of
from harness.scenario.schema import MethodSpec
from harness.workload.models import MODELS


def predicted(
    method: str = "dense",
    rate: str = "100mbit",
    bucket_bytes: int = 25_000_000,
    first_bucket_bytes: int | None = None,
    **changes: Any,
) -> float:
    topology = Topology.model_validate({"workers": 4, "link": {"rate": rate}})
    spec = MethodSpec(name=method, label=method, params=baselines.get(method).State().parameters)
    return predict.step_s(profile(**changes), spec, state_of(spec), Network(topology), bucket_bytes, first_bucket_bytes)


def test_buckets_fill_in_the_order_of_readiness() -> None:
    found = list(predict.buckets(profile(), 1_000_000))
    assert [shape for bucket in found for shape in bucket.shapes] == list(SHAPES)
    assert [len(bucket.shapes) for bucket in found] == [5, 3]
    assert [bucket.ready_s for bucket in found] == [0.011, 0.015]
    assert sum(bucket.share for bucket in found) == pytest.approx(1)


def test_the_first_bucket_may_be_smaller_than_the_others() -> None:
    """DDP closes it at 1 MiB where nobody says how large buckets are, so that bytes leave early."""
    whole, *none = predict.buckets(profile(), 25_000_000)
    assert none == []
    first, second = predict.buckets(profile(), 25_000_000, 100_000)
    assert [*first.shapes, *second.shapes] == whole.shapes
    assert 4 * sum(map(math.prod, first.shapes[:-1])) < 100_000 <= 4 * sum(map(math.prod, first.shapes))
    assert predicted(rate="1gbit", first_bucket_bytes=100_000) < predicted(rate="1gbit")


def test_a_slow_link_decides_and_a_fast_one_hides_behind_the_computation() -> None:
    assert predicted(rate="1mbit") == pytest.approx(2 * 3 / 4 * 32 * profile().numel / 1e6 * 1514 / 1448, rel=0.01)
    assert 0.021 <= predicted(rate="400gbit") < 0.025


def test_buckets_that_leave_early_are_hidden() -> None:
    assert predicted(rate="1gbit", bucket_bytes=100_000) < predicted(rate="1gbit") - 0.002


def test_a_codec_holds_up_what_comes_after_it() -> None:
    plain = predicted("topk", codecs=[codec("topk")])
    for kind in ("encode_s", "beside_s", "decode_s", "optimizer_s"):
        assert predicted("topk", codecs=[codec("topk", **{kind: 0.1})]) == pytest.approx(plain + 0.1)


def test_a_codec_that_is_used_once_in_several_steps_holds_up_as_many_times_less() -> None:
    plain, slow = codec("local_sgd"), codec("local_sgd", encode_s=0.1, decode_s=0.06)
    held_up_s = predicted("local_sgd", codecs=[slow]) - predicted("local_sgd", codecs=[plain])
    assert held_up_s == pytest.approx(0.16 / baselines.get("local_sgd").State().agrees_every)


def streaming(rate: str, **parameters: Any) -> float:
    state = baselines.get("streaming_diloco").State(**parameters)
    spec = MethodSpec(name="streaming_diloco", label="streaming_diloco", params=state.parameters)
    network = Network(Topology.model_validate({"workers": 4, "link": {"rate": rate}}))
    return predict.step_s(profile(), spec, state, network, 25_000_000)


def test_what_streams_is_waited_for_beyond_the_steps_that_hide_it() -> None:
    computed_s = streaming("400gbit", delay=1)
    waiting, hiding, hiding_more = (streaming("1mbit", fragments=2, delay=delay) for delay in (0, 1, 2))
    fragments_a_step = 2 / 100
    assert waiting - hiding == pytest.approx(fragments_a_step * computed_s)
    assert hiding - hiding_more == pytest.approx(fragments_a_step * computed_s)
    assert streaming("10mbit", delay=99) == pytest.approx(computed_s)


def test_who_waits_sends_the_next_fragment_so_much_later() -> None:
    """Four fragments in eight steps, each for three steps on the links and hidden for one: they never meet there."""
    network = Network(Topology.model_validate({"workers": 4, "link": {"rate": "100mbit"}}))
    call = AllReduce(1_000_000)
    long_s = network.timing(call).took_s
    schedule = predict.Schedule(
        jobs=[[predict.Job(2 / 3 * long_s * number, [call])] for number in range(4)],
        decode_s=[0.0] * 4,
        computed_s=long_s / 3,
        optimizer_s=0.0,
        silent_s=0.0,
        at_once=2,
        every=8,
        hidden_s=long_s / 3,
    )
    assert schedule.step_s(network) == pytest.approx(2 / 3 * long_s, rel=0.01)


def test_a_profiles_shapes_are_the_models() -> None:
    assert sorted(SHAPES) == sorted(MODELS["digits-cnn"].shapes())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_jobs_under_way_share_the_busiest_queue_as_flows_do(busy_shares: list[float]) -> None:
    count, wanted = len(busy_shares), np.array(busy_shares)
    given_each = fair(np.ones((1, count)), np.ones(1), wanted)
    expected = np.divide(given_each, wanted, out=np.ones(count), where=wanted > 0)
    assert predict.speeds(busy_shares) == pytest.approx(expected.tolist())
