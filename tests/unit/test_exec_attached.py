"""What is pure of commands that are attached to: metrics in their output, the account of findings, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict
from math import inf, nan
from pathlib import Path

import pytest
from executed import execution
from in_process import call_pacbench

from baselines._state import ring_all_reduce_bytes
from harness.attach import Attachment
from harness.attach.findings import Buckets, Ended, Finding, Metric, Model, Note, Refused, Step
from harness.attach.watch import Counters, sent_by
from harness.cli.attaching import attachment
from harness.messages import Output
from harness.record.execution import Execution, new_folder
from harness.record.observed import Training
from harness.report.execution import metric_rows, training_rows
from harness.report.figures.observed import observed
from harness.run.attached import FINDINGS, MetricsInOutput, attached, with_findings
from harness.run.command import Job

SHAPES = [("weight", [10, 20]), ("bias", [10])]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIGN = EXAMPLES / "plugins" / "block_sign.py"
DENSE_BYTES = ring_all_reduce_bytes(4 * 210, 2)


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def step(number: int, rank: int, **changes: object) -> Step:
    """Ends a second after the one before; 1000 bytes of payload in two packets have left since."""
    times = {"step_s": 0.5 + 0.1 * rank, "between_s": 0.1, "forward_s": 0.1, "ready_s": 0.3, "exposed_s": 0.2}
    sent = (5000 + number * (1000 + 2 * 66), 9 + 2 * number)
    plain = {"step": number, "at_s": 50.0 + number, **times, "backwards": 1, "loss": 2.0 - number + rank, "sent": sent}
    return Step(**{**plain, **changes})  # type: ignore[arg-type]


def findings_of(rank: int, steps: int = 4) -> list[Finding]:
    model, buckets = Model(2, "cpu", "SGD", SHAPES), Buckets([800, 40], [["weight"], ["bias"]])
    return [model, buckets, *(step(number, rank) for number in range(steps)), Ended(steps)]


def account(
    folder: Path, ranks: list[list[Finding]], per_node: int = 1, workers: int = 2, **attachment: object
) -> Execution:
    """What a command's record says of findings."""
    (folder / FINDINGS).mkdir()
    for rank, found in enumerate(ranks):
        lines = [json.dumps(asdict(each)) + "\n" for each in found]
        (folder / FINDINGS / f"rank-{rank}.jsonl").write_text("".join(lines))
    ended = Execution.model_construct(workers=workers, per_node=per_node, metrics=())
    return with_findings(ended, Attachment(**attachment), folder)  # type: ignore[arg-type]


def training(folder: Path, ranks: list[list[Finding]], **options: object) -> Training:
    found = account(folder, ranks, **options).training  # type: ignore[arg-type]
    assert found is not None
    return Training.model_validate_json(found.model_dump_json())


def test_an_account_has_means_over_ranks_and_settled_steps(tmp_path: Path) -> None:
    found = training(tmp_path, [findings_of(0), findings_of(1)], seed=3, steps=4)
    assert (found.method, found.formula, found.seed, found.steps_asked, found.steps) == (None, "dense", 3, 4, 4)
    assert (found.world_size, found.device, found.optimizer, found.parameters) == (2, "cpu", "SGD", 210)
    assert (found.steady_from_step, found.buckets_bytes, found.shortfall) == (2, (800, 40), None)
    assert (found.step_s, found.forward_s, found.exposed_s) == pytest.approx((0.55, 0.1, 0.2))
    assert (found.first_loss, found.last_loss) == (2.5, -0.5)
    assert [each.sent_bytes for each in found.curve] == [None, 1000.0, 1000.0, 1000.0]
    assert (found.sent_bytes, found.formula_bytes) == (1000.0, DENSE_BYTES)
    assert [each.time_s for each in found.curve] == pytest.approx([0.55, 1.55, 2.55, 3.55])
    assert found.encode_s is None


def test_the_warm_up_is_no_part_of_means_and_the_formula_goes_by_steps(tmp_path: Path) -> None:
    ranks = [findings_of(rank, steps=30) for rank in range(2)]
    found = training(tmp_path, ranks, method="pactrain", params={"density": 0.2, "warmup_steps": 20})
    assert found.steady_from_step == 21
    assert found.curve[0].formula_bytes == DENSE_BYTES
    assert found.formula_bytes == ring_all_reduce_bytes(4 * (0.2 * 200 + 10), 2)


