"""Codecs in profiles: which methods have one of their own, how they are timed, and how they are found again."""

from __future__ import annotations

from typing import Any

import pytest
from abacus import codec, profile

import baselines
from harness.plan.expected import state_of
from harness.scenario.load import available, load
from harness.scenario.schema import MethodSpec
from harness.worker.codecs import measure_codecs
from harness.worker.profile_request import ProfileRequest
from harness.workload.profile import read, unlike


def method(name: str, **params: Any) -> MethodSpec:
    return MethodSpec(name=name, label=name, params=baselines.get(name).State(**params).parameters)


def test_a_codec_is_found_whatever_the_warm_up() -> None:
    known = profile(codecs=[codec("dgc", encode_s=0.1), codec("topk", encode_s=0.2)])
    for warmup_steps in (0, 8, 20):
        found = known.codec(method("dgc", warmup_steps=warmup_steps), 4)
        assert found
        assert found.encode_s == 0.1
    assert known.codec(method("dgc", ratio=0.5), 4) is None
    assert known.codec(method("pactrain"), 4) is None


def test_methods_that_differ_in_the_warm_up_alone_have_one_codec() -> None:
    eight, sixteen, sparser = method("dgc", warmup_steps=8), method("dgc", warmup_steps=16), method("dgc", ratio=0.5)
    assert unlike([eight, method("dense"), sixteen, sparser, method("dense")]) == (eight, method("dense"), sparser)


@pytest.mark.parametrize("name", [name for name in baselines.names() if baselines.get(name).State.warmup_parameters])
def test_a_codec_is_timed_without_its_warm_up(name: str) -> None:
    long = method(name, warmup_steps=1000)
    assert state_of(long).steady_from_step >= 1000
    assert state_of(long).without_warmup().steady_from_step < 10


def test_codecs_of_all_kinds_are_timed_but_not_of_what_the_links_decide() -> None:
    wanted = {
        "once in three steps": method("local_sgd", period=3),
        "masked by the Hessian, after ranks went their own ways": method("pactrain", prune="grasp", warmup_steps=1000),
        "alone": method("dense"),
    }
    methods = (*wanted.values(), method("pactrain", adaptive=True))
    request = ProfileRequest("digits-cnn", 32, "cpu", workers=2, steps=3, methods=methods, made_by="a test")
    codecs = measure_codecs(profile(), request)
    timed = dict(zip(wanted, codecs, strict=True))
    assert [each.params for each in codecs] == [each.params for each in wanted.values()]
    assert timed["masked by the Hessian, after ranks went their own ways"].encode_s > 0
    assert timed["once in three steps"].encode_s > 0, "of the steps in which it synchronises"
    assert timed["once in three steps"].decode_s > 0
    assert timed["alone"].encode_s == timed["alone"].decode_s == 0


@pytest.mark.parametrize("name", available())
def test_a_shipped_pace_knows_the_codec_of_every_method(name: str) -> None:
    scenario = load(name)
    for case in scenario.cases:
        known = case.train.pace and read(case.train.pace)
        unknown = [
            each.label
            for each in scenario.methods
            if known and known.codec(each, case.cluster.workers) is None and not state_of(each).learns_by_the_links
        ]
        assert unknown == []
