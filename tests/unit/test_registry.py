"""Kinds of cluster: a toy one is registered from outside and runs a plan; ``auto`` takes the first that works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import only

from harness.cluster import registry
from harness.cluster.docker.compose import ComposeCluster
from harness.cluster.docker.engine import EngineError
from harness.cluster.fake import FakeCluster
from harness.cluster.netns import NetnsCluster
from harness.cluster.protocol import Check
from harness.cluster.registry import Kind
from harness.errors import MeasurementError, UsageError
from harness.machine import calibrate, doctor
from harness.plan.plan import make
from harness.record.store import Store
from harness.run import execute
from harness.scenario.load import load

HELP = (
    "Where: netns (network namespaces), docker (containers), uml (a kernel with netem), "
    "auto (netns where it works, else docker), or fake (scripted, for tests)."
)


class ToyCluster(FakeCluster):
    """A kind of cluster as somebody else would add it: this class, and one registration."""

    name = "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "KINDS", dict(registry.KINDS))
    registry.register(Kind(name="toy", place=f"{__name__}:ToyCluster", summary="a toy"))
    return "toy"


def test_a_kind_that_is_registered_from_outside_runs_a_plan(toy: str, tmp_path: Path) -> None:
    kind, why = registry.choose(toy)
    plan = make(only(load("quickstart", ["rounds=1", "train.steps=8"]), ["topk"]), kind)
    store = Store.create(tmp_path / "run", plan.scenario)
    with registry.make(kind) as cluster:
        execute.run(plan, store, cluster, lambda progress: None, lambda *ended: None)
    trials = store.trials()
    assert (set(trials["cluster"]), set(trials["status"]), why) == ({"toy"}, {"done"}, "as asked")
    assert registry.help_text().endswith(
        "fake (scripted, for tests), auto (netns where it works, else docker), or toy (a toy)."
    )


@pytest.mark.parametrize("kind", registry.KINDS.values(), ids=lambda kind: kind.name)
def test_a_row_tells_the_truth_of_its_class(kind: Kind) -> None:
    found = kind.load()
    assert found.name == kind.name
    assert hasattr(found, "why_it_works") or not kind.tried_by_auto
    assert issubclass(found, NetnsCluster) == kind.has_universe


def test_the_command_line_is_told_all_kinds_and_imports_none() -> None:
    assert registry.help_text() == HELP
    script = "import sys; from harness.cluster import registry; registry.help_text(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"torch", "docker", "pydantic", "harness.cluster.netns", "harness.cluster.fake"} & loaded


def test_an_unknown_kind_is_one_line_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="--on: found 'moon'; allowed: auto, netns, uml, docker, fake"):
        registry.choose("moon")
    with pytest.raises(UsageError, match="--keep: found '--on fake'; allowed: with --on docker alone"):
        registry.make("fake", keep=True)
    assert registry.make("docker", keep=True).name == "docker"
    assert calibrate.names() == ["auto", "netns", "uml"]


def refuses(error: MeasurementError) -> classmethod:  # type: ignore[type-arg]
    def why_it_works(cls: type) -> str:
        raise error

    return classmethod(why_it_works)


def works(why: str) -> classmethod:  # type: ignore[type-arg]
    return classmethod(lambda cls: why)


def test_auto_takes_the_first_that_works_and_says_why_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetnsCluster, "why_it_works", works("private networks can be made here"))
    assert registry.choose("auto") == ("netns", "private networks can be made here")
    monkeypatch.setattr(NetnsCluster, "why_it_works", refuses(MeasurementError("no namespaces")))
    monkeypatch.setattr(ComposeCluster, "why_it_works", works("an engine"))
    assert registry.choose("auto") == ("docker", "no namespaces")
    monkeypatch.setattr(ComposeCluster, "why_it_works", refuses(EngineError("no engine")))
    with pytest.raises(MeasurementError, match="^no namespaces; and containers are no way round: no engine$"):
        registry.choose("auto")


@pytest.mark.parametrize(("engine", "able"), [(True, True), (False, False)])
def test_what_namespaces_need_is_needed_where_containers_are_no_way_round(
    monkeypatch: pytest.MonkeyPatch, engine: bool, able: bool
) -> None:
    found = {
        "netns": [Check("unshare", False, "missing", "install it", needed=True)],
        "docker": [Check("container engine", engine, "")],
    }
    monkeypatch.setattr(Kind, "checks", lambda kind: found.get(kind.name, []))
    checks = doctor.examine()
    assert doctor.able(checks) == able
    assert [check.name for check in checks][::5] == ["unshare", "container engine"]
