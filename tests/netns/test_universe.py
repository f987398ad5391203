"""Real namespaces: what is asked is what is there, measured; and what cannot be is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from containers import NODE

from harness import programs
from harness.cluster.netns import NetnsCluster, universe_command
from harness.errors import MeasurementError, UsageError
from harness.messages import Build, CeilingMeasured, Exit, Failed, Log
from harness.network.topology import Topology
from harness.scenario.links import Link
from harness.scenario.schema import NO_LIMITS, Train

pytestmark = pytest.mark.netns

ANY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
"""Not root, and without a single capability."""

NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

NO_USER_NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"',
    "sh",
)
"""Inside a user namespace of its own, where no further one may be made; the host's setting stays."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[NetnsCluster]:
    with NetnsCluster() as opened:
        yield opened


def star(workers: int, rate: str) -> Topology:
    return Topology(workers=workers, link=Link.model_validate({"rate": rate}))


@pytest.mark.parametrize(("workers", "rate"), [(3, "37mbit"), (4, "100mbit"), (8, "20mbit"), (2, "8kbit")])
def test_every_direction_of_every_link_has_the_rate_that_was_asked(
    cluster: NetnsCluster, workers: int, rate: str
) -> None:
    readings = cluster.use(star(workers, rate))
    assert [(link.worker, link.direction) for link in readings.links] == [
        (worker, direction) for direction in ("up", "down") for worker in range(workers)
    ]
    assert readings.complaints() == []
    assert 0 < readings.rtt_median_s < 5e-4


def test_an_unchanged_network_is_not_measured_again(cluster: NetnsCluster) -> None:
    first = cluster.use(star(2, "50mbit"))
    assert cluster.use(star(2, "50mbit")) is first


def test_a_cluster_that_is_entered_again_builds_again() -> None:
    cluster = NetnsCluster()
    for _ in range(2):
        with cluster:
            cluster.use(star(2, "50mbit"))
            assert {traffic.node for traffic in cluster.count()} == {"w0", "w1", "switch"}


def test_a_link_that_is_not_what_was_asked_is_found_by_measuring(cluster: NetnsCluster) -> None:
    cluster._build(star(2, "50mbit"), NO_LIMITS)
    found = json.loads(cluster._probe("probe_links", star(2, "100mbit")).readings)
    measured = [link["rate_bps_measured"] for link in found["links"]]
    assert all(0.9 * 50e6 < rate < 1.1 * 50e6 for rate in measured)


def test_a_rate_beyond_the_machine_is_refused_with_what_it_carries(cluster: NetnsCluster) -> None:
    with pytest.raises(UsageError, match=r"link\.rate: found '1e\+03 Gbit/s'|link\.rate: found '1000 Gbit/s'"):
        cluster.check(star(2, "1000gbit"))


def test_the_ceiling_is_what_gets_through_and_not_what_lies_in_buffers(cluster: NetnsCluster) -> None:
    limited = star(2, "20mbit")
    cluster._build(limited, NO_LIMITS)
    found = cluster._probe("probe_ceiling", limited)
    assert isinstance(found, CeilingMeasured)
    assert 0 < found.ceiling_bps < 1.1 * 20e6


def test_a_congestion_control_that_the_kernel_lacks_is_refused_with_those_it_has(cluster: NetnsCluster) -> None:
    link = Link.model_validate({"rate": "50mbit", "congestion_control": "carrier_pigeon"})
    with pytest.raises(UsageError, match=r"congestion_control: found 'carrier_pigeon'.*reno"):
        cluster.check(Topology(workers=2, link=link))


def test_a_task_that_fails_is_reported_with_its_log(cluster: NetnsCluster) -> None:
    cluster.use(star(2, "50mbit"))
    messages = list(cluster.run("train", {"trial": {}, "port": 29999}, timeout_s=60))
    assert {m.node for m in messages if isinstance(m, Failed) and "ValidationError" in m.reason} == {"w0", "w1"}
    assert any("Traceback" in m.text for m in messages if isinstance(m, Log))
    assert sorted(m.code for m in messages if isinstance(m, Exit)) == [1, 1]


