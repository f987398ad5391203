"""What a pilot says of its measurements: predictions, learning, verdict, worth, drift; its files; what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import call_pacbench
from piloted import BF16, DENSE, LOCAL, TOPK, falling, job, network, pilot, request, training, trainings

import baselines
from harness.analysis.pilot import drift, search
from harness.analysis.pilot.forecast import UTILISATIONS, Forecast, beyond_s, predictions, to_be_tested
from harness.analysis.pilot.learning import end_loss, steps_to, told_of_repeats
from harness.analysis.pilot.worth import Price, cost, money, parse_price, worth
from harness.errors import UsageError
from harness.network.topology import Topology
from harness.record.pilot import FILE, Pilot, Training, load
from harness.report import pilot as report
from harness.report.figures.pilot import pilot as figures
from harness.run.pilot.found import Found
from harness.run.pilot.smallest import _leader
from harness.scenario.load import read_toml
from harness.scenario.schema import MethodSpec

FIVE_PERCENT = TOPK.model_copy(update={"label": "topk, 5 %", "params": {"ratio": 0.05}})


def test_a_break_even_rate_is_where_both_are_as_soon() -> None:
    forecast = Forecast(job(codec_s=0.02), network())
    for factor in (1.0, 1.3):
        rate_bps = forecast.break_even_bps(TOPK, BF16, factor)
        assert rate_bps
        assert factor * forecast.pace_s(TOPK, rate_bps) == pytest.approx(forecast.pace_s(BF16, rate_bps), rel=1e-3)
    assert forecast.break_even_bps(TOPK, BF16, 1e6) is None, "it is nowhere sooner"


def test_what_steps_take_beyond_the_model_is_fixed_and_paid_where_ranks_synchronise() -> None:
    modelled = Forecast(job(), network())
    longer = [training(each, 0, modelled.pace_s(each) + 0.01, falling(40, 1.0, 30)) for each in (DENSE, BF16, TOPK)]
    own_s = beyond_s(longer, modelled, ("dense", "bf16"))
    assert own_s == pytest.approx(0.01)
    known = Forecast(job(), network(), beyond_s=own_s)
    assert known.pace_s(TOPK) == pytest.approx(longer[2].pace_s)
    rarely = MethodSpec(name="local_sgd", label="local_sgd", params={"period": 5}, lr=None)
    assert known.pace_s(rarely) - modelled.pace_s(rarely) == pytest.approx(0.01 / 5)
    assert beyond_s([], modelled, ("dense", "bf16")) == 0


def test_bandwidth_for_a_utilisation_gives_that_utilisation() -> None:
    forecast = Forecast(job(), network())
    rates = [forecast.rate_for(DENSE, share) for share in UTILISATIONS]
    assert rates == sorted(rates, key=lambda rate: rate or math.inf)
    for share, rate_bps in zip(UTILISATIONS[:3], rates, strict=False):
        assert rate_bps
        assert forecast.compute_s / forecast.step_s(DENSE, rate_bps) == pytest.approx(share, abs=0.01)
    dear = Forecast(job(codec_s=0.5), network())
    assert dear.rate_for(TOPK, 0.5) is None, "its codec alone takes longer than all computation"


def test_the_most_promising_are_tested_and_what_misses_much_of_a_gradient_is_less_so() -> None:
    own = job()
    found = predictions(Forecast(own, network()))
    assert to_be_tested(found, ("dense", "bf16"), 3) == ["dense", "bf16", TOPK.label]
    ranks = {each.label: each.rank_s for each in found}
    *others, topk = own.fits
    blind = own.model_copy(update={"fits": (*others, topk.model_copy(update={"progress": 0.1}))})
    less = {each.label: each.rank_s for each in predictions(Forecast(blind, network()))}
    assert less[TOPK.label] == pytest.approx(10 * (ranks[TOPK.label] or 0))
    refused = own.model_copy(update={"fits": (*others, topk.model_copy(update={"refused": "it needs SGD"}))})
    assert to_be_tested(predictions(Forecast(refused, network())), ("dense", "bf16"), 3) == ["dense", "bf16"]


def test_a_loss_at_the_end_is_that_of_the_last_quarter() -> None:
    losses = [8.0] * 30 + [1.0, 2.0] * 5
    assert end_loss(losses) == 1.5
    assert steps_to(losses, 1.5) == 40
    assert steps_to(losses, 1.4) is None
    assert steps_to(falling(40, 1.0, 20), 1.01) == 28


def test_what_learns_alike_in_less_time_is_recommended_and_by_how_much_is_told() -> None:
    found = pilot()
    topk = found.outcome(TOPK.label)
    assert topk
    assert topk.sooner
    assert topk.steps_factor == pytest.approx(1)
    assert topk.sooner.value == pytest.approx(0.27 / 0.05)
    assert topk.keeps == "yes"
    assert (found.verdict.label, found.verdict.compress, found.verdict.sureness) == (TOPK.label, True, "sure")
    assert found.verdict.break_even_bps
    assert found.verdict.break_even_bps > 100e6


def test_at_equal_time_a_slower_method_has_made_fewer_steps() -> None:
    bf16, topk = pilot().outcome("bf16"), pilot().outcome(TOPK.label)
    assert bf16
    assert topk
    assert bf16.timely_difference
    assert topk.timely_difference
    assert bf16.loss_difference
    assert bf16.loss_difference.value == 0
    assert topk.timely_difference.value < bf16.timely_difference.value < 0, "dense is the slowest of all"


def test_a_method_whose_loss_is_worse_is_not_recommended() -> None:
    found = pilot(trainings(topk_end=1.3))
    topk = found.outcome(TOPK.label)
    assert topk
    assert (topk.keeps, topk.time_to_loss_s, topk.sooner) == ("no", None, None)
    assert (found.verdict.label, found.verdict.compress) == ("bf16", False)
    assert found.verdict.sentence.startswith("Do not compress")


def test_what_is_hardly_sooner_is_not_worth_it() -> None:
    found = pilot(trainings(topk_s=0.265))
    assert (found.verdict.label, found.verdict.sureness) == ("bf16", "sure")


def test_what_was_sooner_by_too_little_is_not_said_not_to_have_been() -> None:
    """The model expects it to be sooner on these links, and it was."""
    found = pilot(trainings(topk_s=0.262))
    told = found.verdict
    assert not told.compress
    assert "was 1.03 times as soon" in told.reasons[0]
    assert told.break_even_bps
    assert told.break_even_bps > 100e6
    assert told.changes[0].endswith("and on these it was, by too little to be worth it: slower ones may make it so.")
    (check,) = drift.of_break_even(found, network("10gbit"))
    assert check.answer == "holds", "on faster links all the more"
    slower = pilot(trainings(topk_s=0.3)).verdict
    assert slower.break_even_bps is None
    assert "where it was not: measure again" in slower.changes[0]


def test_the_soonest_is_told_by_the_seeds_that_compare_where_some_have_fewer() -> None:
    """With the third seed all take three times as long; a budget left one method no room for it."""
    paced = [(DENSE, 0.5), (BF16, 0.3), (TOPK, 0.24), (FIVE_PERCENT, 0.294)]
    own = [
        training(method, seed, pace_s * (3 if seed == 2 else 1), falling(40, 1 + 0.01 * seed, 30))
        for seed in range(3)
        for method, pace_s in paced
        if (method, seed) != (FIVE_PERCENT, 2)
    ]
    found = pilot(own)
    means_s = {each.label: each.time_to_loss_s or math.inf for each in found.outcomes}
    assert means_s[FIVE_PERCENT.label] < means_s[TOPK.label], "its mean lacks the slow seed"
    assert (found.verdict.label, found.verdict.compress) == (TOPK.label, True)
    assert "1.25 times as soon" in found.verdict.sentence
    searched = Found(request(Path()), job())
    searched.trainings += own
    leader = _leader(searched)
    assert leader
    assert leader[0] == TOPK


def test_the_best_of_several_is_sure_only_where_that_is_no_luck() -> None:
    """It is 1.2, 1.3 and 1.4 times as soon: sure of one that was tested alone, and not of the best of three."""
    own = [
        training(method, seed, pace_s, falling(40, 1 + 0.01 * seed, 30))
        for seed in range(3)
        for method, pace_s in ((DENSE, 0.5), (BF16, 0.27), (TOPK, 0.27 / (1.2 + 0.1 * seed)))
    ]
    others = [
        training(method, seed, 0.27, falling(40, 1 + 0.01 * seed, 30))
        for seed in range(3)
        for method in (FIVE_PERCENT, FIVE_PERCENT.model_copy(update={"label": "topk, 2 %", "params": {"ratio": 0.02}}))
    ]
    alone, chosen = pilot(own), pilot([*own, *others])
    assert (alone.verdict.label, alone.verdict.sureness) == (TOPK.label, "sure")
    assert (chosen.verdict.label, chosen.verdict.sureness) == (TOPK.label, "likely")


def test_not_compressing_is_sure_only_where_no_rival_may_yet_be_worth_it() -> None:
    """The other one is slower in the mean, and with one of three seeds as soon again."""
    uneven = [
        training(FIVE_PERCENT, seed, 0.27, falling(80, 1 + 0.01 * seed, by)) for seed, by in enumerate((15, 40, 40))
    ]
    assert pilot(trainings(topk_s=0.265)).verdict.sureness == "sure"
    found = pilot([*trainings(topk_s=0.265), *uneven])
    assert (found.verdict.compress, found.verdict.sureness) == (False, "likely")


def test_seeds_that_compare_nothing_are_not_counted() -> None:
    """Of dense and bf16 there is one seed alone."""
    own = [each for each in trainings() if each.label == TOPK.label or each.seed == 0]
    found = pilot(own)
    topk = found.outcome(TOPK.label)
    assert topk
    assert topk.seeds == 1
    assert (found.verdict.label, found.verdict.sureness) == (TOPK.label, "unsure")
    assert "with one seed." in found.verdict.reasons[0]
    ended = [each for each in trainings(topk_s=0.265) if each.label != "bf16" or each.seed == 0]
    assert pilot(ended).verdict.sureness == "unsure", "bf16 has one seed, so nothing compares by the others"


def test_seeds_that_learn_the_same_are_one_training_and_this_is_said() -> None:
    alike = [
        training(method, seed, pace_s, falling(40, 1.0, 30))
        for seed in range(3)
        for method, pace_s in ((DENSE, 0.5), (BF16, 0.27), (TOPK, 0.05))
    ]
    found = pilot(alike)
    assert [each.seeds for each in found.outcomes] == [1, 1, 1]
    assert (found.verdict.label, found.verdict.sureness) == (TOPK.label, "unsure")
    (told,) = told_of_repeats(alike)
    assert told.startswith("Seeds with which dense, bf16, topk, 1 % learnt the same to the last bit count as one:")
    assert told_of_repeats(trainings()) == []


def test_one_seed_makes_nothing_sure() -> None:
    found = pilot(trainings(seeds=1))
    assert (found.verdict.label, found.verdict.sureness) == (TOPK.label, "unsure")
    assert any("is not known to be kept" in reason for reason in found.verdict.reasons)


def test_where_nothing_but_the_plain_ones_was_trained_nothing_is_recommended() -> None:
    found = pilot([each for each in trainings() if each.label != TOPK.label])
    assert (found.verdict.label, found.verdict.sureness) == ("bf16", "unsure")
    assert "nothing that compresses was tested" in found.verdict.sentence


def test_a_training_that_diverged_keeps_nothing() -> None:
    own = [each for each in trainings() if (each.label, each.seed) != (TOPK.label, 1)]
    found = pilot([*own, training(TOPK, 1, 0.05, [2.0] * 39 + [math.nan])])
    topk = found.outcome(TOPK.label)
    assert topk
    assert topk.keeps == "no"
    assert found.verdict.label == "bf16"


@given(st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_the_search_ends_near_the_smallest_share_that_keeps_the_loss(first: float, limit: float) -> None:
    tried = {first: first >= limit}
    while (value := search.next_value(tried)) is not None:
        assert value not in tried
        tried[value] = value >= limit
        assert len(tried) < 30
    within = [value for value, kept in tried.items() if kept]
    assert within
    smallest = min(within)
    assert limit <= smallest <= max(search.NEAR * limit, search.STEP * search.LEAST)


def test_hours_and_money_are_products() -> None:
    found = pilot()
    topk = found.outcome(TOPK.label)
    assert topk
    own = cost(topk, found, 100_000, Price(2.49, "$"), Price(0.09, "$"))
    assert own.hours == pytest.approx(100_000 * 0.05 / 3600)
    assert own.worker_money == pytest.approx(own.hours * 4 * 2.49)
    assert own.egress_money == pytest.approx(100_000 * 4 * 1e6 / 1e9 * 0.09)
    assert cost(topk, found, 100_000, None, None).money is None
    told = worth(found, 100_000, Price(2.49, "$"), None)
    base = next(each for each in told.costs if each.label == "bf16")
    assert told.saved == pytest.approx((base.money or 0) - (own.worker_money or 0))
    assert [each.hours * each.most_an_hour for each in told.pay_back] == pytest.approx([told.saved] * 3)
    first = told.faster[0]
    assert first.rate_bps == 100e6
    assert {each.label: each.hours for each in first.costs} == pytest.approx(
        {each.label: each.hours for each in told.costs}
    ), "at the pilot's own rate a training takes what was measured"
    assert all(
        one.costs[0].hours >= other.costs[0].hours for one, other in zip(told.faster, told.faster[1:], strict=False)
    )


def test_rates_for_a_utilisation_and_lines_have_in_them_what_steps_take_beyond_the_model() -> None:
    found = pilot(beyond_s=0.02)
    known = Forecast(job(), network(), beyond_s=0.02)
    needed = next(each for each in worth(found, 100_000, None, None).needed if each.label == "dense")
    assert needed.rates_bps == tuple(known.rate_for(DENSE, share) for share in UTILISATIONS)
    _, drawn = figures(found)
    dense = drawn.data[drawn.data["label"] == "dense"]
    assert list(dense["pace_s"]) == [known.pace_s(DENSE, rate_bps) for rate_bps in dense["rate_bps"]]


@pytest.mark.parametrize(
    ("name", "times"),
    [("dense", 1), ("topk", 1), ("qsgd", 2 * 6 / 7), ("terngrad", 2 * 6 / 7)],
    ids=["a ring", "a ring that gathers", "to all", "to all, after a short ring"],
)
def test_what_leaves_over_a_link_of_several_ranks_is_what_does_not_stay_on_their_node(name: str, times: float) -> None:
    """Eight ranks: of seven others one is on the same node, and two ranks send."""
    method = MethodSpec(name=name, label=name, lr=None)
    own = [training(method, seed, 0.1, falling(40, 1 + 0.01 * seed, 30), sent_bytes=None) for seed in range(3)]
    found = pilot([*(each for each in trainings() if each.label != name), *own], per_node=2)
    outcome = found.outcome(name)
    assert outcome
    told = cost(outcome, found, 1000, None, Price(1.0, "$"))
    assert told.egress_money == pytest.approx(times * 4 * 1000 * 1e6 / 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("2.49/h", "h", Price(2.49, "")),
        ("$2.49/h", "h", Price(2.49, "$")),
        ("2.49 EUR/h", "h", Price(2.49, "EUR")),
        ("€0.09/GB", "GB", Price(0.09, "€")),
        ("CHF 3/h", "h", Price(3.0, "CHF")),
    ],
)
def test_prices_are_read_in_any_currency(text: str, unit: str, expected: Price) -> None:
    assert parse_price(text, unit) == expected


@pytest.mark.parametrize("text", ["2.49", "2.49/GB", "-1/h", "$2€/h", "x/h", "$2.49EUR/h"])
def test_other_texts_are_no_prices(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 2\.49/h"):
        parse_price(text, "h")


def test_money_has_its_sign_before_and_its_word_behind() -> None:
    assert (money(1234.5, "$"), money(1234.5, "EUR"), money(0, "")) == ("$1,234.50", "1,234.50 EUR", "0.00")


def test_a_job_that_computes_longer_has_drifted_and_one_quiet_moment_is_enough_to_hold() -> None:
    before = job()

    def told(*slower: float) -> drift.Answer:
        return drift.answer(drift.of_job(before, [job(slower=each) for each in slower]))

    assert told(1.0) == told(1.1) == told(1.6, 1.5, 1.02) == "holds"
    assert told(1.3, 1.31, 1.35) == "drifted"
    assert told(0.5) == "drifted"
    assert told(1.3, 2.5, 1.9) == "cannot tell"
    other = job()
    gradients = other.profile.gradients[:1]
    smaller = other.model_copy(update={"profile": other.profile.model_copy(update={"gradients": gradients})})
    assert drift.answer(drift.of_job(before, [smaller])) == "drifted"


def test_links_that_are_half_as_fast_have_drifted() -> None:
    answers = [
        drift.of_network(network(), network(rate))[0].answer for rate in ("100mbit", "90mbit", "50mbit", "200mbit")
    ]
    assert answers == ["holds", "holds", "drifted", "drifted"]


def uneven(rate: str) -> Topology:
    """Down it is as fast as that, up always slower."""
    return Topology.model_validate({"workers": 4, "link": {"rate": rate, "up": {"rate": "20mbit"}}})


def racks(trunk: str, link: str = "100mbit", workers: int = 4) -> Topology:
    fabric = {"groups": "a b", "trunk": {"rate": trunk}}
    return Topology.model_validate({"workers": workers, "link": {"rate": link}, "fabric": fabric})


@pytest.mark.parametrize(
    ("before", "now", "answer", "found"),
    [
        (uneven("100mbit"), uneven("50mbit"), "drifted", "w0 down: 0.50 times the pilot's"),
        (uneven("100mbit"), uneven("90mbit"), "holds", "w0 down: 0.90 times the pilot's"),
        (racks("300mbit"), racks("150mbit"), "drifted", "a up: 0.50 times the pilot's"),
        (racks("unshaped"), racks("150mbit"), "drifted", "a up: unshaped in the pilot"),
        (racks("150mbit"), racks("unshaped"), "drifted", "a up: unshaped"),
        (racks("80mbit"), network("80mbit"), "holds", "1.00 times the pilot's"),
        (racks("80mbit"), network("40mbit"), "drifted", "0.50 times the pilot's"),
        (network("unshaped"), network("unshaped"), "holds", "unshaped"),
    ],
    ids=[
        *("a faster direction halved", "hardly changed", "a trunk halved", "a trunk shaped", "no longer shaped"),
        *("joined in another way", "and slower", "unshaped"),
    ],
)
def test_each_direction_of_links_and_trunks_is_compared_by_itself(
    before: Topology, now: Topology, answer: str, found: str
) -> None:
    check = drift.of_network(before, now)[0]
    assert (check.answer, check.found) == (answer, found)


def test_the_side_of_the_break_even_rate_is_told_by_all_of_the_network() -> None:
    """What goes from all to all passes a trunk many times over, a ring once: the slowest direction stays the links'."""
    qsgd = MethodSpec(name="qsgd", label="qsgd", lr=None)
    own = [
        training(method, seed, pace_s, falling(40, 1 + 0.01 * seed, 30))
        for seed in range(3)
        for method, pace_s in ((DENSE, 0.5), (BF16, 0.27), (qsgd, 0.05))
    ]
    plain = job(codec_s=0.0)
    codec = plain.profile.codecs[0].model_copy(update={"method": "qsgd", "encode_s": 0.01})
    looked = {
        "profile": plain.profile.model_copy(update={"codecs": (*plain.profile.codecs, codec)}),
        "fits": (*plain.fits, plain.fits[0].model_copy(update={"method": qsgd})),
    }
    found = pilot(own, job=plain.model_copy(update=looked), network=racks("400mbit", "20mbit", workers=16))
    assert found.verdict.label == "qsgd"
    assert found.verdict.break_even_bps
    for trunk, answer in (("300mbit", "holds"), ("20mbit", "drifted")):
        now = racks(trunk, "20mbit", workers=16)
        assert now.slowest_bps == found.network.slowest_bps
        (check,) = drift.of_break_even(found, now)
        assert check.answer == answer, trunk
        assert f"qsgd is {'sooner' if answer == 'holds' else 'no sooner'} than bf16 (predicted)" in check.found


