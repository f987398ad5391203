"""The claims that come with pacbench: each has a source, a range, and a scenario that answers it."""

from __future__ import annotations

import json
from pathlib import Path

from harness.analysis.claims import judgements, schema
from harness.analysis.claims.plans import plans
from harness.plan import plan
from harness.plan.estimate import total_s
from harness.plan.machine import Machine
from harness.plan.plan import Plan
from harness.scenario.schema import Scenario


def on_netns(scenario: Scenario) -> Plan:
    return plan.make(scenario, "netns")


def test_every_claim_is_answered_by_its_scenario_and_the_quick_ones_in_half_an_hour() -> None:
    known = schema.load()
    whole = plans(known, on_netns)
    assert set(whole) == {name for each in known for name in each.needs}
    quick = plans(schema.select(known, quick=True), on_netns, quick=True)
    machine = Machine(cpu_count=2, changes_links=True)
    assert sum(total_s(each.trials, machine) for each in quick.values()) < 30 * 60
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


def test_verdicts_of_before_are_still_read() -> None:
    stored = sorted((Path(__file__).parents[2] / "results" / "reference" / "claims").glob("*/claims.json"))
    assert stored
    for path in stored:
        told = json.loads(path.read_text())["claims"]
        assert {each["verdict"] for each in told} <= set(judgements.VERDICTS)
        assert all(each["source"] and each["wording"] and each["reason"] for each in told)
