"""Claims: read strictly, judged by where the interval lies, each figure with its origin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import make_store

from harness.analysis import claims, judgements
from harness.analysis.cases import case_results
from harness.analysis.claims import Claim
from harness.analysis.estimates import Estimate, geometric_mean
from harness.analysis.judgements import Judgement, Run
from harness.errors import UsageError
from harness.plan import plan
from harness.plan.estimate import total_s
from harness.plan.plan import Plan
from harness.report import claims as report
from harness.report.figures.claims import write_claims
from harness.scenario.load import load
from harness.scenario.schema import Scenario

TOPK = """
[[claims]]
id = "topk"
source = "Somebody, Somewhere 2020, table 1"
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
    found = claims.load(write(text))
    assert [each.id for each in found] == [
        f"topk/{rate}/{method}" for rate in ("100mbit", "1gbit") for method in ("topk", "dgc")
    ]
    assert {(each.rate_bps, each.method) for each in found} == {
        (rate, method) for rate in (10**8, 10**9) for method in ("topk", "dgc")
    }
    assert {each.family for each in found} == {"topk"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"dense"', '"dense"\nwight = 1', r"wight: unknown key; allowed: .*wording"),
        ("[1.0, 12.0]", "[12.0, 1.0]", r"range: found \[12.0, 1.0\]; allowed: two ratios"),
        ('quantity = "throughput"', 'quantity = "time to accuracy"', r"convergence: allowed: a scenario for"),
        ('"100mbit"', '"100"', r"rate: found '100'; allowed: a rate such as '100mbit'"),
        ('wording = "up to 12 times faster"', "", r"wording: missing"),
        ("[[claims]]", "[[claim]]", r"claims: found 'claim'; allowed: \[\[claims\]\] tables"),
        ("[[claims]]", "[[claims]", r"not valid TOML"),
        ("[[claims]]", f"{TOPK}\n[[claims]]", r"id: found 'topk'; allowed: each id once"),
    ],
)
def test_a_claim_that_says_too_little_or_nonsense_is_refused(
    old: str, new: str, says: str, write: Callable[[str], Path]
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        claims.load(write(TOPK.replace(old, new)))
    assert "\n" not in str(refused.value)


def test_claims_are_named_by_their_id_or_its_beginning(write: Callable[[str], Path]) -> None:
    known = claims.load(write(TOPK.replace('"100mbit"', '["100mbit", "1gbit"]') + TOPK.replace('"topk"', '"other"', 1)))
    assert len(claims.select(known)) == 3
    assert [each.id for each in claims.select(known, ["topk"])] == ["topk/100mbit", "topk/1gbit"]
    assert [each.id for each in claims.select(known, ["topk/1gbit", "other"])] == ["topk/1gbit", "other"]
    with pytest.raises(UsageError, match=r"--claim: found 'top'; allowed: topk, other"):
        claims.select(known, ["top"])
    with pytest.raises(UsageError, match="a claim that --quick judges"):
        claims.select(known, ["topk"], quick=True)


ratios = st.floats(0.01, 100)


@given(ratios, ratios, ratios, ratios)
def test_a_verdict_says_where_the_interval_lies(a: float, b: float, c: float, d: float) -> None:
    (low, high), (start, end) = sorted((a, b)), sorted((c, d))
    assume(low < high)
    assume(start < end)
    verdict, reason = judgements.verdict_on(Estimate((start * end) ** 0.5, start, end, 3), (low, high))
    inside, outside = low <= start and end <= high, end < low or start > high
    assert verdict == ("reproduced" if inside else "not reproduced" if outside else "inconclusive")
    assert ("less" in reason, "more" in reason) == (end < low, start > high)


def test_throughput_is_the_speedup_that_reports_show(run: Run) -> None:
    (case,) = case_results(run.trials, run.plan.scenario)
    found = judged(run).found
    assert found == pytest.approx(case.method("topk").speedup)


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


def test_a_machine_too_slow_for_what_it_replays_decides_no_throughput(tmp_path: Path) -> None:
    late = {("topk", number): {"overrun_s_per_step": 0.02} for number in range(3)}
    store = make_store(tmp_path / "quickstart-late", ends=late)
    run = Run(on_netns(load("quickstart")), store)
    found = judged(run)
    assert found.verdict == "inconclusive"
    assert found.found is not None, "what was measured is shown all the same"
    assert "of topk's step this machine was slower than the device that it replays" in found.reason
    assert judged(run, quantity="bytes", range=(1.0, 1e6)).verdict == "reproduced", "bytes do not depend on it"


def test_one_round_is_inconclusive(tmp_path: Path) -> None:
    store = make_store(tmp_path / "quickstart-1", ["rounds=1"])
    judgement = judged(Run(on_netns(load("quickstart", ["rounds=1"])), store))
    assert (judgement.verdict, judgement.reason) == ("inconclusive", "one round gives no interval")


def steps(run: Run, label: str) -> list[float]:
    return judgements.steps_to_target(run, label).tolist()


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


@pytest.mark.parametrize(
    ("method", "baseline", "verdict", "says"),
    [
        ("topk", "dense", "not reproduced", "topk missed the target in 3 of 3 trainings"),
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


def test_only_what_is_asked_for_is_run_and_quick_is_a_part_of_it() -> None:
    chosen = [claim(method="bf16"), claim(id="more", method="topk")]
    whole, quick = (claims.plans(chosen, on_netns, quick)["quickstart"] for quick in (False, True))
    assert {trial.method.label for trial in whole.trials} == {"dense", "bf16", "topk"}
    assert {trial.id for trial in quick.trials} <= {trial.id for trial in whole.trials}
    assert {trial.round for trial in quick.trials} == set(range(claims.QUICK_ROUNDS))
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

    monkeypatch.setattr(claims.scenarios, "load", loaded)
    with pytest.raises(UsageError, match=says):
        claims.plans([claim(**changes)], on_netns)


def test_verdicts_are_written_for_readers_and_programs(run: Run, tmp_path: Path) -> None:
    found = [
        judged(run),
        judged(run, id="bytes/topk", quantity="bytes", range=(2, 3)),
        judged(run, rate="100mbit"),
    ]
    page = report.write(found, tmp_path / "out", {"commit": "abc", "started": "today"})
    text = page.read_text()
    for expected in ("commit abc", "topk**: of 2, 2 reproduced", "bytes**: of 1, 1 not reproduced", "> faster"):
        assert expected in text
    content = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert [each["verdict"] for each in content["claims"]] == [each.verdict for each in found]
    assert all(each["origins"] and each["explanation"] for each in content["claims"])

    write_claims(found, tmp_path / "out")
    drawn = pd.read_csv(tmp_path / "out" / "claims.csv")
    assert list(drawn["verdict"]) == [each.verdict for each in found]
    assert (tmp_path / "out" / "claims.png").stat().st_size > 0


def test_every_claim_is_answered_by_its_scenario_and_the_quick_ones_in_half_an_hour() -> None:
    known = claims.load()
    whole = claims.plans(known, on_netns)
    assert set(whole) == {name for each in known for name in each.needs}
    quick = claims.plans(claims.select(known, quick=True), on_netns, quick=True)
    assert sum(total_s(each.trials, cpu_count=2) for each in quick.values()) < 30 * 60
    for name, each in quick.items():
        assert {trial.id for trial in each.trials} <= {trial.id for trial in whole[name].trials}


def test_the_claims_that_come_with_pacbench_have_sources_and_ranges_of_their_own() -> None:
    known = claims.load()
    systems = " ".join(each.source for each in known)
    for name in ("PacTrain", "Deep Gradient Compression", "ZEN", "OmniReduce", "BytePS", "Agarwal"):
        assert name in systems
    assert any(each.quick for each in known)
    assert all(each.wording and each.note for each in known)
