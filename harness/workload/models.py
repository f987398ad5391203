"""Models that trials train. To add one, write a function that builds it and put ``@model`` above it."""

from __future__ import annotations

import importlib
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import UsageError
from harness.plugins import Catalogue, Plugin, load
from harness.workload.data import DECLARED, Dataset
from harness.workload.operations import OperationCounter, WithoutValues


@dataclass(frozen=True)
class Model:
    """A model by name: how to build it, and what one of its inputs is.

    Its scores are (N, classes) of images, and (N, T, classes) of T tokens each. What it needs may not be installed:
    then everything that builds it raises a ``UsageError``.
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    classes: int

    def fits(self, data: Dataset) -> bool:
        """Whether it takes the data set's samples, and has a score for each of its classes, or for more."""
        return self.input_shape == data.input_shape and data.classes <= self.classes

    def example(self, batch_size: int = 1) -> Tensor:
        """Inputs of the right shape and type, all zero, on the default device."""
        dtype = torch.float32 if len(self.input_shape) == IMAGE_DIMENSIONS else torch.int64
        return torch.zeros(batch_size, *self.input_shape, dtype=dtype)

    def build_from(self, checkpoint: Path) -> nn.Module:
        """The model with the weights of a file that holds its ``state_dict()``.

        Raises:
            UsageError: the file cannot be read, or belongs to another model.
        """
        model = self.build()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they would stand beside the one line
                weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
            model.load_state_dict(weights)
        except Exception as error:  # reading what is no such file may raise anything
            reason = textwrap.shorten(str(error) or type(error).__name__, 160)
            raise UsageError.at(
                "scenario", "train.checkpoint", str(checkpoint), f"a file with the state_dict of {self.name} ({reason})"
            ) from None
        return model

    def scores_shape(self, batch_size: int = 2) -> tuple[int, ...]:
        """Shape of its scores of so many samples. What is large is not computed."""
        with self._without_much_work():
            return tuple(self.build()(self.example(batch_size)).shape)

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of its trainable parameters. Nothing is allocated."""
        with torch.device("meta"), WithoutValues():
            return [tuple(parameter.shape) for parameter in self.build().parameters() if parameter.requires_grad]

    def shapes_by_name(self) -> dict[str, tuple[int, ...]]:
        """Likewise of all its parameters, by name, those that are not trained too."""
        with torch.device("meta"), WithoutValues():
            return {name: tuple(parameter.shape) for name, parameter in self.build().named_parameters()}

    def flops_per_sample(self) -> int:
        """Floating point operations of a forward and backward pass on one sample. What is large is not computed."""
        with self._without_much_work():
            network, example = self.build(), self.example()
            with OperationCounter() as counter:
                network(example).sum().backward()
        return int(counter.total)

    @contextmanager
    def _without_much_work(self) -> Iterator[None]:
        """Where a model can be tried.

        The meta device computes nothing, but its first operator imports torch's compiler, which takes as long as
        importing torch. A small model is computed in a few milliseconds.
        """
        is_small = sum(map(math.prod, self.shapes())) <= MOST_COMPUTED_PARAMETERS
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if is_small else "meta"):
            yield


MOST_COMPUTED_PARAMETERS = 1_000_000
"""Parameters up to which a model is computed, in order to count its operations."""

IMAGE_DIMENSIONS = 3
"""Channels, rows, columns; all other inputs are tokens."""

Builder = TypeVar("Builder", bound=Callable[[], nn.Module])


def model(name: str = "", *, input_shape: tuple[int, ...], classes: int) -> Callable[[Builder], Builder]:
    """Declare what the decorated builder builds; the first line of its docstring describes it in lists.

    Here it is entered under ``name``. In a plug-in no name is needed: its file or its package names it.
    """

    def enter(build: Builder) -> Builder:
        summary = (build.__doc__ or "").partition("\n")[0]
        declared = Model(name, summary, build, input_shape, classes)
        if build.__module__ == __name__:
            MODELS[name] = declared
        setattr(build, DECLARED, declared)
        return build

    return enter


def _of_plugin(plugin: Plugin) -> Model:
    """The model that a plug-in declares; what its builder raises names its file and line."""
    build: Any = plugin.get()
    declared = vars(build).get(DECLARED) if hasattr(build, "__dict__") else None
    if not isinstance(declared, Model):
        raise plugin.error(f"{plugin.attribute} has no @model(input_shape=..., classes=...) above it")
    plugin.check_call(build)
    plugin.check_declared_shape(declared.input_shape, declared.classes)

    def build_and_check() -> nn.Module:
        with plugin.blamed():
            network = build()
        if not isinstance(network, nn.Module):
            raise plugin.error(f"{plugin.attribute} gives {type(network).__name__}; allowed: a torch.nn.Module")
        return network

    return replace(declared, name=plugin.name, build=build_and_check)


@cache
def check_scores(name: str) -> None:
    """Try a model that is a plug-in: what of it is not pacbench's may fail in ways of its own.

    Raises:
        UsageError: its forward pass fails, or gives other scores than it declares.
    """
    plugin, known = load("model", name), MODELS[name]
    is_text = len(known.input_shape) < IMAGE_DIMENSIONS
    with plugin.blamed():
        found, declared = known.scores_shape(2), (2, *(known.input_shape if is_text else ()), known.classes)
    if found != declared:
        raise plugin.error(f"scores of 2 samples have the shape {found}; allowed: {declared}, as it declares")


MODELS: Catalogue[Model] = Catalogue("model", _of_plugin)


def cross_entropy(scores: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy of scores (N, classes) for targets (N,), or of (N, T, classes) for (N, T), in nats."""
    return functional.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction=reduction)


