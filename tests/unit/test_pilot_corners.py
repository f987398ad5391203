"""Pilots of trainings that diverge, warm up, have no loss, or one below zero; what is reused; and what is read back."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executed import execution
from in_process import call_pacbench
from piloted import (
    BF16,
    DENSE,
    LOCAL,
    METHODS,
    TOLERANCE,
    TOPK,
    falling,
    job,
    network,
    pilot,
    request,
    training,
    trainings,
)

from harness.analysis.pilot import drift, learning
from harness.analysis.pilot.forecast import Forecast
from harness.analysis.pilot.verdict import verdict
from harness.analysis.pilot.worth import worth
from harness.attach.sources import hash_of, own_sources
from harness.cli.app import make_app
from harness.cli.options import topology, with_link
from harness.errors import EXIT_REGRESSION, MeasurementError, UsageError
from harness.files import LOCK, locked
from harness.network.topology import Topology
from harness.record.execution import Execution
from harness.record.observed import ObservedStep
from harness.record.observed import Training as Observed
from harness.record.pilot import FILE, Job, Outcome, Training, load
from harness.report import pilot as report
from harness.report.pilot import reproduce
from harness.run.attached import FINDINGS
from harness.run.pilot import bench as benches
from harness.run.pilot.bench import Bench
from harness.run.pilot.found import Found
from harness.run.pilot.planned import planned
from harness.run.pilot.trained import _lead_s, cut, training_of
from harness.run.piloting import _without_dense, recheck
from harness.scenario.link_file import read_link
from harness.scenario.load import value_of
from harness.scenario.schema import MethodSpec


def outcome(own: list[Training], label: str) -> Outcome:
    found = learning.outcomes(own, "dense", "bf16", TOLERANCE, Forecast(job(), network()))
    return next(each for each in found if each.label == label)


def test_a_seed_with_which_dense_diverged_compares_nothing(tmp_path: Path) -> None:
    lost = training(DENSE, 2, 0.5, (2.0, math.nan, *falling(38, 1.0, 30)))
    own = [lost if (each.label, each.seed) == ("dense", 2) else each for each in trainings()]
    found = outcome(own, "topk, 1 %")
    assert found.steps_factor == pytest.approx(1.0)
    assert found.sooner
    assert (found.sooner.n, found.keeps) == (2, "yes")
    written = pilot(own)
    assert written.verdict.compress
    written.save(tmp_path)
    assert load(tmp_path / FILE).verdict == written.verdict


def test_a_loss_of_zero_compares_nothing_and_is_read_back(tmp_path: Path) -> None:
    own = [
        training(method, seed, pace_s, tuple(max(0.0, each) for each in falling(40, 0.0, 20)))
        for seed in range(3)
        for method, pace_s in ((DENSE, 0.5), (BF16, 0.27), (TOPK, 0.05))
    ]
    assert outcome(own, "topk, 1 %").loss_difference is None
    written = pilot(own)
    written.save(tmp_path)
    assert load(tmp_path / FILE).outcomes == written.outcomes


@pytest.mark.parametrize(("end", "keeps"), [(-5.0, "no"), (-10.0, "yes"), (-15.0, "yes")])
def test_a_loss_below_zero_is_kept_where_it_is_as_low(end: float, keeps: str) -> None:
    own = [
        training(method, seed, 0.1, [to - 0.01 * seed] * 40)
        for seed in range(3)
        for method, to in ((DENSE, -10.0), (BF16, -10.0), (TOPK, end))
    ]
    assert outcome(own, "topk, 1 %").keeps == keeps


def test_a_warm_up_takes_its_time_until_the_loss() -> None:
    plain, warmed = trainings(), trainings()
    for place, each in enumerate(warmed):
        if each.label == "topk, 1 %":
            warmed[place] = each.model_copy(update={"lead_s": 4.0})
    before, after = (outcome(own, "topk, 1 %") for own in (plain, warmed))
    assert before.time_to_loss_s
    assert after.time_to_loss_s == pytest.approx(before.time_to_loss_s + 4.0)
    assert after.steps_factor == before.steps_factor, "steps are steps, however long"


def test_what_a_warm_up_takes_longer_is_told_by_its_steps() -> None:
    """A first step of 5 s, seven of 0.5 s that are dense, and then 0.1 s each."""
    ends_s = [5.0 + 0.5 * step for step in range(8)]
    ends_s += [ends_s[-1] + 0.1 * step for step in range(1, 20)]
    curve = [
        ObservedStep(step=step, time_s=time_s, step_s=0.1, loss=1.0, sent_bytes=None, formula_bytes=None)
        for step, time_s in enumerate(ends_s)
    ]
    assert _lead_s(curve, 8, 0.1) == pytest.approx(8 * 0.4)
    assert _lead_s(curve, 2, 0.1) == 0.0, "the first steps of any training are no warm-up"


def test_a_rate_says_nothing_where_the_model_and_the_measurement_disagree() -> None:
    """On the pilot's own links the model expects top-k to be sooner, and it was not."""
    own = trainings(topk_s=0.5)
    found = verdict(
        learning.outcomes(own, "dense", "bf16", TOLERANCE, Forecast(job(), network())),
        *("dense", "bf16", TOLERANCE),
        Forecast(job(), network()),
    )
    assert not found.compress
    assert "where it was not: measure again" in found.changes[0]


