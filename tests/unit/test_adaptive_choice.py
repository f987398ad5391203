"""What adaptive PacTrain chooses, on simulated links: they stay, fall, rise, and the times of steps are noisy."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from choosing import DENSE, adaptive_steps, fixed_steps, seconds_of
from hypothesis import given
from hypothesis import strategies as st

from baselines._choice import (
    EXPLORATION,
    PURE,
    REVISIT_SHARE,
    Contents,
    Mode,
    Policy,
    Sample,
    StepModel,
    Way,
    mode_of,
)

WORLD_SIZE = 4
BUCKETS = (Contents(250_000, 50_000, 4, 4), Contents(50_000, 12_000, 6, 4))
CODEC_S = {Mode.DENSE: 2e-4, Mode.COMPACT: 6e-4, Mode.TERNARY: 2.5e-3}
LATENCY_S = {Mode.DENSE: 6e-4, Mode.COMPACT: 6e-4, Mode.TERNARY: 1.2e-3}
COMPUTE_S = 4e-3
WARMUP_STEPS = 16

Rates = Callable[[float], float]
"""bit/s at a time in seconds."""


class Links:
    """Steps whose times follow from the rate of the moment, with noise, in the time that has passed so far."""

    buckets = BUCKETS

    def __init__(self, rates: Rates, seed: int = 0, noise: float = 0.1, hiccups: float = 0.02) -> None:
        self.rates, self.noise, self.hiccups = rates, noise, hiccups
        self.dice = np.random.default_rng(seed)
        self.now_s = 0.0
        self.pressure = 1.0
        """How many times slower computation is, codecs included."""

    def mean_s(self, way: Way) -> float:
        modes = [(mode_of(way, place), bucket) for place, bucket in enumerate(BUCKETS)]
        entries = sum(bucket.entries for bucket in BUCKETS)
        codec_s = sum(CODEC_S[mode] * bucket.entries / entries for mode, bucket in modes)
        latency_s = sum(LATENCY_S[mode] for mode, _ in modes)
        sent_bytes = sum(bucket.sent_bytes(mode, WORLD_SIZE) for mode, bucket in modes)
        return self.pressure * (COMPUTE_S + codec_s) + latency_s + 8 * sent_bytes / self.rates(self.now_s)

    def step(self, way: Way) -> Sample:
        factor = self.dice.lognormal(0, self.noise) * (3 if self.dice.random() < self.hiccups else 1)
        sync_s = self.mean_s(way) * factor
        self.now_s += sync_s
        codecs_s = [CODEC_S[mode_of(way, place)] for place in range(len(BUCKETS))]
        return Sample(way, sync_s, self.pressure * sum(codecs_s) / len(codecs_s) * factor)


def speed_against_fixed(rates: Rates, seed: int = 0, steps: int = 600, **noise: float) -> float:
    """How many times faster than the best fixed choice the adaptive one is, warm-up and exploration included."""

    def links() -> Links:
        return Links(rates, seed, **noise)

    fixed_s = min(seconds_of(steps, fixed_steps(one, way, WARMUP_STEPS), one) for way in PURE for one in [links()])
    one = links()
    return fixed_s / seconds_of(steps, adaptive_steps(one, Policy(WORLD_SIZE), WARMUP_STEPS), one)


def constant(rate_bps: float) -> Rates:
    return lambda _: rate_bps


def dip(now_s: float) -> float:
    """As traces/dip.csv has it."""
    return 5e7 if 4 <= now_s < 10 else 1e9


def rise(now_s: float) -> float:
    return 5e7 if now_s < 5 else 1e9


def fall(now_s: float) -> float:
    return 1e9 if now_s < 5 else 5e7


def waves(now_s: float) -> float:
    return 1e9 if int(now_s / 3) % 2 else 5e7


CONSTANT = [pytest.param(constant(rate_bps), id=f"{rate_bps:g}") for rate_bps in (1e7, 1e8, 5e8, 1e9, 2e9, 1e10)]
CHANGING = [pytest.param(each, id=each.__name__) for each in (dip, rise, fall, waves)]


@pytest.mark.parametrize("rates", [*CONSTANT, *CHANGING])
def test_it_is_nearly_as_fast_as_the_best_fixed_choice_exploration_included(rates):
    assert min(speed_against_fixed(rates, seed) for seed in range(3)) >= 0.97


@pytest.mark.parametrize("rates", [pytest.param(each, id=each.__name__) for each in (dip, fall)])
def test_where_no_fixed_choice_is_best_all_along_it_is_faster(rates):
    assert min(speed_against_fixed(rates, seed) for seed in range(3)) > 1.01


def ways_of(links: Links, steps: int) -> list[Way]:
    """The ways of so many steps after the exploration."""
    begun = WARMUP_STEPS + len(EXPLORATION)
    return list(itertools.islice(adaptive_steps(links, Policy(WORLD_SIZE), WARMUP_STEPS), begun, begun + steps))


@pytest.mark.parametrize(("slow", "fast"), [(5e7, 1e9), (1e8, 1e10)], ids=str)
@pytest.mark.parametrize("falls", [True, False])
def test_a_link_that_became_slow_is_noticed_as_is_one_that_became_fast(slow, fast, falls):
    links = Links(constant(fast if falls else slow))
    steps = adaptive_steps(links, Policy(WORLD_SIZE), WARMUP_STEPS)
    before = list(itertools.islice(steps, 150))[-20:]
    links.rates = constant(slow if falls else fast)
    after = list(itertools.islice(steps, 60))[-20:]
    best = [(Mode.COMPACT,), (Mode.TERNARY,)] if falls else [(Mode.TERNARY,), (Mode.COMPACT,)]
    assert [max(set(ways), key=ways.count) for ways in (before, after)] == best


@pytest.mark.parametrize(("rate_bps", "best"), [(1e7, Mode.TERNARY), (1e8, Mode.TERNARY), (2e9, Mode.COMPACT)], ids=str)
def test_noise_is_not_followed(rate_bps, best):
    for seed in range(3):
        assert ways_of(Links(constant(rate_bps), seed), 400).count((best,)) > 360


@pytest.mark.parametrize("rate_bps", [1e8, 1e9, 1e10], ids="{:g}".format)
def test_other_modes_are_seen_again_at_bounded_cost(rate_bps):
    links = Links(constant(rate_bps), noise=0.05, hiccups=0)
    ways = ways_of(links, 4000)
    best_s = min(links.mean_s(way) for way in PURE)
    lost_s = sum(links.mean_s(way) - best_s for way in ways)
    assert set(ways) >= set(PURE)
    assert lost_s <= 1.5 * REVISIT_SHARE * len(ways) * best_s  # what happened by mistake included


def test_processors_that_get_slower_are_not_taken_for_links_for_long():
    """With links as they were compact stays best, though all that a slow compact step shows is that it is slow."""
    links = Links(constant(2e9), noise=0.05, hiccups=0)
    steps = adaptive_steps(links, Policy(WORLD_SIZE), WARMUP_STEPS)
    list(itertools.islice(steps, 150))
    links.pressure = 2.0
    after = list(itertools.islice(steps, 200))
    assert after.count((Mode.COMPACT,)) > 150


# The model


MODEL_RATES_BPS = st.floats(1e6, 1e9)


def model_of(rate_bps: float, base_s: float, extra_s: float) -> StepModel:
    model = StepModel(WORLD_SIZE)
    model.buckets = BUCKETS
    model.base_s, model.seconds_per_byte = base_s, 8 / rate_bps
    model.codec_s, model.extra_s = dict(CODEC_S), {**dict.fromkeys(Mode, 0.0), Mode.TERNARY: extra_s}
    return model


@given(rate_bps=MODEL_RATES_BPS, before_bps=MODEL_RATES_BPS, seen=st.sets(st.sampled_from(PURE), min_size=1))
def test_the_fit_finds_a_changed_rate_from_any_of_the_ways(rate_bps, before_bps, seen):
    truth, fitted = model_of(rate_bps, 1e-2, 0.0), model_of(before_bps, 1e-2, 0.0)
    fitted.fit({way: truth.expected_s(way) for way in PURE if way in seen})
    assert 8 / fitted.seconds_per_byte == pytest.approx(rate_bps, rel=0.01)


@given(times_s=st.lists(st.floats(1e-3, 10), min_size=3, max_size=3))
def test_a_model_of_all_modes_gives_their_times_again(times_s):
    model, measured = model_of(1e9, 1e-3, 1e-3), dict(zip(PURE, times_s, strict=True))
    model.fit(measured)
    assert [model.expected_s(way) for way in PURE] == pytest.approx(times_s)


def test_one_time_that_is_off_does_not_hide_the_rate():
    truth = model_of(1e8, 1e-2, 0.0)
    measured = {way: truth.expected_s(way) for way in PURE} | {(Mode.TERNARY,): 1.5 * truth.expected_s((Mode.TERNARY,))}
    model = model_of(1e9, 0.0, 0.0)
    model.fit(measured)
    assert 8 / model.seconds_per_byte == pytest.approx(1e8, rel=0.1)


@pytest.mark.parametrize(("rate_bps", "way"), [(1e7, (Mode.TERNARY,)), (2e9, (Mode.COMPACT,)), (1e13, DENSE)], ids=str)
def test_the_slower_the_link_the_shorter_what_travels(rate_bps, way):
    assert model_of(rate_bps, 1e-2, 1e-3).best_way() == way


def test_buckets_choose_one_by_one():
    """A large one saves more bytes than its codec costs, a small one not even its second collective."""
    model = model_of(4e8, 1e-2, 2e-3)
    model.buckets = (Contents(1_000_000, 200_000, 4, 4), Contents(1000, 1000, 4, 4))
    assert model.best_way() == (Mode.TERNARY, Mode.DENSE)