def autocast(precision: str | None, device: str) -> AbstractContextManager[object]:
    """In which a forward pass computes: ``bf16`` is torch's autocast, None leaves everything as it is."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


class SmallCnn(nn.Module):
    """Two convolutions, each followed by ReLU and pooling, then two linear layers; no batch statistics."""

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, classes: int) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(second * (side // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 1, side, side)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores


@model("digits-cnn", input_shape=(1, 8, 8), classes=10)
def digits_cnn() -> nn.Module:
    """CNN for 8x8 digits, 0.31 M parameters."""
    return SmallCnn(side=8, channels=(64, 128), hidden=448, classes=10)


@model("fashion-cnn", input_shape=(1, 28, 28), classes=10)
def fashion_cnn() -> nn.Module:
    """CNN for 28x28 clothes or digits, 0.42 M parameters."""
    return SmallCnn(side=28, channels=(32, 64), hidden=128, classes=10)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm beside a path that changes nothing but size (He et al., 2016)."""

    def __init__(self, channels: int, wanted: int, stride: int) -> None:
        super().__init__()
        self.changes = nn.Sequential(
            nn.Conv2d(channels, wanted, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(wanted),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 3, padding=1, bias=False),
            nn.BatchNorm2d(wanted),
        )
        same = channels == wanted and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, wanted, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, wanted, H / stride, W / stride) of (N, channels, H, W)."""
        return functional.relu(self.changes(images) + self.shortcut(images))


class SmallResidualNet(nn.Module):
    """Three residual blocks behind a convolution, in which the channels double twice; with batch norm."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.blocks = nn.Sequential(
            ResidualBlock(channels, channels, 1),
            ResidualBlock(channels, 2 * channels, 2),
            ResidualBlock(2 * channels, 4 * channels, 2),
        )
        self.classifier = nn.Linear(4 * channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 1, H, W)."""
        scores: Tensor = self.classifier(self.blocks(self.stem(images)).mean((2, 3)))
        return scores


@model("fashion-resnet", input_shape=(1, 28, 28), classes=10)
def fashion_resnet() -> nn.Module:
    """Residual net with batch norm for 28x28 clothes or digits, 0.08 M parameters."""
    return SmallResidualNet(channels=16, classes=10)


class CausalBlock(nn.Module):
    """Attention to what came before, then an MLP, each behind a norm and beside a path that changes nothing (GPT-2).

    Attention is written out: GraSP needs its second derivative, which the fused kernels do not have.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.after_attention = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, T, width) of the same."""
        samples, length, width = hidden.shape
        together = self.queries_keys_values(self.before_attention(hidden))
        by_head = together.view(samples, length, 3 * self.heads, width // self.heads).transpose(1, 2)
        queries, keys, values = by_head.chunk(3, dim=1)
        later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        scores = (queries @ keys.mT / math.sqrt(width / self.heads)).masked_fill(later, -math.inf)
        attended = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        hidden = hidden + self.after_attention(attended)
        changed: Tensor = hidden + self.mlp(hidden)
        return changed


class ByteTransformer(nn.Module):
    """A small GPT on bytes."""

    def __init__(self, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(CausalBlock(width, heads) for _ in range(blocks)), nn.LayerNorm(width))
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (N, T, 256) of the byte that follows each of tokens (N, T)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        scores: Tensor = self.head(self.blocks(self.bytes(tokens) + self.places(places)))
        return scores


@model("byte-lm", input_shape=(64,), classes=256)
def byte_lm() -> nn.Module:
    """Language model on bytes, 64 in a row: a transformer of two blocks, 0.28 M parameters."""
    return ByteTransformer(length=64, width=96, heads=4, blocks=2)


class SingleTensor(nn.Module):
    """A square matrix and hardly any computation: its gradient is what micro-benchmarks of collectives send."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(side, side, bias=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """Scores (N, side) of numbers (N, 1)."""
        scores: Tensor = self.matrix(numbers.to(self.matrix.weight.dtype).expand(-1, self.matrix.in_features))
        return scores


@model("tensor-100mb", input_shape=(1,), classes=5000)
def tensor_100mb() -> nn.Module:
    """A single tensor of 100 MB, 25.0 M parameters, as in micro-benchmarks of collectives."""
    return SingleTensor(5000)


IMAGENET: dict[str, Any] = {"input_shape": (3, 224, 224), "classes": 1000}
CIFAR: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": 10}


@model("vgg19", **IMAGENET)
def vgg19() -> nn.Module:
    """VGG19 for ImageNet, torchvision's, 143.7 M parameters."""
    return _torchvision("vgg19")


