"""What a method leaves behind when it goes: its lane's group, whose name must not come again, and the model."""

from __future__ import annotations

import gc
import weakref

import torch
from ranks import SHAPES, Given
from torch.nn.parallel import DistributedDataParallel

import baselines


def names_of_lanes(count: int) -> list[str]:
    """The names of the process groups of so many methods' lanes, of which each goes before the next comes."""
    names = []
    for _ in range(count):
        ddp = DistributedDataParallel(Given(*SHAPES))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        state = baselines.get("powersgd").State()
        with baselines.register(ddp, state, optimizer=optimizer):
            names.append(state.lane.process_group.group_name)
    return names


def test_no_group_has_the_name_of_one_that_is_gone(on_ranks) -> None:
    """A rank would find in the store where its peers listened for that one, and connect to nobody."""
    one, other = on_ranks(2, names_of_lanes, 3)
    assert one == other
    assert len(set(one)) == 3


def is_freed(name: str) -> bool:
    """Whether a DDP model is freed once its method is gone."""
    ddp = DistributedDataParallel(Given(*SHAPES))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    with baselines.register(ddp, baselines.get(name).State(), optimizer=optimizer):
        ddp([torch.ones(shape) for shape in SHAPES]).backward()
        optimizer.step()
    watch = weakref.ref(ddp)
    del ddp, optimizer
    gc.collect()
    return watch() is None


def test_a_model_is_freed_when_its_method_is_gone(on_ranks) -> None:
    for name in ("dense", "powersgd"):
        assert on_ranks(2, is_freed, name) == [True, True], name
