"""Any command over real namespaces: told its place, heard, counted, and ended to its last process."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from host import run_pacbench, wait_until

from harness.cluster.netns import NetnsCluster
from harness.errors import MeasurementError
from harness.messages import Output
from harness.network.topology import Topology
from harness.record.execution import Execution, LinkTraffic
from harness.run.command import Job, execute
from harness.scenario.links import Link

pytestmark = [pytest.mark.netns, pytest.mark.job]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

PYTHON = [sys.executable, "-c"]
TWO = ("exec", "--on", "netns", "--workers", "2", "--out", "record")

PAIR = Topology(workers=2, link=Link.model_validate({"rate": "200mbit"}))

SHOW = """
import json, os
print(json.dumps([dict(os.environ), os.getcwd()]), flush=True)
"""

OURS = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_IB_DISABLE"),
    *("PACBENCH_NODE", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"),
}

SEND = """
import os, socket, sys
amount = 4_000_000
if os.environ["LOCAL_RANK"] != "0":
    pass
elif os.environ["RANK"] == "0":
    with socket.create_server(("w0", 7000)) as server:
        print("ready", flush=True)
        peer, _ = server.accept()
        got = 0
        while chunk := peer.recv(1 << 16):
            got += len(chunk)
    print(f"got {got} from {socket.gethostbyaddr(peer.getpeername()[0])[0]}")
else:
    for _ in range(500):
        try:
            with socket.create_connection(("w0", 7000)) as peer:
                peer.sendall(bytes(amount))
            break
        except ConnectionRefusedError:
            __import__("time").sleep(0.02)
"""

GLOO = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
told = [None] * dist.get_world_size()
dist.all_gather_object(told, dist.get_rank())
ones = torch.ones(250_000)
dist.all_reduce(ones)
print("sum", int(ones[0]), told)
dist.destroy_process_group()
"""

DDP = """
import os
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(500, 1000))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(4):
    optimizer.zero_grad()
    torch.manual_seed(100 * step + dist.get_rank())
    model(torch.randn(8, 500)).square().mean().backward()
    optimizer.step()
print("weights", round(float(sum(p.double().sum() for p in model.parameters())), 9))
dist.destroy_process_group()
"""

LEAVES_A_CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print("started", flush=True)
open("started-" + os.environ["RANK"], "w").close()
if os.environ["RANK"] == os.environ.get("CRASHES"):
    while not os.path.exists("started-0"):  # what has not begun cannot be ended
        time.sleep(0.01)
    sys.exit(7)
time.sleep(600)
"""

DEAF = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("started", flush=True)
time.sleep(600)
"""


def record(folder: Path) -> Execution:
    return Execution.load(folder / "record")


def way(found: Execution, link: str, direction: str) -> LinkTraffic:
    (only,) = (each for each in found.links if (each.link, each.direction) == (link, direction))
    return only


def said(done: subprocess.CompletedProcess[str], worker: str) -> str:
    """What a worker has printed, without its name."""
    return "\n".join(line.partition(" | ")[2] for line in done.stdout.splitlines() if line.startswith(f"{worker} | "))


def run(
    cluster: NetnsCluster, folder: Path, *command: str, per_node: int = 1, timeout_s: float | None = None, **env: str
) -> tuple[dict[int, list[str]], Execution]:
    """Run a command as the verb does, on a cluster that is there already: what each rank printed, and the record."""
    printed: dict[int, list[str]] = {}

    def hear(output: Output) -> None:
        printed.setdefault(output.rank, []).extend(output.lines)

    job = Job(command, folder, {**os.environ, **env}, per_node, timeout_s)
    found = execute(cluster, PAIR, job, hear, ["pacbench", "exec"])
    return dict(sorted(printed.items())), found


@dataclass(frozen=True)
class Executed:
    """A command that shows what it was given, and sends 4 MB from the second worker to the first."""

    folder: Path
    environment: Mapping[str, str]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    folder = tmp_path_factory.mktemp("executed")
    (folder / "send.py").write_text(SHOW + SEND)
    before = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    odd = {
        "A_VALUE": "of \udcff any = signs\n",
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:",
        "PATH": "/usr/bin::/bin",
    }
    command = (*TWO, "--rate", "20mbit", "--per-node", "2", "--", sys.executable, "send.py")
    done = run_pacbench(folder, *command, prefix=("env", "-u", "OMP_NUM_THREADS"), **odd)
    assert done.returncode == 0, done.stderr
    return Executed(folder, {**before, **odd}, done)