@model("resnet18", **IMAGENET)
def resnet18() -> nn.Module:
    """ResNet18 for ImageNet, torchvision's, 11.7 M parameters."""
    return _torchvision("resnet18")


@model("resnet50", **IMAGENET)
def resnet50() -> nn.Module:
    """ResNet50 for ImageNet, torchvision's, 25.6 M parameters."""
    return _torchvision("resnet50")


@model("resnet152", **IMAGENET)
def resnet152() -> nn.Module:
    """ResNet152 for ImageNet, torchvision's, 60.2 M parameters."""
    return _torchvision("resnet152")


@model("vit-b-16", **IMAGENET)
def vit_b_16() -> nn.Module:
    """ViT-B/16 for ImageNet, torchvision's, 86.6 M parameters."""
    return _torchvision("vit_b_16")


@model("vgg19-cifar", **CIFAR)
def vgg19_cifar() -> nn.Module:
    """VGG19 for CIFAR: its convolutions and one linear layer, 20.0 M parameters."""
    layers = _needed("torchvision").models.vgg
    features: nn.Module = layers.make_layers(layers.cfgs["E"])
    for convolution in features.modules():
        if isinstance(convolution, nn.Conv2d):  # as torchvision does: else 16 layers pass no signal on
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512, 10))


@model("resnet18-cifar", **CIFAR)
def resnet18_cifar() -> nn.Module:
    """ResNet18 for CIFAR: a stem that keeps the resolution, 11.2 M parameters."""
    return _for_cifar("resnet18")


@model("resnet18-cifar100", input_shape=(3, 32, 32), classes=100)
def resnet18_cifar100() -> nn.Module:
    """ResNet18 for CIFAR-100: a stem that keeps the resolution, 11.2 M parameters."""
    return _for_cifar("resnet18", classes=100)


@model("resnet50-cifar", **CIFAR)
def resnet50_cifar() -> nn.Module:
    """ResNet50 for CIFAR: a stem that keeps the resolution, 23.5 M parameters."""
    return _for_cifar("resnet50")


@model("resnet152-cifar", **CIFAR)
def resnet152_cifar() -> nn.Module:
    """ResNet152 for CIFAR: a stem that keeps the resolution, 58.2 M parameters."""
    return _for_cifar("resnet152")


@model("vit-b-16-cifar", **CIFAR)
def vit_b_16_cifar() -> nn.Module:
    """ViT-B for CIFAR: patches of 4x4 pixels instead of 16x16, 85.2 M parameters."""
    size = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
    return _torchvision("VisionTransformer", image_size=32, patch_size=4, num_classes=10, **size)


def _for_cifar(name: str, classes: int = 10) -> nn.Module:
    """A ResNet whose stem is a 3x3 convolution without stride or pooling (He et al., 2016, section 4.2)."""
    resnet = _torchvision(name, num_classes=classes)
    resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()
    return resnet


class OnlyOutput(nn.Module):
    """A model of transformers that gives one of the tensors in its output, named ``field``.

    Args:
        causal: whether it is told that all tokens count; it would else look for it in values, which "meta" has not.
    """

    def __init__(self, network: nn.Module, field: str, causal: bool) -> None:
        super().__init__()
        self.network, self.field, self.causal = network, field, causal

    def forward(self, tokens: Tensor) -> Tensor:
        """That tensor, of tokens (N, T)."""
        mask = torch.ones_like(tokens) if self.causal else None
        output: Tensor = getattr(self.network(tokens, attention_mask=mask), self.field)
        return output


@model("bert-base", input_shape=(128,), classes=768)
def bert_base() -> nn.Module:
    """BERT-base without a task's head, transformers', 109.5 M parameters: a score is an entry of the pooled output."""
    known = _needed("transformers")
    return OnlyOutput(known.BertModel(known.BertConfig(attn_implementation="eager")), "pooler_output", causal=False)


@model("bert-large", input_shape=(384,), classes=1024)
def bert_large() -> nn.Module:
    """BERT-large without a task's head, at SQuAD's 384 tokens, 335.1 M parameters; scores as of BERT-base."""
    known = _needed("transformers")
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = known.BertConfig(attn_implementation="eager", **sizes)
    return OnlyOutput(known.BertModel(config), "pooler_output", causal=False)


@model("gpt2", input_shape=(128,), classes=50257)
def gpt2() -> nn.Module:
    """GPT-2 (small), transformers', 124.4 M parameters; its head shares the embedding's."""
    known = _needed("transformers")
    config = known.GPT2Config(attn_implementation="eager", use_cache=False)
    return OnlyOutput(known.GPT2LMHeadModel(config), "logits", causal=True)


def _torchvision(name: str, **settings: int) -> nn.Module:
    network: nn.Module = getattr(_needed("torchvision").models, name)(**settings)
    return network


def _needed(package: str) -> Any:
    """A package that only some models need.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"scenario: train.model: it is built by {package}, which cannot be imported here ({error}); "
            "pip install 'pacbench[paper]' brings it"
        ) from None