def changed(**link: object) -> Topology:
    return Topology.model_validate({"workers": 4, "link": {"rate": "100mbit", **link}})


@pytest.mark.parametrize(
    ("before", "now", "drifted"),
    [
        (network(), changed(), []),
        (network(), changed(delay="0.1ms"), []),
        (network(), changed(delay="100ms"), ["round trip of the links"]),
        (network(), changed(loss="1%"), ["packets on the links"]),
        (network(), changed(loss="0.03%"), []),
        (changed(loss="0.03%"), network(), []),
        (changed(loss="1%"), changed(loss="1.2%"), []),
        (changed(loss="1%"), changed(loss="3%"), ["packets on the links"]),
        (changed(loss="3%"), changed(loss="1%"), ["packets on the links"]),
        (network(), changed(trace={"rows": [{"t_s": 0.0, "rate_bps": 10**8, "loss": 0.01}]}), ["packets on the links"]),
        (network(), network("40mbit"), ["rate of the links"]),
    ],
)
def test_links_that_are_farther_or_lose_packets_have_drifted(
    before: Topology, now: Topology, drifted: list[str]
) -> None:
    checks = drift.of_network(before, now)
    assert [check.what for check in checks if check.answer == "drifted"] == drifted


def test_an_advantage_over_what_was_not_trained_cannot_be_told() -> None:
    found = pilot()
    again = [each for each in found.trainings if each.label == found.verdict.label][:1]
    checks = {check.what: check.answer for check in drift.of_verdict(found, again)}
    assert checks["advantage"] == "cannot tell"


def test_the_command_to_reproduce_has_the_links_and_parameters_of_the_pilot() -> None:
    links = changed(delay="20ms", loss="1%")
    found = pilot(network=links)
    method = found.verdict.method.model_copy(
        update={"params": {"error_feedback": True, "ratio": 0.01, "momentum": None}}
    )
    found = found.model_copy(update={"verdict": found.verdict.model_copy(update={"method": method})})
    command = reproduce(found)[1]
    assert "--param error_feedback=true --param ratio=0.01 --" in command
    (setting,) = [word for word in command.split("'") if word.startswith("link=")]
    told = value_of(setting.removeprefix("link="))
    assert Topology.model_validate({"workers": 4, "link": told}) == links