def test_of_ranks_that_meet_seldom_means_are_of_whole_periods_and_nothing_exposed_is_told(tmp_path: Path) -> None:
    """They meet in every third step, which takes 3.5 s; of eight steps two periods are the last six."""
    slow = [
        [
            Model(2, "cpu", "SGD", SHAPES),
            *(step(number, rank, step_s=3.5 if number % 3 == 2 else 0.5) for number in range(8)),
            Ended(8),
        ]
        for rank in range(2)
    ]
    found = training(tmp_path, slow, method="local_sgd", params={"period": 3})
    assert found.step_s == pytest.approx(1.5)
    assert found.formula_bytes == pytest.approx(DENSE_BYTES / 3)
    assert found.exposed_s is None
    assert dict(training_rows(found))["exposed communication"] == "–"


def test_what_a_method_noted_of_its_bytes_goes_before_its_expectation(tmp_path: Path) -> None:
    ranks = [[*findings_of(rank), *(Note(3, "formula_bytes", 100.0 + rank) for _ in range(2))] for rank in range(2)]
    found = training(tmp_path, ranks, method="omnireduce")
    assert found.curve[3].formula_bytes == 201.0
    assert found.curve[2].formula_bytes != 201.0


@pytest.mark.parametrize("options", [{"workers": 1, "per_node": 2}, {"workers": 4}])
def test_where_ranks_share_links_nothing_is_said_of_their_bytes(tmp_path: Path, options: dict[str, int]) -> None:
    found = training(tmp_path, [findings_of(0), findings_of(1)], **options)
    assert {each.sent_bytes for each in found.curve} == {None}
    assert found.sent_bytes is None


def test_what_is_no_training_says_why_and_has_no_means(tmp_path: Path) -> None:
    found = training(tmp_path, [[Refused("a second model")], [Refused("a second model")]])
    assert (found.steps, found.shortfall, found.curve, found.step_s) == (0, "a second model", (), None)
    assert dict(training_rows(found)) == {"method": "the script's own", "steps": "0"}
    assert list(observed(found)) == []


def test_rank_0_alone_tells_metrics(tmp_path: Path) -> None:
    ranks = [[*findings_of(rank), Metric(4, 60.0, "accuracy", 0.5 + rank)] for rank in range(2)]
    found = account(tmp_path, ranks).metrics
    assert [(metric.name, metric.value, metric.steps) for metric in found] == [("accuracy", 0.5, 4)]


def test_a_metric_that_is_no_finite_number_is_read_back(tmp_path: Path) -> None:
    told = [Metric(steps=step, at_s=1.0, name="loss\udcff", value=value) for step, value in enumerate((0.5, inf, nan))]
    found = execution(metrics=account(tmp_path, [[*findings_of(0), *told], findings_of(1)]).metrics)
    found.save(tmp_path)
    assert [each.value for each in Execution.load(tmp_path).metrics] == [0.5, None, None]
    assert metric_rows(found.metrics) == [(r"loss\udcff", "3", "0.5", "–")]
    heard = MetricsInOutput("acc: (.*)", lambda said: None)
    heard(Output(node="w0", rank=0, to_stderr=False, lines=["acc: nan", "acc: 1"]))
    assert [each.value for each in heard.found] == [None, 1.0]


def test_metrics_are_found_in_what_rank_0_prints_to_stdout() -> None:
    heard: list[Output] = []
    output = MetricsInOutput("acc: ([0-9.]+)", heard.append)
    said = [
        Output(node="w0", rank=0, lines=["acc: 0.25", "loss: 3", "acc: 0.5"], to_stderr=False),
        Output(node="w0", rank=0, lines=["acc: 0.75"], to_stderr=True),
        Output(node="w1", rank=1, lines=["acc: 1.0"], to_stderr=False),
    ]
    for each in said:
        output(each)
    assert heard == said
    assert [(metric.name, metric.value) for metric in output.found] == [("metric", 0.25), ("metric", 0.5)]
    assert metric_rows(output.found) == [("metric", "2", "0.25", "0.5")]


