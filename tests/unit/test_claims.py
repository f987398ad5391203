"""Claims: read strictly, judged by where the interval lies, each figure with its origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import make_store

from harness.analysis.cases import case_results
from harness.analysis.claims import judgements, schema
from harness.analysis.claims.figures import Run, steps_to_target
from harness.analysis.claims.judgements import Judgement
from harness.analysis.claims.plans import QUICK_ROUNDS, plans
from harness.analysis.claims.schema import Claim
from harness.analysis.claims.sequential import confidence
from harness.analysis.estimates import Estimate, geometric_mean
from harness.analysis.pairs import paired_ratios
from harness.analysis.shifts import paired_shift
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.plan import Plan
from harness.report import claims_page
from harness.report.figures.claims import write_claims
from harness.scenario.load import load
from harness.scenario.schema import Scenario
from harness.workload.profile import Profile

TOPK = """
[[claims]]
id = "topk"
source = "Somebody, Somewhere 2020"
place = "table 1"
wording = "up to 12 times faster"
quantity = "throughput"
model = "digits-cnn"
rate = "100mbit"
workers = 3
baseline = "dense"
method = "topk"
range = [1.0, 12.0]
scenario = "quickstart"
"""


def on_netns(scenario: Scenario) -> Plan:
    return plan.make(scenario, "netns")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(text: str) -> Path:
        path = tmp_path / "claims.toml"
        path.write_text(text)
        return path

    return to_file


def claim(**changes: Any) -> Claim:
    fields = {
        "id": "topk",
        "source": "Somebody, Somewhere 2020",
        "place": "abstract",
        "wording": "faster",
        "quantity": "throughput",
        "model": "digits-cnn",
        "rate": "100mbit",
        "workers": 3,
        "baseline": "dense",
        "method": "topk",
        "range": (1.0, 12.0),
        "scenario": "quickstart",
    }
    return Claim.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three rounds of quickstart."""
    return Run(on_netns(load("quickstart")), make_store(tmp_path_factory.mktemp("claims") / "quickstart-1"))