def test_the_command_to_reproduce_names_a_file_of_links_that_change_for_an_hour(tmp_path: Path) -> None:
    """Linux takes no argument of 128 KiB (execve(2), MAX_ARG_STRLEN)."""
    rows = [{"t_s": 0.5 * row, "rate_bps": 50_000_000 + row, "delay_s": 0.005} for row in range(7_000)]
    links = changed(delay="5ms", trace={"rows": rows})
    found = pilot(network=links)
    report.write(found, worth(found, 1000, None, None), tmp_path)
    words = shlex.split(reproduce(found, tmp_path)[1])
    assert max(len(word.encode()) for word in words) < 131_072
    file = Path(words[words.index("--link") + 1])
    assert read_link(file) == links.link
    assert topology(4, "100mbit", with_link(file, [])) == links


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--price", "2.49EUR/h", "--egress", "$0.09/GB", "--", "true"), "--egress: found '$0.09/GB'"),
        *(
            (("--recheck", "pilot.json", *option), f"{option[0]}: found 'with --recheck'; allowed: --link, --json and")
            for option in (
                *(("--plan",), ("--budget", "5min"), ("--rate", "100mbit"), ("--set", "link.delay=5ms")),
                *(("--workers", "4"), ("--per-node", "1"), ("--on", "netns"), ("--tolerance", "2%")),
                *(("--seeds", "3"), ("--steps", "60"), ("--tested", "3"), ("--scenario", "convergence")),
                *(("--method", "topk"), ("--model", "digits-cnn"), ("--dataset", "digits"), ("--out", "here")),
                *(("--price", "2.49/h"), ("--egress", "0.09/GB"), ("--job-steps", "1000")),
            )
        ),
        (
            ("--link", "link.toml", "--rate", "1gbit", "--", "true"),
            "--rate: found 'with --link'; allowed: the links of",
        ),
        (("--link", "link.toml", "--set", "link.delay=5ms", "--", "true"), "--set: found 'with --link'"),
        (("--plan", "--on", "fake", "--", "true"), "--on: found 'fake'; allowed: auto, netns, uml, docker"),
    ],
)
def test_what_does_not_go_together_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(make_app(), ["pilot", *arguments])
    assert isinstance(done.exception, UsageError)
    assert told in str(done.exception)


SCENARIO = """
baseline = "{baseline}"
[cluster]
workers = 2
[link]
rate = "10mbit"
[train]
model = "digits-cnn"
dataset = "digits"
steps = 20
[[methods]]
name = "dense"
lr = 0.05
[[methods]]
name = "bf16"
[[methods]]
name = "topk"
"""


def test_a_scenarios_plain_methods_stay_and_its_baseline_must_be_what_scripts_have(tmp_path: Path) -> None:
    from harness.cli.verbs.pilot import _methods

    file = tmp_path / "own.toml"
    file.write_text(SCENARIO.format(baseline="dense"))
    methods, *plain, unsuited = _methods(str(file), ())
    assert [each.label for each in methods] == ["dense", "bf16", "topk"]
    assert (plain, unsuited) == (["dense", "bf16"], "")
    file.write_text(SCENARIO.format(baseline="topk"))
    with pytest.raises(UsageError, match="baseline: found 'topk'"):
        _methods(str(file), ())


SEEDING = {
    "random": "import random\nrandom.seed({}); print(random.random())",
    "numpy": "import numpy\nnumpy.random.seed({}); print(numpy.random.rand())",
}


