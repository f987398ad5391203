"""Links that change while workers train: what the player did is known, step by step, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.cluster.netns import NetnsCluster
from harness.cluster.protocol import SideTask
from harness.messages import Failed, LinksChanged
from harness.network.topology import Topology
from harness.record.store import Store
from harness.report import page
from harness.report.figures.changing_links import changing_links

pytestmark = pytest.mark.netns


def topology(rows: list[tuple[float, int]], period_s: float | None = None) -> Topology:
    trace = {"rows": [{"t_s": t_s, "rate_bps": rate_bps} for t_s, rate_bps in rows], "period_s": period_s}
    return Topology.model_validate({"workers": 2, "link": {"trace": trace}})


def test_a_thousand_changes_leave_no_leak() -> None:
    asked = topology([(number / 500, 10_000_000 + 1000 * (number % 7)) for number in range(1001)])
    with NetnsCluster() as cluster:
        cluster.use(asked)
        start_file = "/run/trace-test"
        (agent,) = psutil.Process(cluster._agent._process.pid).children()
        descriptors = agent.num_fds()
        # Workers that do nothing but be there: the player goes on until they have ended.
        player = SideTask(
            "play", "player", {"topology": asked.model_dump(mode="json", by_alias=True), "start_file": start_file}
        )
        seen, memory = [], []
        Path(f"/proc/{agent.pid}/root{start_file}").touch()
        spec = {"topology": asked.model_dump(mode="json", by_alias=True), "counted": None}
        for message in cluster._agent.task("probe_links", ["w0", "w1"], spec, 30.0, beside=[player]):
            assert not isinstance(message, Failed), message
            if isinstance(message, LinksChanged):
                seen.append(message)
                if len(seen) in (100, 1001):
                    memory.append(sum(child.memory_info().rss for child in agent.children(recursive=True)))
            if len(seen) == 1001:
                break
        assert [change.row for change in seen] == list(range(1001))
        assert memory[1] - memory[0] < 20e6
        assert cluster.verify().complaints() == [], "the links are again what they were at first"
        cluster.use(topology([(0, 20_000_000)]))
        assert not agent.children()
        assert agent.num_fds() == descriptors


def test_training_on_changing_links_knows_each_change_by_its_step(
    run_scenario: Callable[..., Store], tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text("t_s,rate_bps\n0,200000000\n1,10000000\n8,200000000\n")
    settings = """baseline_16bit=dense train.steps=60 cluster.workers=2 train.pace=none train.eval_every=60
                  link.trace=x.csv"""
    store = run_scenario("quickstart", settings.split(), ["topk"])
    events = store.events()
    trials = store.trials().set_index("trial_id")
    assert (trials["status"] == "done").all()
    dense = events[events["trial_id"] == trials.index[trials["label"] == "dense"][0]]
    rates = dense[dense["kind"] == "link_rate_bps"]
    assert rates["value"].tolist()[:2] == [200e6, 10e6]
    assert rates["step"].is_monotonic_increasing
    step_s = dense[(dense["kind"] == "step_s") & (dense["rank"] == 0)].set_index("step")["value"]
    slow_from = rates["step"].iloc[1] + 1
    slow_to = rates["step"].iloc[2] - 1 if len(rates) > 2 else 59
    fast, slow = step_s.loc[2 : slow_from - 2].median(), step_s.loc[slow_from:slow_to].median()
    assert slow > 3 * fast, "a twentieth of the rate"
    page.write(store, [changing_links])
    assert (store.folder / "plots" / "changing-links.pdf").is_file()
