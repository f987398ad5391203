"""What the torture tier shares: the seed by which faults strike, a run that nothing disturbs, and a run that is struck.

``nox -s torture`` needs root, a compiler, an engine that ``.ci/engine`` has started with its image, and
user-mode-linux. ``--few N`` takes some of the faults by chance, of as many kinds as can be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from drawing import drawn
from host import host_network, universes, wait_until
from ordeal import STRUCK, Undisturbed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="when and whom faults strike: printed, else by chance")
    parser.addoption("--few", type=int, default=None, help="how many faults to try, chosen by the seed; else all")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(10_000)


def pytest_report_header(config: pytest.Config) -> str:
    return f"torture: --seed {config.option.seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a few faults. What is no fault is tested in any case."""
    if config.option.few is None:
        return
    faults = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("fault"))}
    chosen = drawn([*faults.values()], config.option.few, random.Random(config.option.seed))
    left_out = faults.keys() - {[*faults][place] for place in chosen}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults struck, of those that are to strike a run under way."""
    if tried := STRUCK.total():
        later = tried - STRUCK[0] - STRUCK[1]
        told = f"{tried - STRUCK[0]} of {tried} faults struck while their run was under way"
        terminalreporter.write_line(f"torture: {told}, {later} of them not at the first try")


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
