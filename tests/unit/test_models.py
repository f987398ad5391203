"""Models at the shapes that papers publish, and a small one that learns a language."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import UsageError
from harness.plan import plan
from harness.scenario.load import load
from harness.workload.data import DATASETS
from harness.workload.models import MODELS, cross_entropy

PARAMETERS = {
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "vit-b-16": 86_567_656,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "gpt2": 124_439_808,
    "tensor-100mb": 25_000_000,
    "vgg19-cifar": 20_029_514,
    "resnet18-cifar": 11_173_962,
    "resnet50-cifar": 23_520_842,
    "resnet152-cifar": 58_156_618,
    "vit-b-16-cifar": 85_152_010,
}
"""As published with each model; those for CIFAR follow from what is exchanged."""

MULTIPLICATIONS = {"vgg19": 19.63e9, "resnet18": 1.81e9, "resnet50": 4.09e9, "resnet152": 11.51e9, "vit-b-16": 17.56e9}
"""Of a forward pass on one image, as torchvision's pages give them."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_the_published_parameters(name: str) -> None:
    assert sum(map(math.prod, MODELS[name].shapes())) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_scores_come_last_and_there_is_one_for_each_class(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        scores = model.build()(model.example(2))
    tokens = model.input_shape if scores.ndim == 3 else ()
    assert scores.shape == (2, *tokens, model.classes)


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_operations_are_those_that_are_published(name: str) -> None:
    """Two for each multiplication, and a backward pass takes twice the forward's."""
    assert MODELS[name].flops_per_sample() == pytest.approx(6 * MULTIPLICATIONS[name], rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_operations_are_those_that_torch_counts(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = model.build()
        network(model.example()).sum().backward()
    assert model.flops_per_sample() == counter.get_total_flops()
    assert model.shapes() == [tuple(weight.shape) for weight in network.parameters() if weight.requires_grad]


def test_shapes_and_operations_are_counted_without_the_compiler() -> None:
    """Importing it takes as long as importing torch."""
    program = (
        "import sys; from harness.workload.models import MODELS; model = MODELS['digits-cnn']; "
        "model.shapes(); model.flops_per_sample(); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("name", "package"), [("vgg19", "torchvision"), ("gpt2", "transformers")])
def test_what_is_not_installed_is_said_in_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"train\.model: it is built by {package}, .*pip install") as refused:
        MODELS[name].shapes()
    assert "\n" not in str(refused.value)


def test_a_plan_knows_which_models_fit_text() -> None:
    with pytest.raises(UsageError, match=r"found 'digits-cnn'; allowed: for python-source: byte-lm"):
        plan.make(load("quickstart", ["train.dataset=python-source"]), "fake")
    overrides = ["train.dataset=python-source", "train.model=byte-lm", "train.pace=none"]
    trial = plan.make(load("quickstart", overrides), "fake").trials[0]
    assert trial.expected.wire_bytes_per_step == pytest.approx(
        2 * 2 / 3 * 4 * sum(map(math.prod, MODELS["byte-lm"].shapes()))
    )


def test_the_language_model_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    model, tokens = MODELS["byte-lm"].build(), torch.randint(256, (2, 64))
    changed = tokens.clone()
    changed[:, 40:] = torch.randint(256, (2, 24))
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


def test_the_language_model_has_the_second_derivative_that_grasp_takes() -> None:
    model, tokens = MODELS["byte-lm"].build(), torch.randint(256, (2, 64))
    weights = [weight for weight in model.parameters() if weight.ndim >= 2]
    first = torch.autograd.grad(cross_entropy(model(tokens), tokens), weights, create_graph=True)
    second = torch.autograd.grad(sum(each.square().sum() for each in first), weights)
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in second)


def test_the_language_model_learns_more_than_how_often_each_byte_comes() -> None:
    torch.manual_seed(0)
    data = DATASETS["python-source"].load(None)
    counts = Counter(data.test_targets.flatten().tolist())
    entropy = -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())
    model = MODELS["byte-lm"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in torch.randperm(len(data.train_inputs)).split(16)[:50]:
        cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert cross_entropy(model(data.test_inputs), data.test_targets) < entropy


def test_cross_entropy_is_a_mean_over_tokens() -> None:
    scores, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    one_by_one = torch.stack(
        [cross_entropy(scores[n, t : t + 1], targets[n, t : t + 1]) for n in range(3) for t in range(5)]
    )
    assert cross_entropy(scores, targets) == pytest.approx(one_by_one.mean().item())
    assert cross_entropy(scores, targets, reduction="sum") == pytest.approx(one_by_one.sum().item())
