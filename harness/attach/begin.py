"""The first that happens in a script's process: see which modules are to be waited for."""

from __future__ import annotations

import sys
from types import ModuleType

from harness.attach.imports import after_import
from harness.attach.orders import Orders, read_orders
from harness.start import OwnPackages


def begin() -> None:
    """Wait for torch, and for every source of random numbers that is to be seeded."""
    orders = read_orders()
    if orders is None:
        return
    sys.meta_path.append(OwnPackages)  # the script's own packages come first
    if orders.seed is not None:
        _seed_when_imported(orders.seed)
    after_import("torch", lambda torch: _on_torch(torch, orders))


def _seed_when_imported(seed: int) -> None:
    after_import("random", lambda module: module.seed(seed))
    after_import("numpy.random", lambda module: module.seed(seed))


def _on_torch(torch: ModuleType, orders: Orders) -> None:
    """Torch is whole from here on: none of its modules is half imported."""
    if orders.seed is not None:
        torch.manual_seed(orders.seed)
    from harness.attach.training import attach

    attach(orders)
