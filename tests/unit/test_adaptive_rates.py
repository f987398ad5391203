"""What the whole of an adaptive training takes, in steps that are predicted from profiles, at any rate."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from itertools import accumulate
from typing import Any

import pytest
from choosing import adaptive_steps, fixed_steps, seconds_of

import baselines
from baselines._choice import PURE, Contents, Mode, Policy, Sample, Way, mode_of
from baselines._state import numel
from baselines.pactrain import State
from harness.network.topology import Topology
from harness.plan import predict
from harness.plan.collectives import Network
from harness.plan.expected import state_of
from harness.plan.predict import Schedule
from harness.scenario.schema import MethodSpec
from harness.worker.profile_request import BUCKET_BYTES
from harness.workload import profile as profiles

STEPS = 400
RATES = ("10mbit", "30mbit", "100mbit", "300mbit", "1gbit", "3gbit", "10gbit")
PROFILES = ("digits-cnn-epyc", "fashion-cnn-xeon", "resnet152-a40", "vgg19-a40", "bert-base-h100")
PARAMETERS: dict[Mode, tuple[str, dict[str, Any]]] = {
    Mode.DENSE: ("dense", {}),
    Mode.COMPACT: ("pactrain", {}),
    Mode.TERNARY: ("pactrain", {"values": "ternary"}),
}


@cache
def schedule(name: str, workers: int, mode: Mode) -> Schedule:
    """A step of a profile's model whose buckets all travel in one way."""
    method, given = PARAMETERS[mode]
    spec = MethodSpec(name=method, label=method, params=baselines.get(method).State(**given).parameters)
    return predict.schedule(profiles.read(name), spec, state_of(spec), workers, BUCKET_BYTES)


def contents(name: str) -> list[Contents]:
    """What its buckets are made of."""
    density = State().density
    return [
        Contents(
            entries=numel(bucket.shapes),
            survivors=sum(round(numel([shape]) * (density if len(shape) > 1 else 1)) for shape in bucket.shapes),
            parts=len(bucket.shapes),
            entry_bytes=4,
        )
        for bucket in predict.buckets(profiles.read(name), BUCKET_BYTES)
    ]


class Predicted:
    """A training that a profile's device makes over links that stay as they are."""

    def __init__(self, name: str, workers: int, rate: str) -> None:
        self.buckets = contents(name)
        self.now_s = 0.0
        self._schedules = {mode: schedule(name, workers, mode) for mode in Mode}
        self._network = Network(Topology.model_validate({"workers": workers, "link": {"rate": rate}}))
        self._known = cache(self._predicted)

    def step(self, way: Way) -> Sample:
        step_s, before_s, codec_s = self._known(way)
        self.now_s += step_s
        return Sample(way, step_s - before_s, codec_s)

    def _predicted(self, way: Way) -> tuple[float, float, float]:
        """Seconds of a step, of it before the first bucket, and of codecs."""
        modes = [mode_of(way, place) for place in range(len(self.buckets))]
        dense, of_buckets = self._schedules[Mode.DENSE], [self._schedules[mode] for mode in modes]
        encode_s = list(accumulate(self._encode_s(mode, place) for place, mode in enumerate(modes)))
        jobs = [
            [job._replace(ready_s=plain[0].ready_s + later_s) for job in own.jobs[place]]
            for place, (plain, own, later_s) in enumerate(zip(dense.jobs, of_buckets, encode_s, strict=True))
        ]
        decode_s = [own.decode_s[place] for place, own in enumerate(of_buckets)]
        mixed = dataclasses.replace(
            dense,
            jobs=jobs,
            decode_s=decode_s,
            computed_s=dense.computed_s + encode_s[-1],
            optimizer_s=max(own.optimizer_s for own in of_buckets),
            at_once=min(own.at_once for own in of_buckets),
        )
        return mixed.step_s(self._network), dense.jobs[0][0].ready_s, encode_s[-1] + sum(decode_s)

    def _encode_s(self, mode: Mode, place: int) -> float:
        """How much more than a dense one a bucket holds up all that follow."""
        both = zip(self._schedules[Mode.DENSE].jobs, self._schedules[mode].jobs, strict=True)
        later_s = [0.0, *(own[0].ready_s - plain[0].ready_s for plain, own in both)]
        return later_s[place + 1] - later_s[place]


@pytest.mark.parametrize("warmup_steps", [0, 20])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", PROFILES)
def test_a_training_takes_little_longer_than_by_the_best_fixed_choice(name, rate, warmup_steps):
    for workers in (2, 4, 8):
        training = partial(Predicted, name, workers, rate)
        fixed_s = min(
            seconds_of(STEPS, fixed_steps(one, way, warmup_steps), one) for way in PURE for one in [training()]
        )
        one = training()
        adaptive_s = seconds_of(STEPS, adaptive_steps(one, Policy(workers), warmup_steps), one)
        assert fixed_s / adaptive_s >= 0.97
