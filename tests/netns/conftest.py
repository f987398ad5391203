"""What the netns tier shares: the command line as users run it, and a look at what is on the host."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import pytest
from host import PACBENCH, host_network, run_pacbench, universes, wait_until
from typing_extensions import Self

from harness.cluster.netns import NetnsCluster
from harness.record.store import Store
from harness.run import session
from harness.run.planning import plan_run
from harness.run.session import Watcher


@pytest.fixture(autouse=True, scope="module")
def _host_is_left_as_it_was(processes_are_known: None) -> Iterator[None]:
    """Around every file of tests: no process stays, and the host's network is not touched."""
    before = host_network()
    yield
    wait_until(lambda: not universes())
    assert host_network() == before


class SharedCluster(NetnsCluster):
    """Stays when who uses it leaves: what one test after another runs starts no universe, and imports no torch."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self) -> None:
        super().__enter__()

    def end(self) -> None:
        super().__exit__(None, None, None)


@pytest.fixture(scope="module")
def cluster(_host_is_left_as_it_was: None) -> Iterator[NetnsCluster]:
    """One universe for a file of tests."""
    shared = SharedCluster()
    shared.start()
    yield shared
    shared.end()


@pytest.fixture
def run_scenario(cluster: NetnsCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Run a scenario as the verb does, in an empty folder and the universe that is there already, without a report.

    All trials must finish, but for so many as are ``failing``.
    """
    monkeypatch.chdir(tmp_path)

    def run(
        scenario: str,
        settings: Sequence[str] = (),
        methods: Sequence[str] = (),
        rounds: int = 1,
        out: str | None = "run",
        watcher: Watcher | None = None,
        failing: int = 0,
    ) -> Store:
        plan = plan_run(scenario, cluster, settings, methods, rounds)
        store = session.open_store(plan, tmp_path / out if out else None)
        result = session.run(plan, store, cluster, ["pytest"], watcher)
        assert result.failed == failing, result.trials["reason"].tolist()
        return store

    return run


@pytest.fixture
def pacbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder."""
    return partial(run_pacbench, tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in an empty folder and go on."""

    def popen(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PACBENCH, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )

    return popen