def test_a_command_has_the_users_environment_and_folder_and_its_place(executed: Executed) -> None:
    first_lines = {name: said(executed.done, name).split("\n")[0] for name in ("w0.0", "w0.1", "w1.0", "w1.1")}
    seen = {name: json.loads(line) for name, line in first_lines.items()}
    for environment, folder in seen.values():
        assert folder == str(executed.folder)
        assert {name: value for name, value in environment.items() if name not in OURS} == {
            name: value for name, value in executed.environment.items() if name not in OURS
        }
    places = [[seen[name][0][key] for key in ("RANK", "LOCAL_RANK", "GROUP_RANK")] for name in seen]
    assert places == [["0", "0", "0"], ["1", "1", "0"], ["2", "0", "1"], ["3", "1", "1"]]
    last = seen["w1.1"][0]
    assert (last["WORLD_SIZE"], last["LOCAL_WORLD_SIZE"], last["PACBENCH_NODE"]) == ("4", "2", "1")
    assert last["GLOO_SOCKET_IFNAME"] == last["NCCL_SOCKET_IFNAME"] == last["TP_SOCKET_IFNAME"] == "eth0"
    assert last["OMP_NUM_THREADS"] == "1"
    assert record(executed.folder).ending == "finished"


def test_threads_that_the_user_asks_for_are_his(cluster: NetnsCluster, tmp_path: Path) -> None:
    printed, _ = run(cluster, tmp_path, "sh", "-c", "echo $OMP_NUM_THREADS ${RANK} {RANK}", OMP_NUM_THREADS="3")
    assert printed == {0: ["3 0 0"], 1: ["3 1 1"]}


def test_bytes_names_and_rates_are_those_of_the_link(executed: Executed) -> None:
    assert said(executed.done, "w0.0").split("\n")[1:] == ["ready", "got 4000000 from w1"]
    found = record(executed.folder)
    for link, direction in (("w1", "up"), ("w0", "down")):
        assert way(found, link, direction).payload_bytes == pytest.approx(4e6, rel=0.1)
        assert way(found, link, direction).wire_bytes == pytest.approx(4e6 * 1514 / 1448, rel=0.1)
    assert way(found, "w0", "up").wire_bytes < 4e5, "acknowledgements alone"
    samples = way(found, "w1", "up").samples
    assert samples[-1].wire_bytes == way(found, "w1", "up").wire_bytes
    assert all(one.time_s < two.time_s for one, two in itertools.pairwise(samples))
    assert [use.exit_codes for use in found.uses] == [{0: 0, 1: 0}, {2: 0, 3: 0}]
    assert all(use.cpu_s and use.peak_memory_bytes and use.peak_memory_bytes > 5e6 for use in found.uses)
    assert found.after is not None
    assert found.before.complaints() == found.after.complaints() == list(found.drift) == []
    page = (executed.folder / "record" / "exec.html").read_text()
    assert "send.py" in page
    assert not re.search(r'(src|href)="(?!data:|#|plots/)', page), "nothing is fetched"


def test_a_gloo_program_that_is_no_training(cluster: NetnsCluster, tmp_path: Path) -> None:
    (tmp_path / "gloo.py").write_text(GLOO)
    printed, found = run(cluster, tmp_path, sys.executable, "gloo.py", per_node=2)
    assert printed == {rank: ["sum 4 [0, 1, 2, 3]"] for rank in range(4)}
    assert found.ending == "finished"
    up = [way(found, link, "up").payload_bytes for link in ("w0", "w1")]
    assert all(0.9 * 1e6 < each < 4e6 for each in up), (
        "a megabyte crosses each link at least once, and no pair more often"
    )