@pytest.fixture(scope="module")
def missing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, but top-k's target is out of its reach, and bf16's once."""
    beyond = {"steps_to_target": None, "time_to_target_s": None}
    ends = {("topk", number): beyond for number in range(3)} | {("bf16", 1): beyond}
    store = make_store(tmp_path_factory.mktemp("claims") / "quickstart-2", ends=ends)
    return Run(on_netns(load("quickstart")), store)


def judged(run: Run, **changes: Any) -> Judgement:
    return judgements.judge(claim(**changes), {"quickstart": run})


def test_a_list_stands_for_every_combination(write: Callable[[str], Path]) -> None:
    text = TOPK.replace('"100mbit"', '["100mbit", "1gbit"]').replace('"topk"\nrange', '["topk", "dgc"]\nrange')
    found = schema.load(write(text))
    assert [each.id for each in found] == [
        f"topk/{rate}/{method}" for rate in ("100mbit", "1gbit") for method in ("topk", "dgc")
    ]
    assert {(each.rate_bps, each.method) for each in found} == {
        ((rate,), (method,)) for rate in (10**8, 10**9) for method in ("topk", "dgc")
    }
    assert {each.family for each in found} == {"topk"}


def test_a_list_of_any_labels_stands_for_every_combination(write: Callable[[str], Path]) -> None:
    labels = ["onebit_adam", "zeroone_adam", "no GSE", "Mine: 1/2 (+)"]
    found = schema.load(write(TOPK.replace('"topk"\nrange', f"{json.dumps(labels)}\nrange")))
    assert [each.id for each in found] == [f"topk/{label}" for label in labels]
    assert [each.method for each in found] == [(label,) for label in labels]
    assert {each.family for each in found} == {"topk"}
    assert schema.select(found, ["topk/zeroone_adam"]) == [found[1]]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"dense"', '"dense"\nwight = 1', r"wight: unknown key; allowed: .*wording"),
        ("[1.0, 12.0]", "[12.0, 1.0]", r"range: found \[12.0, 1.0\]; allowed: two ratios"),
        (
            'quantity = "throughput"',
            'quantity = "time to accuracy"',
            r"convergence: found none; allowed: a scenario for",
        ),
        ('"100mbit"', '"100"', r"rate: found '100'; allowed: a rate such as '100mbit'"),
        ('wording = "up to 12 times faster"', "", r"wording: missing"),
        ('place = "table 1"', "", r"topk: place: missing"),
        ('"table 1"', '""', r"topk: place: found ''; allowed: String should have at least 1"),
        ('"throughput"', '"speed"', r"quantity: found 'speed'; allowed: 'throughput', 'bytes'"),
        ('"throughput"', '"share"', r"grid: found none; allowed: some of model, rate and method, .* for 'share'"),
        ('"throughput"', '"share"\ngrid = ["method"]', r"method: found 1; allowed: a list of several"),
        (
            '"throughput"',
            '"share"\ngrid = ["workers"]',
            r"grid\.0: found 'workers'; allowed: 'model', 'rate' or 'method'",
        ),
        ('"throughput"', '"trend"\naxis = "rate"', r"direction: found none; allowed: grows or falls, for 'trend'"),
        ('"throughput"', '"ablation"', r"without: found none; allowed: the label of the method without the part"),
        ('"throughput"', '"throughput"\nwithout = "bf16"', r"without: .*nothing for the others"),
        ("12.0]", "12.0]\ndevices = [0.5, 1.5]", r"devices: found \[0.5, 1.5\]; allowed: shares up to 1"),
        ("12.0]", "12.0]\ndevices = [0.5, 1.0]", r"devices: found \[0.5, 1.0\]; allowed: .* the largest first"),
        ("12.0]", "12.0]\nof = 'bytes'", r"of: found 'bytes'; allowed: nothing, but for ablation, share, trend"),
        (
            '"throughput"\nmodel',
            '"share"\ngrid = ["rate"]\nmodel',
            r"rate: found 1; allowed: a list of several",
        ),
        (
            '"throughput"\nmodel = "digits-cnn"\nrate = "100mbit"',
            '"share"\ngrid = ["rate"]\nmodel = "digits-cnn"\nrate = ["1gbit", "1000mbit"]',
            r"rate: found 1000000000 more than once; allowed: each once",
        ),
        ("12.0]", "12.0]\ncounted = 'gradient'", r"counted: found 'gradient'; allowed: 'wire', but for 'bytes'"),
        ('"table 1"', '"  "', r"topk: place: found '  '; allowed: String should have at least 1"),
        ('method = "topk"', "method = []", r"topk: method: found 'an empty list'; allowed: one or more"),
        ('"quickstart"', '"paper/{modell}"', r"scenario: found 'paper/{modell}'; allowed: a name, in which {model}"),
        ('"quickstart"', '"paper/{"', r"scenario: found 'paper/{'; allowed: a name, in which {model}"),
        (
            "12.0]",
            "12.0]\nnot_testable = 'no such switch'",
            r"scenario: found quickstart; allowed: .*none with not_testable",
        ),
        ('id = "topk"', 'id = "Top_k"', r"id: found 'Top_k'; allowed: String should match"),
        ("[[claims]]", "[[claim]]", r"claims: found 'claim'; allowed: \[\[claims\]\] tables"),
        ("[[claims]]", "[[claims]", r"not valid TOML"),
        ("[[claims]]", f"{TOPK}\n[[claims]]", r"id: found 'topk'; allowed: each id once"),
    ],
)
def test_a_claim_that_says_too_little_or_nonsense_is_refused(
    old: str, new: str, says: str, write: Callable[[str], Path]
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        schema.load(write(TOPK.replace(old, new)))
    assert "\n" not in str(refused.value)


def test_claims_are_named_by_their_id_or_its_beginning(write: Callable[[str], Path]) -> None:
    known = schema.load(write(TOPK.replace('"100mbit"', '["100mbit", "1gbit"]') + TOPK.replace('"topk"', '"other"', 1)))
    assert len(schema.select(known)) == 3
    assert [each.id for each in schema.select(known, ["topk"])] == ["topk/100mbit", "topk/1gbit"]
    assert [each.id for each in schema.select(known, ["topk/1gbit", "other"])] == ["topk/1gbit", "other"]
    with pytest.raises(UsageError, match=r"--claim: found 'top'; allowed: topk, other"):
        schema.select(known, ["top"])
    with pytest.raises(UsageError, match="a claim that --quick judges"):
        schema.select(known, ["topk"], quick=True)


AT_ODDS = """
[claims.arithmetic]
told = "TOLD"
step = "45MB"
rate = "100mbit"
least_steps = 200
why = "one in each epoch"
"""


def test_a_source_that_contradicts_itself_is_told_by_its_arithmetic(write: Callable[[str], Path]) -> None:
    (found,) = schema.load(write(TOPK + AT_ODDS.replace("TOLD", "518.3s")))
    assert found.needs == [], "nothing is run for it"
    judgement = judgements.judge(found, {})
    assert judgement.verdict == "source inconsistent"
    for expected in ("45 MB a step take 3.6 s", "hold 143 such steps", "there were 200 or more, one in each epoch"):
        assert expected in judgement.reason
    with pytest.raises(UsageError, match=r"arithmetic\.told: found 15 min 0 s; allowed: a time that contradicts"):
        schema.load(write(TOPK + AT_ODDS.replace("TOLD", "15min")))


def test_what_cannot_be_tested_here_needs_nothing_and_says_why() -> None:
    found = claim(scenario=None, not_testable="there is no such switch")
    assert found.needs == []
    assert plans([found], on_netns) == {}
    judgement = judgements.judge(found, {})
    assert (judgement.verdict, judgement.reason) == ("not testable here", "there is no such switch")


ratios = st.floats(0.01, 100)


@given(ratios, ratios, ratios, ratios)
def test_a_verdict_says_where_the_interval_lies(a: float, b: float, c: float, d: float) -> None:
    (low, high), (start, end) = sorted((a, b)), sorted((c, d))
    assume(low < high)
    assume(start < end)
    found = Estimate((start * end) ** 0.5, start, end, 3)
    verdict, reason = judgements.verdict_on(found, claim(range=(low, high)))
    inside, below, above = low <= start and end <= high, end < low, start > high
    assert verdict == (
        "reproduced" if inside else "not reproduced" if below else "exceeded" if above else "inconclusive"
    )
    assert ("less" in reason, "more" in reason) == (below, above)


@given(ratios, ratios, ratios)
def test_of_points_lost_less_is_better_and_of_a_share_neither(low: float, a: float, b: float) -> None:
    start, end = sorted((a, b))
    assume(start < end)
    found = Estimate((start + end) / 2, start, end, 3)
    lost = claim(quantity="accuracy", range=(low, low + 1))
    expected = "exceeded" if end < low else "not reproduced" if start > low + 1 else None
    verdict, _ = judgements.verdict_on(found, lost)
    assert (verdict if expected else expected) == expected
    share = claim(quantity="ablation", without="bf16", range=(low, low + 1))
    if end < low or start > low + 1:
        assert judgements.verdict_on(found, share)[0] == "not reproduced"


def test_throughput_is_the_speedup_that_reports_show(run: Run) -> None:
    (case,) = case_results(run.trials, run.plan.scenario)
    found, shown = judged(run).found, case.method("topk").speedup
    assert found is not None
    assert shown is not None
    assert (found.value, found.n) == pytest.approx((shown.value, shown.n))
    ratios = paired_ratios(run.trials, "topk", "dense").to_numpy()
    assert found == paired_shift(ratios).estimate(confidence(rounds=3)), "wider: it may be looked at after each round"
    assert found.low is not None
    assert shown.low is not None
    assert found.low < shown.low


def test_bytes_are_those_that_were_counted(run: Run) -> None:
    (case,) = case_results(run.trials, run.plan.scenario)
    found = judged(run, quantity="bytes", range=(10, 30)).found
    assert found is not None
    assert found.value == pytest.approx(case.method("topk").saving, rel=0.001)


def test_a_baseline_may_be_any_method(run: Run) -> None:
    over_dense, over_bf16 = (judged(run, baseline=baseline).found for baseline in ("dense", "bf16"))
    bf16 = judged(run, method="bf16").found
    assert over_dense is not None
    assert over_bf16 is not None
    assert bf16 is not None
    assert over_bf16.value == pytest.approx(over_dense.value / bf16.value)


def test_what_was_not_run_is_inconclusive(run: Run) -> None:
    nothing = Run(run.plan)
    judgement = judgements.judge(claim(), {"quickstart": nothing})
    assert (judgement.verdict, judgement.found) == ("inconclusive", None)
    assert judgement.reason == "nothing of it was run"
    assert judgement.origins == ()
    assert judgement.decides == "pacbench reproduce --claim topk"


def test_a_machine_too_slow_for_what_it_replays_decides_no_throughput(tmp_path: Path) -> None:
    late = {("topk", number): {"overrun_s_per_step": 0.02} for number in range(3)}
    store = make_store(tmp_path / "quickstart-late", ends=late)
    run = Run(on_netns(load("quickstart")), store)
    found = judged(run)
    assert found.verdict == "inconclusive"
    assert found.found is not None, "what was measured is shown all the same"
    assert "of topk's step this machine was slower than the device that it replays" in found.reason
    assert "train.dilation" in found.decides
    assert not found.open_parts, "more rounds do not help"
    assert judged(run, quantity="bytes", range=(1.0, 1e6)).verdict == "reproduced", "bytes do not depend on it"


def test_what_was_measured_as_added_was_taken_off_and_spoils_nothing(tmp_path: Path) -> None:
    taken_off = {"overrun_s_per_step": 0.02, "added_s_per_step": 0.02}
    store = make_store(tmp_path / "quickstart-late", ends={("topk", number): taken_off for number in range(3)})
    found = judged(Run(on_netns(load("quickstart")), store))
    assert found.verdict != "inconclusive"


@pytest.mark.parametrize("status", ["crashed", "failed", "interrupted"])
@pytest.mark.parametrize(
    "asked", [{"quantity": "accuracy"}, {"quantity": "time to accuracy", "convergence": "quickstart"}]
)
def test_a_training_that_did_not_end_is_run_again_before_there_is_a_verdict(
    status: str, asked: dict[str, str], tmp_path: Path
) -> None:
    store = make_store(tmp_path / "quickstart-1", ends={("dense", 2): {"status": status}})
    judgement = judged(Run(on_netns(load("quickstart")), store), range=(0, 99), **asked)
    assert (judgement.verdict, judgement.found) == ("inconclusive", None)
    assert judgement.reason == "2 of 3 trainings by dense have run"
    assert judgement.open_parts, "it is asked for again"


def test_what_only_others_have_run_was_not_run(tmp_path: Path) -> None:
    store = make_store(tmp_path / "quickstart-1", methods=["bf16"])
    judgement = judged(Run(on_netns(load("quickstart")), store))
    assert (judgement.verdict, judgement.reason) == ("inconclusive", "nothing of topk was run")
    assert judgement.decides == "pacbench reproduce --claim topk"


def test_one_round_is_inconclusive(tmp_path: Path) -> None:
    store = make_store(tmp_path / "quickstart-1", ["rounds=1"])
    judgement = judged(Run(on_netns(load("quickstart", ["rounds=1"])), store))
    assert (judgement.verdict, judgement.reason) == ("inconclusive", "one round gives no interval")
    assert judgement.decides == "a second round"


def steps(run: Run, label: str) -> list[float]:
    return steps_to_target(run, label).tolist()


def test_steps_to_the_target_are_those_of_the_first_crossing(run: Run, missing: Run) -> None:
    events = run.store.events() if run.store else pd.DataFrame()
    accuracies = events[events["kind"] == "accuracy"].merge(run.trials[["trial_id", "label", "round"]])
    dense = accuracies[accuracies["label"] == "dense"].sort_values("step")
    curves = [own[["value", "step"]].to_numpy(dtype=float).T for _, own in dense.groupby("round")]
    assert steps(run, "dense") == pytest.approx([np.interp(0.85, *curve) for curve in curves]), "they only rise"
    assert pd.isna(steps(missing, "topk")).all()
    assert list(pd.isna(steps(missing, "bf16"))) == [False, True, False]


def test_time_to_accuracy_is_throughput_times_steps_each_with_its_origin(run: Run) -> None:
    judgement = judged(run, method="bf16", quantity="time to accuracy", convergence="quickstart")
    throughput = judged(run, method="bf16").found
    pairs = list(zip(steps(run, "dense"), steps(run, "bf16"), strict=True))
    fewer = geometric_mean([dense / own for dense, own in pairs])
    assert judgement.found is not None
    assert throughput is not None
    assert judgement.found.value == pytest.approx(throughput.value * fewer.value)
    assert judgement.found.low is not None
    assert judgement.found.high is not None
    assert judgement.found.low < judgement.found.value < judgement.found.high
    medians = [pd.Series(steps(run, label)).median() for label in ("bf16", "dense")]
    assert all(f"takes {median:g} steps of the training" in judgement.explanation for median in medians)
    assert [origin.partition(":")[0] for origin in judgement.origins] == ["throughput", "steps to the target"]
    assert all("digits-cnn, digits" in origin and "quickstart-1" in origin for origin in judgement.origins)
    assert [origin.partition("; ")[2] for origin in judgement.origins] == [
        "spread: that of its own rounds",
        "spread: that of its own seeds",
    ]


@pytest.mark.parametrize(
    ("method", "baseline", "verdict", "says"),
    [
        ("topk", "dense", "inconclusive", "topk missed the target in 3 of 3 trainings"),
        ("bf16", "dense", "inconclusive", "bf16 missed the target in 1 of 3 trainings"),
        ("pactrain-fp32", "topk", "inconclusive", "topk missed the target in 3 of 3 trainings"),
    ],
)
def test_who_misses_the_target_is_not_left_out(
    method: str, baseline: str, verdict: str, says: str, missing: Run
) -> None:
    judgement = judged(
        missing, method=method, baseline=baseline, quantity="time to accuracy", convergence="quickstart", range=(0, 99)
    )
    assert (judgement.verdict, judgement.reason, judgement.found) == (verdict, says, None)


TRAINED = {"quantity": "time to accuracy", "convergence": "trained", "range": (0, 99)}


def trained(run: Run, folder: Path, rounds: int, ends: Sequence[Mapping[str, Any]]) -> Judgement:
    """Of a run's throughput, and of so many trainings, of which the first by topk ended so."""
    overrides, by_round = [f"rounds={rounds}"], {("topk", number): end for number, end in enumerate(ends)}
    trainings = Run(on_netns(load("quickstart", overrides)), make_store(folder, overrides, ends=by_round))
    return judgements.judge(claim(**TRAINED), {"quickstart": run, "trained": trainings})


