"""What cannot be attached to is told in one line and ends with code 5; what is no training is told afterwards."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from attached import Ran, run, run_forked

from harness import attach
from harness.errors import MeasurementError, UsageError

BEGIN = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
torch.set_num_threads(1)
dist.init_process_group("gloo")
def model(): return DDP(nn.Linear(3, 1))
def sgd(model, **options): return torch.optim.SGD(model.parameters(), 0.1, **options)
def step(model, *optimizers):
    model(torch.ones(3)).sum().backward()
    for optimizer in optimizers: optimizer.step()
"""

TWO_MODELS = "a, b = model(), model(); step(a, sgd(a)); step(b, sgd(b))"
NO_DDP = "m = nn.Linear(3, 1); step(m, sgd(m))"
FSDP2 = """
from torch.distributed.fsdp import fully_shard
m = nn.Linear(4, 4); fully_shard(m, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
o = sgd(m); m(torch.ones(1, 4)).sum().backward(); o.step()
"""
NO_OPTIMIZER = "a = model(); other = nn.Linear(2, 2); o = sgd(other); step(a)"
TWO_OPTIMIZERS = (
    "a = model(); o = [torch.optim.SGD([a.module.weight]), torch.optim.AdamW([a.module.bias])]; step(a, *o)"
)
ANOTHER_OPTIMIZER = "a = model(); o = sgd(a); step(a, o); step(a, sgd(a))"
OWN_HOOK = """
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
a = model(); a.register_comm_hook(None, fp16_compress_hook); step(a, sgd(a))
"""
PLAIN = "a = model(); step(a, sgd(a))"
WITH_ADAM = "a = model(); step(a, torch.optim.Adam(a.parameters()))"
OWN_BASELINES = f"import baselines\n{PLAIN}"

SIGN = Path(__file__).resolve().parents[2] / "examples" / "plugins" / "block_sign.py"

OBSERVED: dict[str, Any] = {}
WITH_TOPK: dict[str, Any] = {"method": "topk"}

REFUSED = {
    "two models": (TWO_MODELS, OBSERVED, 1, "a second model trains under DistributedDataParallel"),
    "no DDP": (NO_DDP, OBSERVED, 1, "the script trains a model that is not under DistributedDataParallel"),
    "FSDP2": (FSDP2, OBSERVED, 1, "the script trains with FSDP"),
    "no optimizer": (NO_OPTIMIZER, WITH_TOPK, 1, "no optimizer holds parameters of the model (Linear)"),
    "two optimizers": (TWO_OPTIMIZERS, WITH_TOPK, 1, "2 optimizers hold parameters of the model (AdamW, SGD)"),
    "one rank": (PLAIN, WITH_TOPK, 1, "the process group has one rank only"),
    "another optimizer": (ANOTHER_OPTIMIZER, WITH_TOPK, 2, "another optimizer (SGD) makes steps"),
    "own hook": (OWN_HOOK, WITH_TOPK, 2, "topk: "),
    "Adam": (WITH_ADAM, {"method": "dgc"}, 2, "dgc: "),
}


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(BEGIN + textwrap.dedent(text))
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    text, attachment, ranks, reason = REFUSED[case]
    ran = run_forked(tmp_path, script(tmp_path, text), attachment=attach.Attachment(**attachment), ranks=ranks)
    assert_refused(ran, reason)