def test_a_plain_ddp_script_by_torchrun_inside(pacbench: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(DDP)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", "{PACBENCH_NODE}")
    meet = ("--master-addr", "{MASTER_ADDR}", "--master-port", "{MASTER_PORT}")
    done = pacbench(*TWO, "--rate", "200mbit", "--output", "printed", "--", *torchrun, *meet, "train.py")
    assert done.returncode == 0, done.stderr
    printed = [(tmp_path / "printed" / f"{name}.out").read_text() for name in ("w0", "w1")]
    assert printed[0].startswith("weights ")
    assert printed[0] == printed[1], "they have learnt the same"
    assert done.stdout == ""
    payload = way(record(tmp_path), "w0", "up").payload_bytes
    # A ring of two sends a model's gradients once a step, and DDP the model's first parameters once.
    assert 4 * 4 * 501_000 < payload < 1.1 * 5 * 4 * 501_000


def test_a_rank_that_crashes_ends_the_others_and_gives_its_code(pacbench: Run, tmp_path: Path) -> None:
    done = pacbench(*TWO, "--", *PYTHON, LEAVES_A_CHILD, CRASHES="1")
    assert done.returncode == 7, done.stderr
    assert "rank 1 on w1: exit code 7" in done.stderr
    found = record(tmp_path)
    assert (found.ending, found.exit_code, found.after) == ("failed", 7, None)
    assert found.uses[1].exit_codes == {1: 7}
    assert found.uses[0].exit_codes == {0: -signal.SIGTERM}


def test_a_command_ended_by_a_signal_gives_the_shells_code(cluster: NetnsCluster, tmp_path: Path) -> None:
    _, found = run(cluster, tmp_path, "sh", "-c", "kill -KILL $$")
    assert (found.ending, found.exit_code) == ("failed", 128 + signal.SIGKILL)


def test_time_that_is_up_ends_what_does_not_listen(cluster: NetnsCluster, tmp_path: Path) -> None:
    _, found = run(cluster, tmp_path, *PYTHON, DEAF, timeout_s=2.0)
    assert (found.ending, found.reason, found.exit_code) == ("timed out", "after 2 s", 124)
    assert [use.exit_codes for use in found.uses] == [{0: -signal.SIGKILL}, {1: -signal.SIGKILL}]
    assert found.after is not None
    assert found.after.complaints() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    process = start(*TWO, "--", "sh", "-c", f"sleep 987{os.getpid()} & echo started; wait")
    assert process.stdout
    begun = 0
    while begun < 2:
        begun += "started" in process.stdout.readline()

    def below() -> list[psutil.Process]:  # others may have universes here, too
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(process.pid).children(recursive=True)
            return found if sum("sleep" in each.name() for each in found) >= 2 else []
        return []

    started = wait_until(below)
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: not psutil.wait_procs(started, timeout=0)[1])
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep 987{os.getpid()}" not in shown
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert record(tmp_path).ending == "interrupted"


def test_a_program_without_its_interpreter_is_refused_in_one_line(cluster: NetnsCluster, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(MeasurementError, match=rf"^w[01]: {script}: it cannot be run: No such file or directory$"):
        run(cluster, tmp_path, str(script))


def test_what_a_rank_leaves_behind_is_ended_after_a_grace(cluster: NetnsCluster, tmp_path: Path) -> None:
    leaves = "setsid sleep 600 >/dev/null 2>&1 & readlink /proc/self; echo $$"
    printed, found = run(cluster, tmp_path, "sh", "-c", leaves)
    numbers = [int(text) for text in printed[0]]
    assert abs(numbers[0] - numbers[1]) < 10, "/proc shows the processes that a command can name"
    assert found.ending == "finished"


def test_tcp_waits_as_many_times_longer_as_links_are_slower(cluster: NetnsCluster, tmp_path: Path) -> None:
    heard: list[Output] = []
    job = Job(["/bin/sh", "-c", "PATH=$PATH:/usr/sbin:/sbin ip route show default"], tmp_path, os.environ)
    assert execute(cluster, PAIR.slowed(4.0), job, heard.append, ["pacbench"]).exit_code == 0
    routes = [line for said in heard for line in said.lines]
    assert len(routes) == 2
    assert all(re.search(r"\brto_min (lock )?800ms\b", route) for route in routes), routes
