"""What a method says of itself in its file is all that sweeps, notes, claims and figures know of it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from synthetic import invent

import baselines
from harness.analysis.claims import schema
from harness.analysis.claims.plans import plans
from harness.analysis.savings import saving_bound
from harness.errors import UsageError
from harness.plan import plan
from harness.record.row import Event, TrialRow
from harness.record.store import Store
from harness.report import page
from harness.report.figures.changing_links import changing_links
from harness.report.figures.sweep import sweep
from harness.scenario.load import load
from harness.scenario.schema import MethodSpec, Scenario

TOY = '''
"""Toy: a 16-bit all-reduce of a share of the entries."""

from typing import Annotated

import torch.distributed as dist
from pydantic import Field

from baselines import MethodState, SavingBound
from baselines._parameters import parameters
from baselines._state import numel, ring_all_reduce_bytes

LABEL, COLOR, MARKER = "Toy", "#112233", "o"


@parameters
class State(MethodState):
    """What the toy keeps.

    Args:
        share: the share of the entries that travels.
        patience: steps before it begins.
    """

    swept = ("share",)
    warmup_parameters = ("patience",)
    goodput_note = "toy_goodput_bps"
    is_sixteen_bit = True

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    patience: int = 3

    @property
    def saving_bound(self):
        return SavingBound(2 / self.share, f"sends a share of {self.share:g} of the entries in 16 bits")

    def wire_bytes(self, shapes, world_size, step=None):
        return ring_all_reduce_bytes(2 * self.share * numel(shapes), world_size)


def toy_hook(state, bucket):
    raise NotImplementedError
'''

SCENARIO = """
name = "toys"
rounds = 1

[link]
rate = "100mbit"

[train]
steps = 20

[[methods]]
name = "dense"

[[methods]]
name = "toy"
share = [0.1, 0.3, 0.9]
"""


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A method whose file lies elsewhere: no other file knows its name or its parameters."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "toy.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "__path__", [*baselines.__path__, str(folder)])
        yield
    sys.modules.pop("baselines.toy", None)


@pytest.fixture(scope="module")
def scenario(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    path = tmp_path_factory.mktemp("scenarios") / "toys.toml"
    path.write_text(SCENARIO)
    return load(str(path))


@pytest.fixture(scope="module")
def reported(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run of dense and three toys over changing links, with its report; the toys choose for 70 Mbit/s."""
    store = Store.create(tmp_path_factory.mktemp("runs") / "toys", scenario)
    for trial in plan.make(scenario, "netns").trials:
        row, events = invent(trial)
        events.append(Event(-1, 0, 0.0, "link_rate_bps", 1e8))
        if trial.method.name == "toy":
            events.append(Event(0, 10, 0.5, "toy_goodput_bps", 7e7))
        store.append(TrialRow(**row), events)
    page.write(store, [sweep, changing_links])
    return store


def test_the_report_holds_its_saving_against_the_bound_that_it_declares(reported: Store) -> None:
    markdown = (reported.folder / "report.md").read_text()
    assert "share=0.1 sends a share of 0.1 of the entries in 16 bits: that cannot save more than 20x" in markdown


def test_a_sweep_goes_over_the_parameter_that_it_declares(reported: Store) -> None:
    drawn = pd.read_csv(reported.folder / "plots" / "sweep.csv")
    assert set(drawn["parameter"]) == {"share"}
    assert list(drawn["share"]) == [0.9, 0.3, 0.1]


def test_the_figure_of_changing_links_marks_what_it_notes(reported: Store) -> None:
    drawn = pd.read_csv(reported.folder / "plots" / "changing-links.csv")
    chosen = drawn.dropna(subset="adaptive_goodput_bps")
    assert set(chosen["label"]) == {f"toy-share={share}" for share in (0.1, 0.3, 0.9)}
    assert set(chosen["adaptive_goodput_bps"]) == {7e7}


def test_speedups_are_told_over_it_where_it_is_a_plain_all_reduce_in_16_bits(scenario: Scenario) -> None:
    assert scenario.baselines == ("toy-share=0.1", "dense")
    assert load("quickstart").baselines == ("bf16", "dense")


@pytest.mark.parametrize(("parameter", "alike"), [("patience", True), ("share", False)])
def test_steps_and_throughput_may_come_from_different_warm_ups_and_from_nothing_else(
    parameter: str, alike: bool, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = scenario.methods[1]
    other = toy.model_copy(update={"params": {**toy.params, parameter: 1}})
    trained = scenario.model_copy(update={"name": "trained", "methods": (scenario.methods[0], other)})
    monkeypatch.setattr(schema.scenarios, "load", {"toys": scenario, "trained": trained}.get)
    fields = {
        "id": "toy",
        "source": "Somebody",
        "place": "abstract",
        "wording": "sooner",
        "quantity": "time to accuracy",
    }
    fields |= {"model": "digits-cnn", "rate": "100mbit", "baseline": "dense", "method": toy.label}
    claim = schema.Claim.model_validate(
        {**fields, "workers": 4, "range": (1.0, 2.0), "scenario": "toys", "convergence": "trained"}
    )

    def planned() -> dict[str, plan.Plan]:
        return plans([claim], lambda scenario: plan.make(scenario, "netns"))

    if alike:
        assert set(planned()) == {"toys", "trained"}
    else:
        with pytest.raises(UsageError, match=rf"{parameter} = 1 against"):
            planned()


def test_a_run_of_another_version_has_a_bound_as_far_as_its_parameters_are_known() -> None:
    def bound(**params: object) -> float | None:
        found = saving_bound(MethodSpec(name="pactrain", label="pactrain", params=params))
        return found.most if found else None

    assert bound(density=0.25) == 4.0
    assert bound(density=0.25, unknown_now=1) == 4.0
    assert bound(density=0.25, values="ternary") is None
    assert bound(density=0.25, adaptive=True) is None
    assert bound(density=1.0) is None
    assert bound(density=0.25, values="no longer allowed") is None


@pytest.mark.parametrize("name", baselines.names())
def test_what_a_method_declares_it_has(name: str) -> None:
    state = baselines.get(name).State
    assert {*state.swept, *state.warmup_parameters} <= set(state().parameters)
    assert "warmup_steps" not in state().parameters or "warmup_steps" in state.warmup_parameters


def test_the_schema_needs_no_torch_until_it_is_asked_for_the_16_bit_baseline() -> None:
    code = "import sys, harness.scenario.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_methods_know_nothing_of_the_harness() -> None:
    files = Path(inspect.getfile(baselines)).parent.glob("*.py")
    assert not [path.name for path in files if re.search(r"^\s*(from|import) harness", path.read_text(), re.M)]