@pytest.mark.parametrize(("module", "keyword"), [("random", "a"), ("numpy", "seed")])
def test_a_seed_is_moved_alike_however_it_is_given(module: str, keyword: str, tmp_path: Path) -> None:
    from harness import attach

    said = set()
    for given in ("7", f"{keyword}=7"):
        folder = tmp_path / keyword / str(len(given))
        folder.mkdir(parents=True)
        orders = attach.Attachment(seed=3, shifts_seeds=True)
        done = subprocess.run(
            [sys.executable, "-c", SEEDING[module].format(given)],
            env={**os.environ, **attach.environment(orders, folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    plain = subprocess.run([sys.executable, "-c", SEEDING[module].format("10")], capture_output=True, text=True).stdout
    assert said == {plain}


def test_a_scripts_own_code_is_what_is_neither_installed_nor_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_for_this_test.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("mine_for_this_test")
    path = tmp_path / "mine_for_this_test.py"
    known = dict(own_sources(path.stat().st_mtime + 1))
    assert known[str(path)]
    assert not [file for file in known if "site-packages" in file or "/harness/" in file or "/baselines/" in file]
    assert dict(own_sources(path.stat().st_mtime - 1))[str(path)] == "", "it may have been written while it ran"


def test_what_is_reused_was_run_with_the_same_environment_and_cluster(tmp_path: Path) -> None:
    from harness.attach.attachment import Attachment

    def folder(on: str = "netns", **environment: str) -> Path:
        return Bench(request(tmp_path, on=on, environment=environment), print)._folder("job", Attachment())

    assert folder(LR="0.1") == folder(LR="0.1", TERM="xterm", SSH_TTY="/dev/pts/1")
    for name in (
        *("GNOME_TERMINAL_SCREEN", "GNOME_TERMINAL_SERVICE", "KONSOLE_DBUS_SESSION", "ITERM_SESSION_ID", "KITTY_PID"),
        *("WT_SESSION", "WSL_INTEROP", "INVOCATION_ID", "PBS_JOBID", "SLURM_JOB_ID", "SUDO_COMMAND", "XDG_SESSION_ID"),
    ):
        assert folder(LR="0.1") == folder(**{"LR": "0.1", name: "/x/uuid --budget 2min"}), name
    arrays = ("PBS_ARRAY_INDEX", "SLURM_ARRAY_TASK_ID")
    for name in ("HISTORY_STEPS", "WT_DECAY", "XDG_DATA_HOME", "PROMPT_LENGTH", *arrays):
        assert folder(LR="0.1") != folder(**{"LR": "0.1", name: "3"}), name
    assert len({folder(LR="0.1"), folder(LR="0.01"), folder("docker", LR="0.1")}) == 3
    assert len({folder(LR=os.fsdecode(value)) for value in (b"0.1\xff", b"0.1\xfe")}) == 2, "any bytes"


def test_what_was_run_with_other_code_of_the_scripts_own_does_not_count(tmp_path: Path) -> None:
    from harness.run.pilot.bench import _has_new_sources, _put_aside

    code, folder = tmp_path / "model.py", tmp_path / "runs" / "job"
    code.write_text("LR = 0.1")
    (folder / FINDINGS).mkdir(parents=True)
    told = {"kind": "sources", "files": [(str(code), hash_of(str(code))), ("/only/in/the/image.py", "12")]}
    (folder / FINDINGS / "rank-0.jsonl").write_text(json.dumps(told) + "\n")
    assert not _has_new_sources(folder)
    code.write_text("LR = 0.01")
    assert _has_new_sources(folder)
    for _ in range(2):
        _put_aside(folder)
        folder.mkdir()
    assert sorted(each.name for each in folder.parent.iterdir()) == ["job", "job.1", "job.2"]


def computing(*compute_s: float) -> dict[str, Any]:
    """A job whose steps compute so long."""
    return job().model_dump(mode="json", by_alias=True) | {"compute_s": compute_s}


def paced(pace_s: float) -> list[dict[str, Any]]:
    """What a pilot shows where a step takes so long."""
    return [each.model_dump(mode="json", by_alias=True) | {"pace_s": pace_s} for each in pilot().outcomes]


def told_of(label: str) -> list[dict[str, Any]]:
    """What a pilot shows of one method alone."""
    return [each.model_dump(mode="json", by_alias=True) for each in pilot().outcomes if each.label == label]


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "the folder is gone": (
        {"folder": "/nonexistent"},
        "folder: found '/nonexistent'; allowed: a folder of this machine",
    ),
    "another kind of cluster": ({"cluster": "nosuch"}, "cluster: found 'nosuch'; allowed: netns"),
    "no command": ({"command": []}, "command: "),
    "a command with a NUL": ({"command": ["tr\0ue"]}, "command.0: "),
    "no ranks": ({"per_node": 0}, "per_node: "),
    "steps below zero": ({"steps": -1}, "steps: "),
    "no trainings": ({"trainings": []}, "trainings: "),
    "no outcomes": ({"outcomes": []}, "outcomes: "),
    "an unknown all-reduce": ({"plain_label": "nope"}, "plain_label: found 'nope'"),
    "an unknown 16-bit one": ({"sixteen_label": "nope"}, "sixteen_label: found 'nope'"),
    "no step was timed": ({"job": computing()}, "job.compute_s: "),
    "a step that takes no time": ({"job": computing(0.0)}, "job.compute_s.0: "),
    "one that takes for ever": ({"job": computing(0.03, math.inf)}, "job.compute_s.1: "),
    "a pace of no steps": ({"outcomes": paced(math.inf)}, "outcomes.0.pace_s: "),
    "a pace of no time": ({"outcomes": paced(0.0)}, "outcomes.0.pace_s: "),
    "nothing of dense": ({"outcomes": told_of(TOPK.label)}, "outcomes: found none of 'dense'"),
    "nothing of the recommended one": ({"outcomes": told_of("dense")}, "outcomes: found none of 'topk, 1 %'"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_one_line_before_anything_starts(tmp_path: Path, damage: dict[str, Any], told: str) -> None:
    content = pilot().model_dump(mode="json", by_alias=True) | {"folder": str(tmp_path), **damage}
    file = tmp_path / FILE
    file.write_text(json.dumps(content))
    done = call_pacbench(("pilot", "--recheck", str(file)), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pacbench: {file}: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("part", ["verdict", "job"])
def test_a_record_whose_verdict_is_of_no_method_that_was_looked_at_is_refused(tmp_path: Path, part: str) -> None:
    content = json.loads(pilot().model_dump_json(by_alias=True))
    if part == "verdict":
        content["verdict"]["label"] = "nope"
    else:
        content["job"]["fits"] = content["job"]["fits"][:2]
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="verdict.label: found"):
        load(tmp_path / FILE)


def test_a_record_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xef\xbb\xbf" + pilot().model_dump_json(by_alias=True).encode())
    assert load(tmp_path / FILE) == pilot()


def test_a_link_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.toml").write_text('schema = 99\n[link]\nrate = "10mbit"\n')
    done = call_pacbench(("pilot", "--plan", "--link", "link.toml", "--", "true"), tmp_path)
    assert (done.returncode, done.stderr) == (2, "pacbench: link.toml: schema: unknown key; allowed: link, fabric\n")


def test_a_trace_is_the_one_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has the trace of an earlier measurement, by the same name."""
    from harness.cli.verbs.pilot import _network

    (tmp_path / "new").mkdir()
    for folder, rate_bps in ((tmp_path, 100_000_000), (tmp_path / "new", 50_000_000)):
        (folder / "link.csv").write_text(f"t_s,rate_bps\n0,{rate_bps}\n")
    (tmp_path / "new" / "link.toml").write_text('[link]\ntrace = "link.csv"\n')
    monkeypatch.chdir(tmp_path)
    for link in (_network(Path("new/link.toml"), 4).link, read_link(Path("new/link.toml"))):
        assert link.trace
        assert [row.rate_bps for row in link.trace.rows] == [50_000_000]


def test_in_a_folder_that_is_gone_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cli.options import current_folder
    from harness.cli.verbs.pilot import _training

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for ask in (current_folder, lambda: _training([], "digits-cnn", "digits")):
        with pytest.raises(UsageError, match="current folder: found 'none'; allowed: one that exists"):
            ask()


def test_a_file_that_cannot_be_read_is_no_part_of_what_is_run(tmp_path: Path) -> None:
    """Nobody, root neither, reads the first page of a process's memory."""
    script = tmp_path / "train.py"
    script.write_text("1")
    named = benches.files_digest(["python", str(script)], tmp_path)
    assert len(named) == 1
    assert benches.files_digest(["python", str(script), "--key", "/proc/self/mem"], tmp_path) == named


def test_two_pilots_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "own" / "runs").mkdir(parents=True)
    with locked(tmp_path / "own"):
        done = call_pacbench(("pilot", "--on", "netns", "-o", "own", "--", "true"), tmp_path)
    assert (done.returncode, done.stderr) == (2, "pacbench: own: another pacbench run is using this folder\n")
    assert [each.name for each in (tmp_path / "own").iterdir() if each.name != LOCK] == ["runs"]
    (tmp_path / "again").mkdir()
    with locked(tmp_path / "again"), pytest.raises(UsageError, match="another pacbench run is using this folder"):
        recheck(pilot(), request(tmp_path / "again"), quiet)


# How many steps, and whose


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("rate", ["20mbit", "1gbit"])
def test_16_bits_make_as_many_steps_as_fit_into_denses_time_and_others_into_that_of_as_many_16_bit_ones(
    rate: str, tmp_path: Path
) -> None:
    asked = request(tmp_path, network=network(rate))
    known, bench = asked.forecast(job()), Bench(asked, quiet)
    steps = {each.label: bench._steps(each, job()) for each in asked.methods}
    dense_s, bf16_s = (60 * known.pace_s(each) for each in (DENSE, BF16))
    assert steps["dense"] == 60
    assert steps["bf16"] == round(dense_s / known.pace_s(BF16)) > 60
    assert steps[TOPK.label] == min(300, round(bf16_s / known.pace_s(TOPK)))


def test_ranks_that_meet_seldom_make_whole_periods_or_are_left_out(tmp_path: Path) -> None:
    diloco = MethodSpec(name="diloco", label="diloco", lr=None)
    asked = request(tmp_path, methods=(DENSE, BF16, LOCAL, diloco), network=network("10gbit"))
    bench = Bench(asked, quiet)
    assert bench._steps(LOCAL, job()) % 7 == 0
    assert bench._steps(LOCAL, job()) >= 60
    assert bench.in_reach(asked.methods) == [DENSE, BF16, LOCAL]
    assert bench.left_out == [
        "diloco: its ranks meet every 500 steps, and must meet twice; it makes 300 at most, 5 times --steps."
    ]
    twice = request(tmp_path, methods=(DENSE, BF16, diloco), steps=200)
    assert Bench(twice, quiet)._steps(diloco, job()) == 1000


def meeting(steps: int, period: int) -> Execution:
    """Each step takes 0.1 s, and that in which ranks meet 0.8 s; then they send 700 bytes."""
    met = [(step + 1) % period == 0 for step in range(steps)]
    ends_s = [0.1 * (step + 1) + 0.7 * sum(met[: step + 1]) for step in range(steps)]
    curve = tuple(
        ObservedStep(step=step, time_s=end_s, step_s=0.1, loss=1.0, sent_bytes=700.0 * now, formula_bytes=700.0 * now)
        for step, (end_s, now) in enumerate(zip(ends_s, met, strict=True))
    )
    plain = {"method": "local_sgd", "params": {}, "seed": 0, "steps_asked": steps, "steps": steps, "shortfall": None}
    return execution(training=Observed(**plain, step_s=0.2, steady_from_step=2, curve=curve))  # type: ignore[arg-type]


def test_a_pace_is_of_whole_periods_and_so_are_bytes_of_a_part() -> None:
    for steps in (9, 14, 20, 24):
        found = training_of(LOCAL, 0, meeting(steps, 7), Path("runs"))
        assert found.pace_s == pytest.approx(0.2)
        assert (found.exposed_s, found.compute_s) == (None, 0.2)
    for steps in (9, 14, 20):
        part = cut(meeting(24, 7), LOCAL, steps).training
        assert part
        assert part.sent_bytes == pytest.approx(100)
    with pytest.raises(MeasurementError, match="8 steps are too few: .* and ranks meet every 7 steps"):
        training_of(LOCAL, 0, meeting(8, 7), Path("runs"))


# What a training that does not count leaves


class Told(Bench):
    """Trains nothing: dense has no second seed."""

    def train(self, method: MethodSpec, seed: int, job: Job, steps: int | None = None) -> Training | None:
        return None if (method, seed) == (DENSE, 1) else training(method, seed, 0.1, falling(40, 1.0, 30))


def test_with_a_seed_that_dense_lacks_no_other_method_trains(tmp_path: Path) -> None:
    asked = request(tmp_path)
    bench, found = Told(asked, quiet), Found(asked, job())
    bench.train_in_turns(found, asked.methods)
    assert {(each.label, each.seed) for each in found.trainings} == {
        (method.label, seed) for method in asked.methods for seed in (0, 2)
    }
    assert bench.left_out == ["With seeds that dense lacks no method was trained: nothing compares."]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"drift": ("w0 up: rate 5 Mbit/s",)}, None),
        ({"ending": "failed", "reason": "exit code 1", "drift": ("w0 up: rate 5 Mbit/s",)}, None),
        ({"ending": "failed", "reason": "exit code 1"}, "the script fails on this network: failed, exit code 1"),
    ],
    ids=["links that changed", "links that changed, and a failure", "a failure"],
)
def test_links_that_changed_are_no_fault_of_the_script(
    changes: dict[str, Any], told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benches, "execute_attached", lambda *_: execution(**changes))
    asked = request(tmp_path)
    bench = Bench(asked, quiet)
    if told is not None:
        with pytest.raises(MeasurementError, match=told):
            bench.train(DENSE, 0, job())
        return
    assert bench.train(DENSE, 0, job()) is None
    assert bench.links_changed
    (sentence,) = bench.left_out
    assert sentence.startswith("dense, seed 0: ")
    error = str(_without_dense(bench, asked, job()))
    assert error.endswith("What helps: the same command again, which goes on")


