"""The claims that come with pacbench: each has a source, a range, and a scenario that answers it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from in_process import call_pacbench

from harness.analysis.claims import schema
from harness.analysis.claims.judgements import Judgement, judge
from harness.analysis.claims.plans import plans
from harness.plan import plan
from harness.plan.estimate import total_s
from harness.plan.machine import Machine
from harness.plan.plan import Plan
from harness.run.stored import differences, stored_runs
from harness.scenario.load import load
from harness.scenario.schema import Scenario

CLAIMS = Path(__file__).parents[2] / "results" / "reference" / "claims"


def on_netns(scenario: Scenario) -> Plan:
    return plan.make(scenario, "netns")


def on_docker(scenario: Scenario) -> Plan:
    return plan.make(scenario, "docker")


def test_every_claim_is_answered_by_its_scenario_and_the_quick_ones_in_ten_minutes() -> None:
    known = schema.load()
    whole = plans(known, on_netns)
    assert set(whole) == {name for each in known for name in each.needs}
    quick = plans(schema.select(known, quick=True), on_netns, quick=True)
    machine = Machine(cpu_count=2, changes_links=True)
    assert sum(total_s(each.trials, machine) for each in quick.values()) < 10 * 60
    for name, each in quick.items():
        assert {trial.id for trial in each.trials} <= {trial.id for trial in whole[name].trials}


def test_the_claims_that_come_with_pacbench_have_sources_and_ranges_of_their_own() -> None:
    known = schema.load()
    systems = " ".join(each.source for each in known)
    for name in ("PacTrain", "Deep Gradient Compression", "ZEN", "OmniReduce", "BytePS", "Agarwal", "THC", "NetSense"):
        assert name in systems
    assert any(each.quick for each in known)
    assert all(each.wording and each.place and (each.note or each.not_testable) for each in known)


def test_headlines_are_told_over_the_16_bit_all_reduce_first() -> None:
    """A gain over dense fp32 alone is half a gain: 16 bits are there for the asking."""
    known = [each for each in schema.load() if each.needs]
    families = {each.family: [other for other in known if other.family == each.family] for each in known}
    assert len(families) > 15
    for family, own in families.items():
        assert own[0].baseline in ("fp16", "bf16"), family


@pytest.fixture(scope="module")
def judged_anew() -> list[Judgement]:
    chosen, runs = stored_runs(schema.load(), CLAIMS / "runs")
    return [judge(claim, runs) for claim in chosen]


def test_the_page_that_is_kept_says_what_the_runs_that_are_kept_give(judged_anew: list[Judgement]) -> None:
    """``pacbench reproduce --judge results/reference/claims/runs --out results/reference/claims`` makes it anew."""
    kept = json.loads((CLAIMS / "claims.json").read_text())["claims"]
    told = {each["id"]: (each["verdict"], each["found"]) for each in kept}
    found = {each.claim.id: (each.verdict, each.found and each.found._asdict()) for each in judged_anew}
    assert set(told) == set(found)
    for identity, (verdict, figure) in found.items():
        assert told[identity][0] == verdict, identity
        assert told[identity][1] == pytest.approx(figure), identity


def test_a_claim_that_is_judged_alone_has_the_interval_that_it_has_beside_all_others(
    judged_anew: list[Judgement], tmp_path: Path
) -> None:
    """How much rounds usually vary is told by all runs there, whichever claims are asked for."""
    micro = next(each for each in judged_anew if each.claim.family == "omnireduce-micro-trend")
    command = ("reproduce", "--judge", str(CLAIMS / "runs"), "--claim", micro.claim.id, "--out", "alone", "--json")
    done = call_pacbench(command, tmp_path)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["claims"]
    assert micro.found is not None
    assert told["found"] == pytest.approx(micro.found._asdict())
    assert told["origins"] == list(micro.origins)
    assert re.search(r"; spread: pooled over \d+ cases$", told["origins"][0])
    assert list(json.loads(done.stdout)["provenance"]["runs"]) == [
        folder.name for folder in (CLAIMS / "runs").glob("sparse-tensor-*")
    ]


def test_the_runs_that_are_kept_are_of_the_scenarios_as_they_come() -> None:
    """Those whose machine carried them otherwise count as the same."""
    chosen, runs = stored_runs(schema.load(), CLAIMS / "runs")
    assert differences(chosen, runs) == {}


def test_the_results_page_counts_the_verdicts(judged_anew: list[Judgement]) -> None:
    page = (CLAIMS.parents[1] / "README.md").read_text(encoding="utf-8")
    counts = Counter(each.verdict for each in judged_anew)
    assert f"{len(judged_anew)} verdicts with their reasons: " in page
    for verdict, count in counts.items():
        assert re.search(rf"\b{count}\s+{verdict}", page), (verdict, count)


@pytest.mark.parametrize("name", ["paper/convergence-resnet18", "paper/convergence-resnet152"])
def test_trainings_for_who_has_gpus_are_by_the_same_methods_and_claims_may_be_judged_by_them(name: str) -> None:
    scenario = load(name)
    trained_here = load("paper/convergence-vision")
    assert [each.label for each in scenario.methods] == [each.label for each in trained_here.methods]
    assert [case.cluster.device for case in scenario.cases] == ["cuda"]
    wanted = "pactrain-tta-allreduce/resnet152/1gbit/fp16/pactrain-ternary"
    (asked,) = schema.select(schema.load(), [wanted])
    planned = plans([asked.model_copy(update={"convergence": name, "in_one_piece": None})], on_docker)
    assert Counter(trial.method.label for trial in planned[name].trials) == {"fp16": 3, "pactrain-ternary": 3}
