"""What a pilot may be asked for: ranks that share links, a model in place of a script, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attached import run_forked
from in_process import call_pacbench
from piloted import BF16, DENSE, job, network, pilot

from baselines._calls import AllReduce, AllToAll, Broadcast
from harness import attach
from harness.analysis.pilot.forecast import Forecast
from harness.attach.orders import LOOK_STEPS
from harness.cli import json_reference
from harness.cli.json_output import print_json
from harness.cli.verbs.pilot import _as_json
from harness.errors import UsageError
from harness.network.topology import Topology
from harness.plan.collectives import Network
from harness.report import pilot as report
from harness.run.pilot.bench import files_digest
from harness.scenario.load import read_toml
from harness.worker import script

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
MODEL, DATASET = f"{PLUGINS}/tiny_net.py:tiny_net", f"{PLUGINS}/shifted_digits.py:shifted_digits"


# Ranks that share links


def took_s(network: Topology, call: Any) -> float:
    return Network(network, message_s=0.0).timing(call, 0.0).took_s


def test_a_ring_of_ranks_passes_each_shared_link_once() -> None:
    call = AllReduce(400_000_000)
    assert took_s(network(workers=4).with_ranks(2), call) == pytest.approx(took_s(network(workers=8), call), rel=0.01)


def test_an_all_to_all_of_ranks_takes_a_shared_link_for_all_that_goes_to_other_nodes() -> None:
    call = AllToAll(400_000_000)
    shared, own = took_s(network(workers=4).with_ranks(2), call), took_s(network(workers=8), call)
    assert shared / own == pytest.approx(2 * 6 / 7, rel=0.01), "two ranks a link, each to six of seven others"


def test_ranks_of_one_node_pass_no_link_and_its_own_properties_go_with_it() -> None:
    links = {"rate": "100mbit", "delay": "5ms", "up": {"rate": "50mbit"}, "workers": {"w1": {"rate": "10mbit"}}}
    star = Topology.model_validate({"workers": 3, "link": links})
    ranks = star.with_ranks(2)
    assert ranks.workers == 6
    assert [ranks.switch_of(rank) for rank in range(6)] == ["node0", "node0", "node1", "node1", "node2", "node2"]
    assert not any(queue.pipe.rate_bps or queue.pipe.delay_s for queue in ranks.path(0, 1))
    for one, other in ((0, 2), (2, 5), (5, 0)):
        shaped = [queue.pipe for queue in ranks.path(one, other) if queue.pipe.rate_bps]
        assert shaped == [queue.pipe for queue in star.path(one // 2, other // 2)]


def test_one_rank_a_node_changes_nothing_and_groups_are_not_divided_again() -> None:
    star = network()
    assert star.with_ranks(1) is star
    grouped = Topology.model_validate({"workers": 4, "link": {"rate": "1gbit"}, "fabric": {"groups": "a b"}})
    with pytest.raises(ValueError, match="'a b'"):
        grouped.with_ranks(2)


def test_links_that_change_are_as_good_as_they_become_for_ranks_too() -> None:
    rows = [{"t_s": 0.0, "rate_bps": 10_000_000}, {"t_s": 9.0, "rate_bps": 80_000_000}]
    changing = network().model_copy(
        update={"link": network().link.model_validate({"rate": "1gbit", "trace": {"rows": rows}})}
    )
    assert changing.with_ranks(2).slowest_bps == 80_000_000
    assert took_s(changing.with_ranks(2), Broadcast(1_000_000)) > 0


def test_a_forecast_of_ranks_has_break_even_rates_of_links() -> None:
    ranks, star = Forecast(job(), network(workers=4), 2), Forecast(job(), network(workers=8))
    for rate_bps in (None, 20e6):
        assert ranks.step_s(DENSE, rate_bps) == pytest.approx(star.step_s(DENSE, rate_bps), rel=0.02)
    assert ranks.rate_for(BF16, 0.5) == pytest.approx(star.rate_for(BF16, 0.5), rel=0.02)


def test_what_is_written_of_ranks_that_share_links_says_so_and_can_be_run() -> None:
    found = pilot(per_node=2)
    assert "2 ranks on each" in report.describe_network(found)
    assert "--per-node 2" in report.reproduce(found)[1]


def test_tables_of_ranks_are_a_scenarios(tmp_path: Path) -> None:
    (tmp_path / "tables.toml").write_text(report.tables(pilot(per_node=2)))
    read = read_toml(tmp_path / "tables.toml")
    values = {"workers": read["cluster"]["workers"], "link": read["link"], "fabric": read["fabric"]}
    assert Topology.model_validate(values) == network().with_ranks(2)


# A model in place of a script


def test_our_script_trains_a_plug_in_and_can_be_looked_at(tmp_path: Path) -> None:
    launch = tmp_path / "launch.py"
    launch.write_text("from harness.worker.script import main\nmain()\n")
    attachment = attach.Attachment(seed=1, shifts_seeds=True, steps=LOOK_STEPS, look=(("dense", {}),))
    ran = run_forked(tmp_path, launch, "--model", MODEL, "--dataset", DATASET, attachment=attachment)
    assert ran.codes == [0, 0], ran.stderr
    losses = [[step.loss for step in rank.steps] for rank in ran.told]
    assert [len(each) for each in losses] == [LOOK_STEPS] * 2
    assert losses[0] != losses[1], "each rank has samples of its own"
    assert ran.told[0].gradients
    assert ran.told[0].gradients.batch_size == 32


def test_ranks_share_a_shuffle_and_no_sample() -> None:
    torch.manual_seed(0)
    ranks = [script.batches(10, 2, rank, 2) for rank in range(2)]
    drawn = [int(sample) for _ in range(5) for own in ranks for sample in next(own)]
    assert sorted(drawn) == sorted([*range(10)] * 2), "two epochs: each sample once in each"
    assert len(set(drawn[:8])) == 8


def test_a_plug_ins_code_is_part_of_what_was_looked_at(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("1")
    before = files_digest(["--model", f"{tmp_path}/net.py:net"], tmp_path)
    (tmp_path / "net.py").write_text("2")
    assert files_digest(["--model", f"{tmp_path}/net.py:net"], tmp_path) != before != []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", MODEL), "--dataset"),
        (("--dataset", "digits"), "--model"),
        (("--model", "nothing", "--dataset", "digits"), "nothing"),
        (("--model", MODEL, "--dataset", "fashion-mnist"), "which the model takes"),
        (("--model", MODEL, "--dataset", DATASET, "--", "--lr", "fast"), "--lr"),
        (("--model", MODEL, "--dataset", DATASET, "--", "--batch-size", "0"), "--batch-size"),
        *(
            (
                ("--plan", "--model", MODEL, "--dataset", DATASET, "--", f"--{name}", value),
                f"{name.replace('-', '_')}: found",
            )
            for name in ("lr", "momentum", "weight-decay")
            for value in ("nan", "inf", "-1")
        ),
        (
            ("--plan", "--model", MODEL, "--dataset", DATASET, "--", "--optimizer=adamw", "--momentum=0.9"),
            "momentum: found",
        ),
        (("--per-node", "2", "--link", "racks.toml", "--", "true"), "--per-node"),
        (("--plan", "--json", "--", "true"), "--json"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "racks.toml").write_text('[link]\nrate = "100mbit"\n[fabric]\ngroups = "a b"\n')
    done = call_pacbench(("pilot", "--on", "netns", *arguments), tmp_path)
    assert done.returncode == UsageError.exit_code, done.stderr
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_plan_for_a_model_and_ranks_counts_ranks(tmp_path: Path) -> None:
    asked = ("--workers", "3", "--per-node", "2", "--model", MODEL, "--dataset", DATASET)
    done = call_pacbench(("pilot", "--plan", "--on", "netns", *asked), tmp_path)
    assert done.returncode == 0, done.stderr
    assert " 6 " in done.stdout


# JSON


def test_a_pilot_as_json_has_the_shape_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(_as_json(pilot(), Path("found/pilot.html")))
    told = json_reference.adapter("pilot").validate_json(capsys.readouterr().out, strict=True)
    assert told["recommended"] == pilot().verdict.label
    assert [each["label"] for each in told["methods"]] == [each.label for each in pilot().outcomes]