def changing(*rates_bps: int) -> Topology:
    """Links that change from second to second, as a measurement followed them."""
    rows = [{"t_s": float(second), "rate_bps": rate_bps} for second, rate_bps in enumerate(rates_bps)]
    return Topology.model_validate({"workers": 4, "link": {"rate": "1gbit", "trace": {"rows": rows}}})


def test_links_that_change_are_told_by_their_mean_not_by_their_first_moment(tmp_path: Path) -> None:
    before, again = changing(60_000_000, 100_000_000, 80_000_000), changing(100_000_000, 60_000_000, 80_000_000)
    assert drift.answer(drift.of_network(before, again)) == "holds"
    slower = changing(60_000_000, 20_000_000, 40_000_000)
    assert drift.of_network(before, slower)[0].answer == "drifted", "though it began as the pilot's did"
    known = Forecast(job(), before)
    assert known.pace_s(DENSE) == pytest.approx(Forecast(job(), network("80mbit")).pace_s(DENSE))
    found = pilot(network=before)
    page = report.write(found, worth(found, 1000, None, None), tmp_path).read_text()
    assert "Not predicted on links that change, as these do." in page
    assert "Not predicted" not in report.write(pilot(), worth(pilot(), 1000, None, None), tmp_path).read_text()


@pytest.mark.parametrize(
    ("topk_s", "codec_s", "label", "answers"),
    [(0.05, 0.02, TOPK.label, ["holds", "drifted"]), (0.265, 0.5, "bf16", ["drifted", "holds"])],
    ids=["compress", "do not"],
)
def test_links_that_have_crossed_the_break_even_rate_have_drifted(
    topk_s: float, codec_s: float, label: str, answers: list[str]
) -> None:
    """The pilot's links are a little slower than that rate where it says to compress; else a little faster."""
    decided = pilot(trainings(topk_s=topk_s), job=job(codec_s=codec_s))
    rate_bps = decided.verdict.break_even_bps
    assert decided.verdict.label == label
    assert rate_bps
    links = [network(f"{round(share * rate_bps)}bit") for share in (0.9, 1.1)]
    found = decided.model_copy(update={"network": links[answers.index("holds")]})
    checks = [drift.of_break_even(found, each) for each in links]
    assert [each.answer for (each,) in checks] == answers
    unknown = found.model_copy(update={"verdict": found.verdict.model_copy(update={"break_even_bps": None})})
    assert drift.of_break_even(unknown, links[0]) == []


