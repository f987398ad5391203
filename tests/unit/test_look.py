"""What a look at a script's gradients finds, by identities; and that it changes nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attached import SCRIPTS, Ran, run_forked
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness import attach
from harness.attach.findings import Looked
from harness.attach.look import Shadow, _cosine, _holding, _nmse, _progress
from harness.attach.orders import LOOK_STEPS

CNN, LANGUAGE_MODEL = SCRIPTS / "ddp_cnn.py", SCRIPTS / "ddp_language_model.py"
TRIED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dense", {}),
    ("topk", {"ratio": 1.0}),
    ("topk", {"ratio": 0.05, "selection": "exact"}),
    ("topk", {"ratio": 0.05, "selection": "exact", "error_feedback": False}),
    ("local_sgd", {"period": 2}),
    ("dgc", {"ratio": 0.1}),
)


def looked_at(folder: Path, script: Path, seed: int = 0) -> Ran:
    attachment = attach.Attachment(seed=seed, steps=LOOK_STEPS, look=TRIED)
    ran = run_forked(folder, script, "--steps", f"{LOOK_STEPS}", attachment=attachment)
    assert ran.codes == [0, 0], ran.stderr
    return ran


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return looked_at(tmp_path_factory.mktemp("cnn"), CNN)


def of_methods(ran: Ran) -> list[Looked]:
    return ran.told[0].looked


def test_what_sends_everything_is_exact_and_what_drops_some_is_as_far_off_as_it_drops(cnn: Ran) -> None:
    dense, whole, feedback, forgets, local, dgc = of_methods(cnn)
    for exact in (dense, whole):
        assert exact.nmse == pytest.approx(0, abs=1e-9)
        assert (exact.cosine, exact.progress) == pytest.approx((1, 1), abs=1e-5)
    assert forgets.nmse
    assert 0 < forgets.nmse < 1
    assert feedback.progress
    assert forgets.progress
    assert feedback.progress > forgets.progress, "what was not sent is made good later"
    assert dense.held_bytes == 0
    assert feedback.held_bytes >= 4 * 44_000, "it remembers a number for each entry"
    assert (local.nmse, local.cosine, local.progress) == (None, None, None)
    assert dgc.refused is None
    assert all(each.encode_s >= 0 and each.optimizer_s > 0 for each in of_methods(cnn))


def test_the_model_its_buckets_and_its_samples_are_those_of_the_script(cnn: Ran) -> None:
    for rank in cnn.told:
        assert rank.model
        assert rank.gradients
        assert rank.distribution
        assert rank.gradients.batch_size == 32
        assert rank.gradients.bucket_bytes == int(0.1 * 2**20)
        names = {(name, tuple(shape)) for name, shape, _ in rank.gradients.parameters}
        assert names == {(name, tuple(shape)) for name, shape in rank.model.parameters}
        times = [seconds for _, _, seconds in rank.gradients.parameters]
        assert times == sorted(times)
        assert rank.gradients.parameters[-1][0].startswith("0."), "the first layer's gradient is ready last"
        spread = rank.distribution
        assert 0 < spread.holding_90 <= spread.holding_99 <= spread.non_zero <= 1


def test_the_script_trains_as_if_nobody_looked(cnn: Ran, tmp_path: Path) -> None:
    plain = run_forked(
        tmp_path, CNN, "--steps", f"{LOOK_STEPS}", attachment=attach.Attachment(seed=0, steps=LOOK_STEPS)
    )
    for rank, alone in zip(cnn.told, plain.told, strict=True):
        assert [step.loss for step in rank.steps] == [step.loss for step in alone.steps]
        assert len(rank.steps) == LOOK_STEPS


def test_accumulated_passes_are_one_step_and_what_an_optimizer_does_not_suit_is_refused(tmp_path: Path) -> None:
    ran = looked_at(tmp_path, LANGUAGE_MODEL)
    assert ran.told[0].gradients
    assert ran.told[0].gradients.batch_size == 3 * 8
    *others, dgc = of_methods(ran)
    assert dgc.refused
    assert "AdamW" in dgc.refused
    assert [each.refused for each in others] == [None] * len(others)
    assert others[0].nmse == pytest.approx(0, abs=1e-9)


SEEDED = textwrap.dedent(
    """
    import random
    import numpy, torch
    torch.manual_seed(5), numpy.random.seed(5), random.seed(5)
    print(torch.rand(1).item(), numpy.random.rand(), random.random())
    """
)


@pytest.mark.parametrize("shifts", [True, False])
def test_a_script_that_seeds_itself_varies_with_the_seed_where_that_is_asked(shifts: bool, tmp_path: Path) -> None:
    script = tmp_path / "seeded.py"
    script.write_text(SEEDED)
    told = [
        run_forked(tmp_path, script, attachment=attach.Attachment(seed=seed, shifts_seeds=shifts), ranks=1).stdout[0]
        for seed in (0, 1, 1)
    ]
    assert told[1] == told[2]
    assert all(one != other for one, other in zip(told[0].split(), told[1].split(), strict=True)) is shifts


def test_figures_of_gradients_are_what_their_names_say() -> None:
    exact, found = [torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 0.0])]
    assert _nmse(found, exact) == pytest.approx(16 / 25)
    assert _cosine(found, exact) == pytest.approx(9 / 15)
    assert _progress([torch.tensor([6.0, 4.0])], [exact, exact]) == pytest.approx((6 * 6 + 4 * 8) / 100)
    assert _holding(torch.tensor([1.0, 0.0, 3.0, 0.0])) == [0.25, 0.5]


def test_a_script_that_gives_no_size_has_a_small_first_bucket(tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(CNN.read_text().replace(", bucket_cap_mb=0.1", ""))
    ran = run_forked(
        tmp_path, script, "--steps", f"{LOOK_STEPS}", attachment=attach.Attachment(steps=LOOK_STEPS, look=())
    )
    for rank in ran.told:
        assert rank.gradients
        assert (rank.gradients.first_bucket_bytes, rank.gradients.bucket_bytes) == (2**20, 25 * 2**20)


def buckets_of_a_shadow(cap_mb: float | None) -> list[int]:
    """Entries of each bucket, of three tensors of 600 kB."""
    weights = [nn.Parameter(torch.zeros(150_000)) for _ in range(3)]
    shadow = Shadow(DistributedDataParallel(nn.ParameterList(weights), bucket_cap_mb=cap_mb), weights)
    seen: list[int] = []

    def note(state: None, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.buffer().numel())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    note.__annotations__ = {}  # DDP takes no names in place of types
    shadow.ddp.register_comm_hook(None, note)
    for _ in range(3):
        seen.clear()
        shadow.backward([torch.ones(150_000)] * 3)
    return seen


@pytest.mark.parametrize(("cap_mb", "entries"), [(None, [300_000, 150_000]), (25, [450_000])])
def test_a_shadow_has_the_buckets_of_the_script(
    cap_mb: float | None, entries: list[int], on_ranks: Callable[..., list[Any]]
) -> None:
    assert on_ranks(1, buckets_of_a_shadow, cap_mb) == [entries]