def test_a_training_that_no_budget_holds_is_not_said_to_go_on(tmp_path: Path) -> None:
    asked = request(tmp_path, budget_s=5.0)
    bench = Bench(asked, quiet)
    assert bench.train(DENSE, 0, job()) is None
    error = str(_without_dense(bench, asked, job()))
    assert "No room in the budget had dense (seed 0)." in error
    assert error.endswith("What helps: only a greater --budget: one training takes longer")


# What a recheck says where it cannot be ended


def rechecking(monkeypatch: pytest.MonkeyPatch, trained: dict[str, Training | Exception], looked: Job) -> None:
    """The job is looked at, and methods train, as it says."""

    def train(self: Bench, method: MethodSpec, seed: int, job: Job, steps: int | None = None) -> Training:
        found = trained[method.label]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Bench, "job", lambda self, attempt=0: looked)
    monkeypatch.setattr(Bench, "train", train)


KILLED = MeasurementError("the script fails on this network: failed, killed by signal 9")
TOO_FAST = UsageError("command line: this machine cannot carry 4 links of 100 Gbit/s")


def as_in_the_pilot(label: str, **changes: Any) -> Training:
    return next(each for each in pilot().trainings if each.label == label).model_copy(update=changes)


def smaller() -> Job:
    """Another model."""
    own = job()
    profile = own.profile.model_copy(update={"gradients": own.profile.gradients[:1]})
    return own.model_copy(update={"profile": profile})