def test_a_single_pair_that_is_hardly_slower_tells_nothing_of_the_advantage() -> None:
    found = pilot(trainings(topk_s=0.255))
    assert found.verdict.compress
    own, plain = (next(each for each in found.trainings if each.label == label) for label in (TOPK.label, "bf16"))

    def told(pace_s: float) -> drift.Answer:
        checks = drift.of_verdict(found, [own.model_copy(update={"pace_s": pace_s}), plain])
        return next(check.answer for check in checks if check.what == "advantage")

    assert [told(0.255), told(0.28), told(0.29)] == ["holds", "cannot tell", "drifted"]


def test_a_method_that_is_broken_has_drifted() -> None:
    found = pilot()
    own, plain = (next(each for each in found.trainings if each.label == label) for label in (TOPK.label, "bf16"))

    def told(**changes: object) -> drift.Answer:
        return drift.answer(drift.of_verdict(found, [own.model_copy(update=changes), plain]))

    assert told() == "holds"
    assert told(sent_bytes=2e6) == "drifted"
    assert told(losses=falling(40, 1.5, 30)) == "drifted"
    assert told(losses=(*falling(39, 1.0, 30), math.nan)) == "drifted"
    assert told(pace_s=0.3) == "drifted", "it is no sooner than what it replaces"
    assert told(sent_bytes=None, formula_bytes=None) == "cannot tell"


