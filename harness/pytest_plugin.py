"""A pytest fixture for tests of one's own that a method keeps its throughput.

    def test_mine_keeps_its_throughput(pacbench):
        pacbench("ci", methods=["mine"]).must_keep_its_throughput(against="ci")

pytest finds it by itself once pacbench is installed. ``examples/test_throughput.py`` is such a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.analysis import MAX_SLOWDOWN

if TYPE_CHECKING:
    from harness.analysis.estimates import Estimate
    from harness.analysis.reference import Measured
    from harness.cluster.protocol import Cluster

RunScenario = Callable[..., "BenchmarkRun"]


@dataclass(frozen=True)
class BenchmarkRun:
    """A scenario that has been run."""

    measured: Measured

    def speedup(self, label: str) -> Estimate:
        """The method's speedup over the baseline, in the first case, with its interval."""
        labels = [method.label for method in self.measured.scenario.methods]
        if label not in labels:
            pytest.fail(f"pacbench: speedup: found {label!r}; allowed: {', '.join(labels)}", pytrace=False)
        found = self.measured.cases[0].method(label).speedup
        if found is None:
            pytest.fail(f"pacbench: {label} and the baseline finished in no round together", pytrace=False)
        return found

    def must_keep_its_throughput(self, against: str | Path, max_slowdown: float = MAX_SLOWDOWN) -> None:
        """Fail the test unless the gate passes: a method is slower, cannot be judged, or did not finish.

        Methods of the reference that this run was not asked for are not judged.

        Args:
            against: the name of a reference in ``results/reference/``, its file, or the folder of a run.
            max_slowdown: by what share longer a step must not take, compared with dense in the same run.
        """
        from harness.analysis import gate, reference
        from harness.errors import PacbenchError
        from harness.report import verdicts

        if not 0 < max_slowdown <= 1:
            allowed = "a share above 0, up to 1, such as 0.1"
            pytest.fail(f"pacbench: max_slowdown: found {max_slowdown!r}; allowed: {allowed}", pytrace=False)
        try:
            found = gate.judge(self.measured, reference.read(Path(against)), max_slowdown)
        except PacbenchError as error:
            pytest.fail(f"pacbench: {error}", pytrace=False)
        if found.verdict != "pass":
            pytest.fail(verdicts.as_markdown(found), pytrace=False)


@pytest.fixture(scope="session")
def pacbench(tmp_path_factory: pytest.TempPathFactory) -> RunScenario:
    """Run a scenario: ``pacbench(scenario, methods=(), rounds=None, overrides=(), cluster=None) -> BenchmarkRun``.

    ``methods``, ``rounds`` and ``overrides`` are those of ``pacbench run``; the cluster is network namespaces unless
    another is given.
    """

    def run(
        scenario: str,
        methods: Sequence[str] = (),
        rounds: int | None = None,
        overrides: Sequence[str] = (),
        cluster: Cluster | None = None,
    ) -> BenchmarkRun:
        from harness.errors import PacbenchError

        try:
            settings = [*overrides, *([] if rounds is None else [f"rounds={rounds}"])]
            folder = tmp_path_factory.mktemp("pacbench") / "run"
            return BenchmarkRun(_run(scenario, settings, methods, folder, cluster))
        except PacbenchError as error:
            pytest.fail(f"pacbench: {error}", pytrace=False)

    return run


def _run(
    scenario: str, overrides: Sequence[str], methods: Sequence[str], folder: Path, cluster: Cluster | None
) -> Measured:
    from harness.analysis import reference
    from harness.cluster.netns import NetnsCluster
    from harness.run import planning, session

    cluster = cluster or NetnsCluster()
    plan = planning.plan_run(scenario, cluster, overrides, methods)
    store = session.open_store(plan, folder)
    session.run(plan, store, cluster, ["pytest", scenario, *overrides])
    return reference.read(folder)
