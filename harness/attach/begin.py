"""The first that happens in a script's process: see which modules are to be waited for."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

from harness.attach.imports import after_import
from harness.attach.orders import SEEDS, Orders, read_orders
from harness.start import OwnPackages


def begin() -> None:
    """Wait for torch, and for every source of random numbers that is to be seeded."""
    orders = read_orders()
    if orders is None:
        return
    sys.meta_path.append(OwnPackages)  # the script's own packages come first
    if orders.seed is not None:
        _seed_when_imported(orders.seed, orders.shifts_seeds)
    after_import("torch", lambda torch: _on_torch(torch, orders))


def _seed_when_imported(seed: int, shifts: bool) -> None:
    for name, parameter in (("random", "a"), ("numpy.random", "seed")):
        after_import(name, functools.partial(_seed, name="seed", parameter=parameter, seed=seed, shifts=shifts))


def _seed(module: ModuleType, name: str, parameter: str, seed: int, shifts: bool) -> None:
    """Begin a module's randomness, by its function of that name, which takes a seed first, or by the parameter's name.

    Args:
        shifts: whether seeds that the script gives are moved by this one.
    """
    plain = getattr(module, name)
    plain(seed)
    if not shifts:
        return

    def moved(given: object) -> object:
        return (given + seed) % SEEDS if isinstance(given, int) else given

    @functools.wraps(plain)
    def shifted(*given: object, **named: object) -> object:
        if parameter in named:
            named[parameter] = moved(named[parameter])
        return plain(*map(moved, given[:1]), *given[1:], **named)

    setattr(module, name, shifted)


def _on_torch(torch: ModuleType, orders: Orders) -> None:
    """Torch is whole from here on: none of its modules is half imported."""
    if orders.seed is not None:
        _seed(torch, "manual_seed", "seed", orders.seed, orders.shifts_seeds)
    from harness.attach.training import attach

    attach(orders)
