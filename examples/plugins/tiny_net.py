"""A model of one's own: a residual MLP for 8x8 digits."""

from __future__ import annotations

from torch import Tensor, nn

from harness.workload.models import model


class Residual(nn.Module):
    """Adds to its input what two layers make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, width) of the same."""
        return hidden + self.layers(hidden)


@model(input_shape=(1, 8, 8), classes=10)
def tiny_net() -> nn.Module:
    """Residual MLP for 8x8 digits, 0.16 M parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 192), Residual(192), Residual(192), nn.Linear(192, 10))