@pytest.mark.parametrize("end", [{"status": "diverged"}, {"steps_to_target": None}])
@pytest.mark.parametrize(
    ("lost", "rounds", "verdict", "decides"),
    [
        (1, 3, "inconclusive", "longer trainings, or a target within reach"),
        (3, 3, "inconclusive", "2 more seeds, if they fail as well"),
        (4, 4, "inconclusive", "1 more seed, if it fails as well"),
        (5, 5, "not reproduced", ""),
        (5, 6, "inconclusive", "longer trainings, or a target within reach"),
    ],
)
def test_who_diverges_or_misses_the_target_has_failed_for_good_where_that_is_no_chance(
    lost: int, rounds: int, verdict: str, decides: str, end: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    """Who misses it half the time does so in all of three trainings in an eighth of all studies."""
    judgement = trained(run, tmp_path / "run", rounds, lost * [end])
    assert (judgement.verdict, judgement.found) == (verdict, None)
    assert judgement.reason == f"topk missed the target in {lost} of {rounds} trainings"
    assert judgement.decides == decides
    assert not judgement.open_parts


@pytest.mark.parametrize(
    ("late", "missed", "says"),
    [
        (1, 0, "topk ran out of time in 1 of 6 trainings"),
        (6, 0, "topk ran out of time in 6 of 6 trainings"),
        (1, 5, "topk missed the target in 5 and ran out of time in 1 of 6 trainings"),
    ],
)
def test_who_runs_out_of_time_here_has_not_failed(late: int, missed: int, says: str, run: Run, tmp_path: Path) -> None:
    """How long an unpaced step takes is this machine's: a faster one would have seen the target."""
    ends: list[dict[str, Any]] = [*late * [{"status": "timeout"}], *missed * [{"steps_to_target": None}]]
    judgement = trained(run, tmp_path / "run", 6, ends)
    assert (judgement.verdict, judgement.reason) == ("inconclusive", says)
    assert judgement.decides == "a longer train.timeout"


@pytest.mark.parametrize("label", ["topk", "dense"])
@pytest.mark.parametrize("count", [1, 3])
def test_of_who_begins_at_the_target_there_is_no_ratio(label: str, count: int, tmp_path: Path) -> None:
    at_once = {(label, number): {"steps_to_target": 0.0, "time_to_target_s": 0.0} for number in range(count)}
    run = Run(on_netns(load("quickstart")), make_store(tmp_path / "run", ends=at_once))
    judgement = judged(run, quantity="time to accuracy", convergence="quickstart", range=(1, 99))
    assert (judgement.verdict, judgement.found) == ("inconclusive", None)
    assert judgement.reason == f"{label} was at the target before its first step in {count} of 3 trainings"
    assert judgement.decides == "a target beyond where trainings begin"


@pytest.mark.parametrize(
    ("method", "claimed", "says"),
    [
        ("pactrain-fp32", (1.25, 8.72), "8.72x is out of the reach of bytes"),
        ("bf16", (2.5, 3.0), "less than is claimed"),
        ("topk", (1.0, 12.0), "leaves less of it"),
    ],
)
def test_the_bytes_explain(method: str, claimed: tuple[float, float], says: str, run: Run) -> None:
    text = judged(run, method=method, range=claimed).explanation
    assert says in text
    (case,) = run.plan.scenario.cases
    own, base = (
        next(trial.expected.lower_bound_s_per_step for trial in run.plan.trials if trial.method.label == label)
        for label in (method, "dense")
    )
    assert f"{base / own:.3g}x" in text
    assert case.link.rate_bps == 10**8


def test_a_codec_that_no_profile_knows_is_told_to_be_this_machines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Profile.codec
    assert "does not know" not in judged(run, method="topk").explanation
    monkeypatch.setattr(
        Profile, "codec", lambda self, method, workers: None if method.name == "topk" else known(self, method, workers)
    )
    text = judged(run, method="topk").explanation
    assert "does not know the codec of topk: it took this machine's processor" in text


def test_only_what_is_asked_for_is_run_and_quick_is_a_part_of_it() -> None:
    chosen = [claim(method="bf16"), claim(id="more", method="topk")]
    whole, quick = (plans(chosen, on_netns, quick)["quickstart"] for quick in (False, True))
    assert {trial.method.label for trial in whole.trials} == {"dense", "bf16", "topk"}
    assert {trial.id for trial in quick.trials} <= {trial.id for trial in whole.trials}
    assert {trial.round for trial in quick.trials} == set(range(QUICK_ROUNDS))
    everything = pd.DataFrame(
        {"trial_id": [trial.id for trial in on_netns(load("quickstart")).trials], "purpose": None}
    )
    assert quick.foreign_trial_ids(everything) == whole.foreign_trial_ids(everything) == set()
    assert whole.foreign_trial_ids(pd.DataFrame({"trial_id": ["another"], "purpose": None})) == {"another"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "zen"}, r"topk: method: found 'zen'; allowed: of quickstart: dense, bf16"),
        (
            {"rate": "3gbit"},
            r"found 'digits-cnn, 3 Gbit/s, 3 workers'; allowed: the cases of quickstart: digits-cnn, 100",
        ),
        (
            {"quantity": "time to accuracy", "convergence": "bandwidth_sweep"},
            r"convergence: found 'bandwidth_sweep'; allowed: a scenario with a single case",
        ),
        (
            {"quantity": "time to accuracy", "convergence": "paper/datacenter-resnet50", "method": "dgc"},
            r"convergence: found 'datacenter-resnet50'; allowed: a scenario that trains: who replays learns nothing",
        ),
        (
            {"quantity": "accuracy", "scenario": "ci"},
            r"scenario: found 'ci'; allowed: a scenario that trains: who replays learns nothing",
        ),
        (
            {"quantity": "time to accuracy", "convergence": "ci", "method": "dgc"},
            r"method: found 'dgc'; allowed: of ci",
        ),
        (
            {"quantity": "time to accuracy", "convergence": "dgc-differs"},
            r"convergence: found 'dgc-differs'; allowed: the same topk as in quickstart \(ratio = 0.02 against 0.01\)",
        ),
    ],
)
def test_a_claim_that_its_scenario_cannot_answer_is_refused(
    changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(name: str) -> Scenario:
        if name != "dgc-differs":
            return load(name)
        quickstart = load("quickstart")
        topk = next(method for method in quickstart.methods if method.label == "topk")
        other = topk.model_copy(update={"params": {**topk.params, "ratio": 0.02}})
        methods = tuple(other if method is topk else method for method in quickstart.methods)
        return quickstart.model_copy(update={"methods": methods, "name": name})

    monkeypatch.setattr(schema.scenarios, "load", loaded)
    with pytest.raises(UsageError, match=says):
        plans([claim(**changes)], on_netns)


def test_verdicts_are_written_for_readers_and_programs(run: Run, tmp_path: Path) -> None:
    found = [
        judged(run),
        judged(run, id="bytes/topk", quantity="bytes", range=(2, 3)),
        judged(run, id="more/topk", quantity="bytes", range=(2000, 3000)),
        judged(run, rate="100mbit"),
    ]
    claims_page.write(found, tmp_path / "out", {"commit": "abc", "started": "today"})
    text = (tmp_path / "out" / "claims.md").read_text()
    for expected in (
        "commit abc",
        "topk**: of 2, 2 reproduced",
        "bytes**: of 1, 1 exceeded",
        "1 not reproduced",
        "> faster",
    ):
        assert expected in text
    content = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert [each["verdict"] for each in content["claims"]] == [each.verdict for each in found]
    assert all(each["origins"] and each["explanation"] for each in content["claims"])
    assert all(each["by_device"][0]["found"] == each["found"] for each in content["claims"])

    write_claims(found, tmp_path / "out")
    for name, own in {"claims": [found[0], found[3]], "claims-bytes": found[1:3]}.items():
        drawn = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        assert list(drawn["verdict"]) == [each.verdict for each in own]
    assert (tmp_path / "out" / "claims.png").stat().st_size > 0


def test_a_gradient_is_counted_of_methods_only_that_send_it_once() -> None:
    asked = claim(
        quantity="bytes", counted="gradient", model="bert-base", rate="10gbit", workers=8, method="omnireduce",
        scenario="paper/sparse-bert-base",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"counted: found 'gradient'; allowed: wire, since omnireduce does not send"):
        plans([asked], on_netns)


def test_seconds_to_the_target_are_not_those_of_lucky_seeds(run: Run, missing: Run) -> None:
    """bf16 missed the target with one of three seeds; dense did with none."""
    asked = {"method": "bf16", "quantity": "time to accuracy", "convergence": "quickstart", "range": (0, 99)}
    assert "To the target bf16 takes" in judged(run, **asked).explanation
    told = judged(missing, **asked).explanation
    assert "To the target bf16 takes" not in told
    assert "To the target dense takes" in told
