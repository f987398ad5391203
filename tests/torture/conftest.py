"""What the torture tier shares: the seed by which faults strike, a run that nothing disturbs, and a run that is struck.

``nox -s torture`` needs an engine and its image, and user-mode-linux. ``--few N`` takes some of the faults by chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from host import host_network, universes, wait_until
from ordeal import Undisturbed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="when and whom faults strike: printed, else by chance")
    parser.addoption("--few", type=int, default=None, help="how many faults to try, chosen by the seed; else all")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(10_000)


def pytest_report_header(config: pytest.Config) -> str:
    return f"torture: --seed {config.option.seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.few is not None and len(items) > config.option.few:
        chosen = random.Random(config.option.seed).sample(range(len(items)), config.option.few)
        config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place not in chosen])
        items[:] = [items[place] for place in sorted(chosen)]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The same for a fault whichever others are tried."""
    return random.Random(f"{request.config.option.seed} {request.node.name}")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run, by kind of cluster, as it is where nothing happens: made when it is first asked for."""
    return Undisturbed(tmp_path_factory)


@pytest.fixture(autouse=True)
def _nothing_is_left(processes_are_known: None) -> Iterator[None]:
    """Around every fault: no process of ours stays, whose namespaces would; and the host's network is not touched."""
    before = host_network()
    yield
    wait_until(lambda: not universes())
    assert host_network() == before