def test_a_package_of_the_scripts_own_is_not_taken_for_ours(tmp_path: Path) -> None:
    """In processes of their own: where they are forked from, ours is imported already."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").touch()
    ran = run(tmp_path, script(tmp_path, OWN_BASELINES), attachment=attach.Attachment(**WITH_TOPK))
    assert_refused(ran, "topk: the script has a package named baselines of its own")


def test_a_plugin_whose_code_is_not_what_was_checked_is_refused(tmp_path: Path) -> None:
    """In processes of their own, since code is read once by a process."""
    plugin = tmp_path / "sign.py"
    plugin.write_text(SIGN.read_text().replace("block_sign_hook", "sign_hook"))
    attachment = attach.Attachment(method=f"{plugin}:sign")
    attach.environment(attachment, tmp_path)
    plugin.write_text(plugin.read_text() + "\n")
    ran = run(tmp_path, script(tmp_path, PLAIN), attachment=attachment, ranks=2)
    assert_refused(ran, "sign.py:sign: its code here is not that which was checked")


def assert_refused(ran: Ran, reason: str) -> None:
    ranks = len(ran.codes)
    assert ran.codes == [5] * ranks, ran.stderr
    for errors in ran.stderr:
        (line,) = [line for line in errors.splitlines() if line.startswith("pacbench:")]
        assert line.startswith(f"pacbench: {reason}")
        assert "Traceback" not in errors
    assert (attach.shortfall(ran.findings, ranks) or "").startswith(reason)


TRAINS_ALONE = """
if dist.get_rank() == 0:
    alone = dist.new_group([0], use_local_synchronization=True)
    m = DDP(nn.Linear(3, 1), process_group=alone)
    step(m, sgd(m))
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = model(); o = sgd(a); step(a)", "no rank made a step of a torch optimizer"),
        (TRAINS_ALONE, "only 1 of 2 ranks made a step of their optimizer: 0"),
    ],
    ids=["no step", "one rank trains"],
)
def test_no_training_of_all_ranks(tmp_path: Path, text: str, reason: str) -> None:
    ran = run_forked(tmp_path, script(tmp_path, text), attachment=attach.Attachment())
    assert ran.codes == [0, 0], ran.stderr
    assert (attach.shortfall(ran.findings, 2) or "").startswith(reason)


def test_a_script_that_fails_keeps_its_own_code_and_what_was_found(tmp_path: Path) -> None:
    text = "a = model(); o = sgd(a); step(a, o); step(a, o); import sys; sys.exit(7)"
    ran = run_forked(tmp_path, script(tmp_path, text), attachment=attach.Attachment())
    assert ran.codes == [7, 7]
    assert [rank.steps_done for rank in ran.told] == [2, 2]


@pytest.mark.parametrize(
    ("attachment", "found"),
    [
        ({"method": "dcg"}, "no method named 'dcg'"),
        ({"method": "dgc", "params": {"ratio": 3.0}}, "dgc: ratio: found 3.0; allowed: "),
        ({"method": "dgc", "params": {"density": 0.1}}, "dgc: density: found 0.1; allowed: "),
    ],
)
def test_a_method_that_there_is_not(tmp_path: Path, attachment: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError) as raised:
        attach.environment(attach.Attachment(**attachment), tmp_path)
    assert str(raised.value).startswith(found)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**32}, {"steps": 0}, {"metric": "acc"}, {"metric": "(acc"}])
def test_an_attachment_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        attach.Attachment(**wrong)


@pytest.mark.parametrize(
    ("line", "pattern", "found"),
    [
        ("epoch 3 acc: 0.91 done", "acc: ([0-9.]+)", {"metric": 0.91}),
        ("acc 0.5 loss 2e-1", r"acc (?P<accuracy>\S+)(?: loss (?P<loss>\S+))?", {"accuracy": 0.5, "loss": 0.2}),
        ("acc 0.5", r"acc (?P<accuracy>\S+)(?: loss (?P<loss>\S+))?", {"accuracy": 0.5}),
        ("acc: ...", "acc: ([0-9.]+)", {}),
        ("nothing", "acc: ([0-9.]+)", {}),
    ],
)
def test_metrics_of_a_line(line: str, pattern: str, found: dict[str, float]) -> None:
    assert attach.metrics_in(line, pattern) == found


def test_a_half_line_is_not_read_and_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rank-0.jsonl"
    file.write_text('{"kind": "ended", "steps": 4}\n{"kind": "ste')
    assert [rank.steps_done for rank in attach.read(tmp_path)] == [4]
    file.write_text('{"kind": "stairs"}\n')
    with pytest.raises(MeasurementError, match="not findings of this version"):
        attach.read(tmp_path)