@pytest.mark.parametrize(
    ("trained", "looked", "rate", "drifted"),
    [
        ({TOPK.label: KILLED}, smaller(), "100mbit", ["model and batch"]),
        ({TOPK.label: TOO_FAST}, job(), "100gbit", ["rate of the links", "break-even rate"]),
        (
            {TOPK.label: as_in_the_pilot(TOPK.label, sent_bytes=2e6), "bf16": KILLED},
            job(),
            "100mbit",
            ["bytes of a step"],
        ),
    ],
    ids=["a model that has no room", "links that cannot be emulated", "a method, and then a failure"],
)
def test_drift_that_was_found_stays_found_where_a_later_part_fails(
    trained: dict[str, Training | Exception],
    looked: Job,
    rate: str,
    drifted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rechecking(monkeypatch, trained, looked)
    (error,) = (each for each in trained.values() if isinstance(each, Exception))
    pilot(folder=str(tmp_path)).save(tmp_path)
    (tmp_path / "now.toml").write_text(f'[link]\nrate = "{rate}"\n')
    done = call_pacbench(("pilot", "--recheck", FILE, "--link", "now.toml", "--json"), tmp_path)
    assert done.returncode == EXIT_REGRESSION, done.stderr
    told = json.loads(done.stdout)
    assert [check["what"] for check in told["checks"] if check["answer"] == "drifted"] == drifted
    assert str(error) in [check["found"] for check in told["checks"] if check["answer"] == "cannot tell"]


def test_where_nothing_has_drifted_a_part_that_fails_leaves_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rechecking(monkeypatch, {TOPK.label: KILLED}, job())
    assert drift.answer(recheck(pilot(), request(tmp_path / "killed"), quiet)) == "cannot tell"
    rechecking(monkeypatch, {TOPK.label: TOO_FAST}, job())
    with pytest.raises(UsageError, match="cannot carry"):
        recheck(pilot(), request(tmp_path / "refused"), quiet)


def test_a_recheck_compares_with_the_all_reduce_that_the_verdict_was_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense is the sooner one: what is no sooner than that any more has drifted, however slow bf16 is."""
    paces_s = {"dense": 1.0, "bf16": 1.25, TOPK.label: 0.9}

    def own(seed: int) -> list[Training]:
        losses = falling(40, 1 + 0.01 * seed, 30)
        return [training(each, seed, paces_s[each.label], losses) for each in (DENSE, BF16, TOPK)]

    before = pilot([each for seed in range(3) for each in own(seed)])
    assert (before.verdict.label, before.verdict.sentence.split()[-1]) == (TOPK.label, "dense.")
    for pace_s, answer in ((0.9, "holds"), (1.08, "drifted")):
        paces_s[TOPK.label] = pace_s
        rechecking(monkeypatch, {each.label: each for each in own(0)}, job())
        checks = recheck(before, request(tmp_path / answer), quiet)
        assert [check.answer for check in checks if check.what == "advantage"] == [answer]


# How long it will take


def test_a_plan_says_how_long_on_the_network_that_is_asked_for(tmp_path: Path) -> None:
    """The pilot was on another one."""
    pilot(network=network("500mbit")).save(tmp_path)
    slow, fast = (planned(request(tmp_path, network=network(rate))) for rate in ("5mbit", "500mbit"))
    for look, tests, search in (slow, fast):
        assert look.about_s
        assert tests.about_s
        assert search.about_s
    assert slow[0] == fast[0], "the job is looked at without a network"
    assert (slow[1].about_s or 0) > 5 * (fast[1].about_s or 0)
    alone = request(tmp_path, methods=(DENSE, BF16), seeds=1, network=network("5mbit"))
    known, bench = alone.forecast(job()), Bench(alone, quiet)
    wanted_s = sum(8.0 + bench._steps(each, job()) * known.pace_s(each) for each in (DENSE, BF16))
    assert planned(alone)[1].about_s == pytest.approx(wanted_s)
    assert planned(request(tmp_path, command=("python", "other.py")))[1].about_s is None
    told = [
        call_pacbench(("pilot", "--plan", "--on", "netns", "--rate", rate, "-o", ".", "--", *pilot().command), tmp_path)
        for rate in ("5mbit", "500mbit")
    ]
    for each in told:
        assert " in all: predicted for this network" in each.stdout, each.stderr
    assert told[0].stdout != told[1].stdout


def test_a_plan_says_how_long_as_soon_as_the_job_has_been_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path)
    assert [stage.about_s for stage in planned(asked)] == [None] * 3
    monkeypatch.setattr(benches, "_done", lambda folder: execution() if folder.name.startswith("job-") else None)
    monkeypatch.setattr(benches.attach, "read", lambda folder: [])
    monkeypatch.setattr(benches, "job_of", lambda *_: job())
    assert all(stage.about_s for stage in planned(asked))
    assert list(tmp_path.iterdir()) == [], "nothing was started"


def test_a_plan_tells_steps_that_a_pilot_may_make(tmp_path: Path) -> None:
    """Shorter ones are made up to five times as often."""
    done = call_pacbench(("pilot", "--plan", "--on", "netns", "--", "true"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" 60 to 300 ") == 2
    pilot().save(tmp_path)
    bench = Bench(request(tmp_path), quiet)
    made = [bench._steps(each, job()) for each in METHODS]
    assert planned(request(tmp_path))[1].steps == (min(made), max(made))
