"""What a scheduler tells each rank, and how ranks know each other."""

from __future__ import annotations

import pytest

from harness.cluster.hosts import greeting
from harness.cluster.hosts.cluster import HostsCluster
from harness.cluster.hosts.launch import Launch, first_host
from harness.errors import UsageError
from harness.network.topology import Topology
from harness.plan.plan import make
from harness.scenario.links import Link
from harness.scenario.load import load

CONTRACT = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "h1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "SLURM_JOB_NODELIST": "h[07-09],x", "SLURM_JOB_ID": "10012"}


def test_torchruns_contract_is_read_and_slurms_where_that_is_absent() -> None:
    launch = Launch.read(CONTRACT)
    assert (launch.rank, launch.world_size, launch.leader, launch.port) == (2, 4, "h1", 29501)
    launch = Launch.read(SLURM)
    assert (launch.rank, launch.world_size, launch.leader, launch.port) == (1, 3, "h07", 20_013)
    assert Launch.read({**SLURM, **CONTRACT}).rank == 2
    for damaged in ({}, {**CONTRACT, "RANK": "4"}, {**CONTRACT, "WORLD_SIZE": "x"}):
        with pytest.raises(UsageError, match="^environment: "):
            Launch.read(damaged)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("h1", "h1"), ("h[1-3]", "h1"), ("h[01-03,7],login", "h01"), ("a-[5]-x,b", "a-5-x"), ("one,two", "one")],
)
def test_the_first_of_slurms_hosts(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_an_answer_to_one_side_is_none_to_the_other() -> None:
    assert greeting.proof(b"a", "n", "rank") != greeting.proof(b"b", "n", "rank")
    assert greeting.proof(b"a", "n", "rank") != greeting.proof(b"a", "n", "leader")


def test_time_is_never_dilated_on_hosts() -> None:
    """Their links' own delays would stay what they are."""
    cluster = HostsCluster(Launch.read(CONTRACT), shape=True)
    case = make(load("quickstart", ["rounds=1"]), cluster.name).trials[0].case
    assert case.chooses_dilation
    assert not cluster.machine.finds_dilation(case)
    asked = Topology(workers=3, link=Link.model_validate({"rate": "50mbit"}))
    cluster.check(asked)
    with pytest.raises(UsageError, match=r"^scenario: train\.dilation: found 2\.0; allowed: 1, or auto, which is 1 on"):
        cluster.check(asked.slowed(2.0))
