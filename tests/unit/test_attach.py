"""What is attached to scripts changes nothing but what it is asked to, and tells what it saw. Real ranks over Gloo."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from attached import SCRIPTS, Ran, run, run_forked

from harness import attach
from harness.attach.training import Training, _wrap_backward

SIGN = f"{SCRIPTS.parent / 'plugins' / 'block_sign.py'}:block_sign"
CNN, LANGUAGE_MODEL = SCRIPTS / "ddp_cnn.py", SCRIPTS / "ddp_language_model.py"
STEPS = 6
METHODS = {
    "pactrain": {"density": 0.2, "warmup_steps": 2, "values": "ternary"},
    SIGN: {"block": 64},
}

BY_HAND = """
import baselines
from harness.methods import method_named
baselines.register(model, method_named({name!r}).State(**{params!r}), optimizer=optimizer)

"""


def trained(
    folder: Path, script: Path, attachment: attach.Attachment | None = None, how: Callable[..., Ran] = run_forked
) -> tuple[Ran, dict[str, torch.Tensor]]:
    """A script that ran all its steps, and the weights that it saved."""
    weights = folder / "weights.pt"
    weights.unlink(missing_ok=True)
    ran = how(folder, script, "--steps", f"{STEPS}", "--save", str(weights), attachment=attachment)
    assert ran.codes == [0, 0], ran.stderr
    return ran, torch.load(weights)


def by_hand(folder: Path, script: Path, name: str) -> Path:
    """The same script with ``baselines.register`` written in before its loop."""
    registered = BY_HAND.format(name=name, params=METHODS[name])
    changed, count = re.subn(r"(?m)^(?=for _?step in)", registered, script.read_text())
    assert count == 1
    copy = folder / script.name
    copy.write_text(changed)
    return copy


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("script", "method", "how"),
    [
        (CNN, "pactrain", run_forked),
        (LANGUAGE_MODEL, "pactrain", run_forked),
        (CNN, SIGN, run),
    ],
    ids=["pactrain", "pactrain in a language model", "a plug-in"],
)
def test_a_method_does_what_it_does_when_it_is_written_in(
    tmp_path: Path, script: Path, method: str, how: Callable[..., Ran]
) -> None:
    attachment = attach.Attachment(method=method, params=METHODS[method])
    attached, weights = trained(tmp_path, script, attachment, how)
    _, expected = trained(tmp_path, by_hand(tmp_path, script, method))
    assert_same_bits(weights, expected)
    assert attach.shortfall(attached.findings, 2) is None
    for rank in attached.told:
        assert rank.steps_done == len(rank.steps) == STEPS
        assert all(step.encode_s is not None and step.encode_s > 0 for step in rank.steps[2:])


@pytest.mark.parametrize("script", [CNN, LANGUAGE_MODEL], ids=["cnn", "language model"])
def test_an_observed_script_trains_as_it_does_alone(tmp_path: Path, script: Path) -> None:
    _, expected = trained(tmp_path, script)
    observed, weights = trained(tmp_path, script, attach.Attachment())
    assert_same_bits(weights, expected)
    backwards = 3 if script == LANGUAGE_MODEL else 1
    for number, rank in enumerate(observed.told):
        assert rank.rank == number
        assert [step.step for step in rank.steps] == list(range(STEPS))
        assert {step.backwards for step in rank.steps} == {backwards}
        assert rank.model is not None
        assert rank.model.world_size == 2
        assert_phases_fit(rank.steps)
        assert_buckets_hold_the_model(rank)
    _, told_loss = observed.stdout[0].split() if script == LANGUAGE_MODEL else ("", "")
    if told_loss:  # of the last of three parts, divided by three as the script does it
        assert observed.told[0].steps[-1].loss == pytest.approx(float(told_loss) / 3, rel=0.2)


def assert_phases_fit(steps: list[attach.Step]) -> None:
    for step in steps:
        assert 0 < step.forward_s < step.ready_s < step.step_s
        assert 0 <= step.exposed_s <= step.step_s - step.forward_s
        assert step.loss is not None
    assert [step.between_s is None for step in steps] == [True] + [False] * (len(steps) - 1)
    assert sorted(steps, key=lambda step: step.at_s) == steps


def assert_buckets_hold_the_model(rank: attach.RankFindings) -> None:
    assert rank.model is not None
    assert rank.buckets is not None
    assert rank.buckets.parameters is not None
    sizes = {name: 4 * torch.Size(shape).numel() for name, shape in rank.model.parameters}
    assert sorted(name for bucket in rank.buckets.parameters for name in bucket) == sorted(sizes)
    assert rank.buckets.sizes_bytes == [sum(map(sizes.__getitem__, bucket)) for bucket in rank.buckets.parameters]
    assert len(rank.buckets.sizes_bytes) > 1


SEEDED_AND_ENDED = """
    import atexit, random
    import harness
    first = random.random()
    import numpy, torch, torch.distributed as dist
    print(first, numpy.random.rand(), torch.rand(1).item(), hash("a word"))
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    dist.init_process_group("gloo")
    atexit.register(lambda: print("cleaned up", dist.is_initialized()))
    try:
        while True:
            model(torch.ones(3)).backward()
            optimizer.step()
            harness.metric("accuracy", torch.tensor(0.5))
    finally:
        print("left its loop")
