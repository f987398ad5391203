"""Models that trials train. To add one, write a function that builds it and put ``@model`` above it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import UsageError


@dataclass(frozen=True)
class Model:
    """A model by name: how to build it, and the shape of one of its inputs."""

    name: str
    summary: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    classes: int

    def build_from(self, checkpoint: Path) -> nn.Module:
        """The model with the weights of a file that holds its ``state_dict()``.

        Raises:
            UsageError: the file cannot be read, or belongs to another model.
        """
        model = self.build()
        try:
            weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
            model.load_state_dict(weights)
        except Exception as error:  # reading what is no such file may raise anything
            reason = textwrap.shorten(str(error) or type(error).__name__, 160)
            raise UsageError.at(
                "scenario", "train.checkpoint", str(checkpoint), f"a file with the state_dict of {self.name} ({reason})"
            ) from None
        return model

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of its trainable parameters. Nothing is allocated."""
        with torch.device("meta"):
            return [tuple(parameter.shape) for parameter in self.build().parameters() if parameter.requires_grad]

    def flops_per_sample(self) -> int:
        """Floating point operations of a forward and backward pass on one sample. Nothing is computed."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            self.build()(torch.empty(1, *self.input_shape)).sum().backward()
        return int(counter.get_total_flops())


MODELS: dict[str, Model] = {}


def model(
    name: str, *, input_shape: tuple[int, ...], classes: int
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enter the decorated builder under ``name``; the first line of its docstring describes it in lists."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        summary = (build.__doc__ or "").partition("\n")[0]
        MODELS[name] = Model(name, summary, build, input_shape, classes)
        return build

    return enter


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