def test_a_data_set_that_is_not_there_is_a_usage_error(cluster: NetnsCluster) -> None:
    with pytest.raises(UsageError, match=r"train\.data_dir: found '/nowhere'"):
        cluster.preload(Train(dataset="fashion-mnist", data_dir="/nowhere"))


def test_a_request_that_fails_leaves_the_cluster_usable(cluster: NetnsCluster) -> None:
    with pytest.raises(MeasurementError):
        cluster._agent.request(Build(topology={"workers": 2}), 30)
    assert cluster.use(star(2, "50mbit")).complaints() == []


def test_a_build_that_fails_midway_leaves_nothing_in_the_way_of_the_next_one(cluster: NetnsCluster) -> None:
    """Its nodes and links are there already when an interface refuses such segments."""
    refused = star(3, "50mbit").model_copy(update={"most_segments": 10**9})
    for _ in range(2):
        with pytest.raises(MeasurementError, match="gso_max_segs"):
            cluster._build(refused, NO_LIMITS)
    cluster._build(star(2, "50mbit"), NO_LIMITS)


def test_a_containers_interface_has_nothing_of_an_earlier_topology() -> None:
    """A queue that is replaced by one of its kind would be changed: only what is said of it."""
    links = [json.dumps({"rate": rate}) for rate in ("20mbit", "1gbit", "20mbit", "unshaped")]
    done = programs.run(
        [*universe_command(), sys.executable, "-c", NODE, *links], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kinds, handles, segments = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert kinds == ("tbf", "tbf", "tbf", "pfifo")
    assert len(set(handles)) == 4
    assert segments == ("6", "65535", "6", "65535")


def probe_json(pacbench, *arguments, prefix=()):  # type: ignore[no-untyped-def]
    done = pacbench("probe", "--json", *arguments, prefix=prefix)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WAITS_AT_ITS_END = """
import atexit, time
from harness.cluster import universe
atexit.register(time.sleep, 3600)
universe.main()
"""


def test_a_universe_ends_with_its_harness_whatever_python_would_wait_for() -> None:
    command = [*universe_command(), sys.executable, "-c", WAITS_AT_ITS_END]
    assert subprocess.run(command, input=b"", timeout=60).returncode == 0


def test_probe_needs_no_privileges(pacbench) -> None:  # type: ignore[no-untyped-def]
    report = probe_json(pacbench, "--workers", "2", "--rate", "100mbit", prefix=ANY_USER)
    assert {"worker", "direction", "rate_bps_asked", "rate_bps_measured"} <= set(report["links"][0])
    assert report["rtt_s"]["median"] > 0
    assert report["bring_up_s"] > 0
    # Two workers' ring cannot beat its bound by more than the token bucket's first gulp.
    assert report["all_reduce"]["ratio_to_ring_bound"] > 0.98


def test_root_needs_no_user_namespaces(pacbench) -> None:  # type: ignore[no-untyped-def]
    report = probe_json(pacbench, "--workers", "2", "--rate", "100mbit", prefix=NO_USER_NAMESPACES)
    assert len(report["links"]) == 4


def test_without_either_one_line_says_what_would_help(pacbench) -> None:  # type: ignore[no-untyped-def]
    done = pacbench("probe", "--on", "netns", prefix=(*NO_USER_NAMESPACES, *NO_CAPABILITIES))
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "user namespaces are not allowed" in done.stderr
    assert "sudo" in done.stderr


def test_doctor_says_this_machine_is_able(pacbench) -> None:  # type: ignore[no-untyped-def]
    done = pacbench("doctor", "--json", PATH="/usr/bin:/bin")  # of a user: no folder of the system's own programs
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert all(checks[program]["ok"] for program in ("ip", "tc", "ss", "unshare"))
    assert checks["private networks"]["ok"]
    assert checks["qdisc tbf"]["found"] == "works"
    assert "Gbit/s" in checks["ceiling"]["found"]