def test_a_job_that_is_attached_to_has_what_its_scripts_need(tmp_path: Path) -> None:
    plain = Job(["true"], tmp_path, {"PYTHONPATH": "/own"}, more={"A": "1"})
    job = attached(plain, Attachment(seed=5), tmp_path)
    orders = json.loads(job.more["PACBENCH_ATTACH"])
    assert (orders["seed"], orders["interface"], orders["folder"]) == (5, "eth0", str(tmp_path / FINDINGS))
    assert (job.more["A"], job.more["PYTHONHASHSEED"]) == ("1", "5")
    assert job.writes == tmp_path / FINDINGS
    assert list(job.writes.iterdir()) == []
    assert any(Path(job.more["PYTHONPATH"]).is_relative_to(code) for code in job.reads)


def test_a_job_with_a_plugin_can_read_it_and_knows_its_code(tmp_path: Path) -> None:
    given = attachment("plugins/block_sign.py:block_sign", ["block=64"], False, None, None, None, EXAMPLES)
    assert (given.method, given.params, given.observe) == (f"{SIGN}:block_sign", {"block": 64}, True)
    job = attached(Job(["true"], tmp_path, {}), given, tmp_path)
    orders = json.loads(job.more["PACBENCH_ATTACH"])
    assert (orders["method"], orders["method_code"]) == (given.method, hash_of(SIGN))
    assert SIGN in job.reads


def test_a_record_names_a_plugin_without_its_folder_but_with_its_code(tmp_path: Path) -> None:
    found = training(tmp_path, [findings_of(0), findings_of(1)], method=f"{SIGN}:block_sign", params={"block": 10})
    assert (found.method, found.formula, found.method_code) == (*2 * ["block_sign.py:block_sign"], hash_of(SIGN))
    assert found.formula_bytes == ring_all_reduce_bytes(210 + 4 * 21, 2)
    assert dict(training_rows(found))["hash of its code"] == hash_of(SIGN)


def test_ranks_that_share_a_link_count_nothing(tmp_path: Path) -> None:
    job = attached(Job(["true"], tmp_path, {}, per_node=2), Attachment(), tmp_path)
    assert json.loads(job.more["PACBENCH_ATTACH"])["interface"] is None


def test_counters_of_an_interface_grow_by_what_is_sent() -> None:
    counters = Counters()
    before = sent_by("lo", counters.read())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(1000), ("127.0.0.1", 9))
    after = sent_by("lo", counters.read())
    assert before is not None
    assert after is not None
    assert after[0] - before[0] >= 1000
    assert after[1] > before[1]
    assert sent_by("no-such-interface", counters.read()) is None


def test_a_folder_in_which_no_rank_wrote_goes(tmp_path: Path) -> None:
    with new_folder(tmp_path, tmp_path / "record") as folder:
        (folder / FINDINGS).mkdir()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--method", "dcg"), "no method named 'dcg'; there are "),
        (("--method", "dgc", "--param", "ratio=3.0"), "dgc: ratio: found 3.0; allowed: "),
        (("--method", "topk", "--param", "density=0.1"), "topk: density: found 0.1; allowed: ratio, "),
        (("--method", "dgc", "--param", "ratio"), "command line: --param: found 'ratio'; allowed: KEY=VALUE"),
        (("--method", "/no/sign.py:sign"), "/no/sign.py: no plug-in: No such file or directory"),
        (("--method", f"{EXAMPLES}/plugins/tiny_net.py:tiny_net"), f"{EXAMPLES}/plugins/tiny_net.py: it has no State"),
        (("--method", f"{SIGN}:sign"), f"{SIGN}: it has no sign_hook; there are State, block_sign_hook"),
        (("--method", f"{SIGN}:block_sign", "--param", "block=1"), "block_sign.py:block_sign: block: found 1; allowed"),
        (("--param", "ratio=0.1"), "command line: --param: found 'ratio=0.1'; allowed: with --method alone"),
        (("--metric", "(acc"), "command line: --metric: found '(acc'; allowed: a regular expression ("),
        (("--metric", "acc"), "command line: --metric: found 'acc'; allowed: a regular expression with a group"),
        (("--seed", "-1"), "command line: --seed: found -1; allowed: greater than or equal to 0"),
        (("--steps", "0"), "command line: --steps: found 0; allowed: greater than or equal to 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    done = call_pacbench(("exec", "--on", "netns", "--out", "record", *options, "--", "true"), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pacbench: {complaint}")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