def test_without_a_tolerance_the_last_bits_of_a_loss_are_no_drift() -> None:
    found = pilot(tolerance=0.0)
    own = next(each for each in found.trainings if each.label == TOPK.label)

    def told(higher: float) -> drift.Answer:
        losses = tuple((loss or 0.0) * (1 + higher) for loss in own.losses)
        checks = drift.of_verdict(found, [own.model_copy(update={"losses": losses})])
        return next(check.answer for check in checks if check.what == "loss at the end")

    assert [told(0.0), told(1e-7), told(1e-4)] == ["holds", "holds", "drifted"]


def test_a_pilots_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = pilot()
    found.save(tmp_path)
    assert load(tmp_path / FILE) == found


@pytest.mark.parametrize("own", [trainings(), trainings(topk_end=1.3)], ids=["compress", "do not"])
def test_the_snippet_makes_the_method_and_the_tables_are_a_scenarios(own: list[object], tmp_path: Path) -> None:
    found: Pilot = pilot(own)  # type: ignore[arg-type]
    page = report.write(found, worth(found, 1000, Price(2.49, "$"), Price(0.09, "$")), tmp_path)
    assert found.verdict.sentence in page.read_text()
    lines = (tmp_path / report.SNIPPET).read_text().splitlines()
    made: dict[str, object] = {}
    exec("\n".join(line for line in lines if not line.startswith("baselines.register")), made)
    state = made["state"]
    assert isinstance(state, baselines.MethodState)
    wanted = baselines.get(found.verdict.method.name).State(**found.verdict.method.params)
    assert (type(state), state.parameters) == (type(wanted), wanted.parameters)
    tables = read_toml(tmp_path / report.TABLES)
    assert tables["cluster"] == {"workers": 4}
    assert tables["link"] == {"rate": "100000000bit"}
    (method,) = tables["methods"]
    assert method == {"name": found.verdict.method.name, "label": found.verdict.label, **found.verdict.method.params}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "COMMAND"),
        (("--price", "2.49", "--", "true"), "--price"),
        (("--egress", "1/h", "--", "true"), "--egress"),
        (("--budget", "soon", "--", "true"), "--budget"),
        (("--budget", "0s", "--", "true"), "--budget"),
        (("--tolerance", "much", "--", "true"), "--tolerance"),
        (("--link", "nothing.toml", "--", "true"), "nothing.toml"),
        (("--link", "other.toml", "--", "true"), "[link]"),
        (("--recheck", "nothing.json"), "nothing.json"),
        (("--recheck", "other.json"), "not a pilot"),
        (("--recheck", "pilot.json", "--", "python", "other.py"), "python train.py"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[train]\nsteps = 3\n")
    (tmp_path / "other.json").write_text("{}")
    pilot().save(tmp_path)
    done = call_pacbench(("pilot", *arguments), tmp_path)
    assert done.returncode == UsageError.exit_code
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_plan_starts_nothing_and_says_what_would_be_run(tmp_path: Path) -> None:
    arguments = ("pilot", "--plan", "--on", "netns", "--budget", "2min", "--method", "topk", "--", "python", "train.py")
    done = call_pacbench(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "put to the test" in done.stdout
    assert not list(tmp_path.iterdir())


def test_each_phase_of_a_roll_out_has_limits_by_what_the_pilot_measured() -> None:
    first, one, all_jobs = pilot().phases
    assert [each.name for each in (first, one, all_jobs)] == ["pilot", "one job", "all jobs"]
    assert dict(first.limits)["how sure"] == "sure"
    assert dict(one.limits) == {
        "time from step to step": "at most 55 ms, 10% above the pilot's",
        "steps to dense's loss, within 2.0%": "at most 1.10 times dense's",
        "memory that the method holds on each worker": "4 MB",
        "pacbench pilot --recheck": "exit code 0",
    }
    assert dict(all_jobs.limits).items() < dict(one.limits).items()


def test_a_method_that_needs_more_but_shorter_steps_wins_by_time() -> None:
    own = [each for each in trainings() if each.label != TOPK.label]
    slower = [training(TOPK, seed, 0.05, falling(160, 1 + 0.01 * seed, 60)) for seed in range(3)]
    found = pilot([*own, *slower])
    topk = found.outcome(TOPK.label)
    assert topk
    assert topk.steps_factor
    assert topk.sooner
    assert topk.loss_difference
    assert topk.loss_difference.value > 0.1, "after as many steps it is behind"
    assert 1.5 < topk.steps_factor < 2.5
    assert topk.sooner.value == pytest.approx(0.27 / 0.05 / topk.steps_factor, rel=0.01)
    assert found.verdict.label == TOPK.label


def test_a_seed_that_only_one_plain_all_reduce_has_trained_compares_with_nothing() -> None:
    found = pilot([*trainings(seeds=1), training(DENSE, 1, 0.5, falling(40, 1.01, 30))])
    dense = found.outcome("dense")
    assert dense
    assert dense.sooner
    assert (dense.sooner.value, dense.sooner.n) == (pytest.approx(0.27 / 0.5), 1)


# All-reduces that miss dense's loss, and what the model does not expect


def with_bf16(*ends: float | None, steps: int = 40, topk_s: float = 0.27) -> list[Training]:
    """Dense and top-k learn alike; bf16 ends at so many times dense's loss, seed by seed. None: it diverges."""
    others = [each for each in trainings(topk_s=topk_s) if each.label != "bf16"]
    losses = [
        [math.nan] * steps if end is None else falling(steps, end * (1 + 0.01 * seed), 30)
        for seed, end in enumerate(ends)
    ]
    return [*others, *(training(BF16, seed, 0.27, own) for seed, own in enumerate(losses))]


def test_a_seed_with_which_the_faster_all_reduce_missed_the_loss_is_no_win_over_the_slower_one() -> None:
    """It takes top-k's time, and ended 2.5 % too high with one of three."""
    found = pilot(with_bf16(1, 1, 1.025))
    topk = found.outcome(TOPK.label)
    assert topk
    assert topk.sooner
    assert (topk.sooner.value, topk.sooner.n) == (pytest.approx(1), 2)
    assert (found.verdict.label, found.verdict.sureness) == ("bf16", "unsure")
    assert "bf16 did not come to dense's loss with every seed." in found.verdict.reasons


@pytest.mark.parametrize(
    ("ends", "steps", "sureness"),
    [((1.3, 1.3, 1.3), 40, "unsure"), ((1.3, 1.3, 1.3), 74, "sure"), ((1, 1, None), 40, "sure")],
    ids=["it had not dense's time", "it had", "it diverges"],
)
def test_where_16_bits_never_came_to_the_loss_dense_is_what_is_compared_with(
    ends: tuple[float | None, ...], steps: int, sureness: str
) -> None:
    found = pilot(with_bf16(*ends, steps=steps, topk_s=0.05))
    told = found.verdict
    assert (told.label, told.sureness) == (TOPK.label, sureness)
    assert told.sentence.endswith("10.00 times as soon at the same loss as dense.")
    assert told.break_even_bps == Forecast(job(), network()).break_even_bps(TOPK, DENSE, 1.0)
    assert "dense is as soon there" in told.changes[0]
    own, dense = (next(each for each in found.trainings if each.label == label) for label in (TOPK.label, "dense"))
    assert drift.compared_with(found).label == "dense"
    assert "10.00 times as soon as dense" in [check.found for check in drift.of_verdict(found, [own, dense])]


def test_money_is_not_told_as_saved_over_an_all_reduce_whose_cost_is_unknown(tmp_path: Path) -> None:
    """With one seed the cheaper one missed dense's loss, by so little that it may be the cheaper one all the same."""
    found = pilot(with_bf16(1, 1, 1.025, topk_s=0.05))
    told = worth(found, 100_000, Price(2.49, "$"), None)
    assert [each.label for each in told.costs if each.money is None] == ["bf16"]
    assert (told.saved, told.pay_back) == (None, [])
    assert "over the cheaper all-reduce" not in report.write(found, told, tmp_path).read_text()


def test_where_all_reduces_take_turns_at_being_sooner_both_are_named() -> None:
    dear = [
        each.model_copy(update={"pace_s": 0.9}) if (each.label, each.seed) == ("bf16", 1) else each
        for each in trainings()
    ]
    assert "as the sooner of dense and bf16" in pilot(dear).verdict.sentence


def test_a_break_even_rate_below_the_pilots_own_links_is_not_stated() -> None:
    """The codec takes so long that the model expects nothing of top-k here; but it was sooner."""
    found = pilot(job=job(codec_s=0.9))
    assert (found.verdict.label, found.verdict.break_even_bps) == (TOPK.label, None)
    assert "The model does not expect it to be sooner than bf16 on these links, but it was" in found.verdict.changes[0]


def test_a_method_that_ended_too_soon_leaves_it_unsure_whether_to_compress() -> None:
    """Its 40 steps took 2 s, and bf16 was at dense's loss after 10: with more steps it may come there sooner."""
    slow = [each for each in trainings() if each.label != TOPK.label]
    short, whole = (
        pilot([*slow, *(training(TOPK, seed, 0.05, falling(steps, 1.3 + 0.01 * seed, steps)) for seed in range(3))])
        for steps in (40, 216)
    )
    assert (short.verdict.label, short.verdict.sureness) == ("bf16", "unsure")
    assert any(reason.startswith("topk, 1 % ended before the time was over") for reason in short.verdict.reasons)
    assert (whole.verdict.label, whole.verdict.sureness) == ("bf16", "likely")
    assert not any("ended before" in reason for reason in whole.verdict.reasons)


# Methods whose ranks meet once in several steps


def test_ranks_that_have_not_met_and_gone_on_have_no_loss_to_compare() -> None:
    """They meet every seven steps; each alone is at dense's loss at once."""
    losses = falling(42, 1.0, 3)
    assert steps_to(losses, 1.01, window=3) == 5
    assert steps_to(losses, 1.01, window=3, period=7) == 14
    assert steps_to(losses[:13], 1.01, window=3, period=7) is None
    own = [training(LOCAL, seed, 0.05, falling(49, 1 + 0.01 * seed, 30)) for seed in range(3)]
    seldom = LOCAL.model_copy(update={"label": "seldom", "params": {"period": 21}})
    own += [training(seldom, seed, 0.05, falling(63, 1 + 0.01 * seed, 3)) for seed in range(3)]
    found = pilot([*trainings(), *own])
    local, alone = found.outcome(LOCAL.label), found.outcome("seldom")
    assert local
    assert alone
    assert local.time_to_loss_s == pytest.approx(0.05 * 42), "dense is there after 40: the next meeting"
    assert alone.time_to_loss_s == pytest.approx(0.05 * 42), "their second meeting, however soon each was there alone"
    assert (local.keeps, alone.keeps, alone.timely_difference) == ("yes", "unknown", None)


def test_of_what_is_sent_as_a_step_ends_no_exposed_share_is_told() -> None:
    own = [training(LOCAL, seed, 0.05, falling(49, 1 + 0.01 * seed, 30), exposed_s=None) for seed in range(3)]
    found = pilot([*trainings(), *own])
    rows = {row["method"]: row["exposed share of a step"] for row in report.outcomes(found)}
    assert (rows[LOCAL.label], rows["dense"]) == ("–", "93.8 %")