"""


def written(folder: Path, source: str, name: str = "script.py") -> Path:
    script = folder / name
    script.write_text(textwrap.dedent(source))
    return script


def test_randomness_is_seeded_and_the_script_ended_in_good_order(tmp_path: Path) -> None:
    script = written(tmp_path, SEEDED_AND_ENDED)
    attachment = attach.Attachment(observe=False, seed=7, steps=3)
    first, second = (run(tmp_path, script, attachment=attachment, ranks=ranks) for ranks in (2, 1))
    assert first.codes == [0, 0], first.stderr
    draws, *end = first.stdout[0].splitlines()
    assert end == ["left its loop", "cleaned up True"]
    assert {output.splitlines()[0] for output in first.stdout + second.stdout} == {draws}
    assert draws.split()[2] == str(torch.rand(1, generator=torch.Generator().manual_seed(7)).item())
    for rank in first.told:
        assert (rank.steps_done, rank.steps) == (3, [])
        assert [(metric.steps, metric.name, metric.value) for metric in rank.metrics] == [
            (1, "accuracy", 0.5),
            (2, "accuracy", 0.5),
        ]
    assert first.stderr == ["", ""]
    assert attach.shortfall(first.findings, 2) is None


def test_a_program_without_torch_pays_nothing_and_keeps_its_own_sitecustomize(tmp_path: Path) -> None:
    written(tmp_path, "import os\nos.environ['OF_THE_USER'] = 'ran'", "sitecustomize.py")
    script = written(
        tmp_path,
        """
        import os, sys
        print(os.environ["OF_THE_USER"], sys.modules["sitecustomize"].__file__)
        print(sorted({"torch", "pydantic", "numpy", "baselines"} & set(sys.modules)))
        """,
    )
    before = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), before]))
        ran = run(tmp_path, script, attachment=attach.Attachment(method="dgc", seed=1), ranks=1)
    assert ran.codes == [0], ran.stderr
    assert ran.stdout[0].splitlines() == [f"ran {tmp_path / 'sitecustomize.py'}", "[]"]
    assert "no rank made a step" in (attach.shortfall(ran.findings, 1) or "")


def test_a_backward_pass_that_raises_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may go on after a batch that did not fit into memory."""
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)
    ended: list[str] = []
    watching = SimpleNamespace(begin_backward=lambda tensors: partial(ended.append, "ended"))
    _wrap_backward(cast("Training", watching))
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        (2 * weight).backward()
    weight.sum().backward()
    assert ended == ["ended", "ended"]
