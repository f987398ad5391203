"""What faults are made with does what it says, to a process of no importance."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import ordeal
import psutil
import pytest
from memory_group import MemoryGroup
from preloaded import Orders, Preloaded
from test_faults import mounted

ALLOCATES = "import sys; sys.stdin.readline(); held = [bytearray(b'x' * (1 << 20)) for _ in range(64)]"


@pytest.mark.parametrize(("most_bytes", "code", "kills"), [(1 << 20, -signal.SIGKILL, 1), (1 << 28, 0, 0)])
def test_the_kernel_kills_whoever_needs_more_than_a_group_may_have(most_bytes: int, code: int, kills: int) -> None:
    with MemoryGroup(most_bytes) as group:
        process = subprocess.Popen([sys.executable, "-c", ALLOCATES], stdin=subprocess.PIPE, text=True)
        group.take(psutil.Process(process.pid))
        process.communicate("go on\n", timeout=60)
        assert process.returncode == code
        assert group.kills() == kills


def test_a_fault_that_finds_nobody_is_tried_again_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordeal, "STRUCK", Counter())
    late = iter([False, False, True])
    ordeal.try_to_strike(lambda: next(late))
    with pytest.raises(pytest.fail.Exception, match="whoever was meant had ended each time"):
        ordeal.try_to_strike(lambda: False)
    assert ordeal.STRUCK == {3: 1, 0: 1}


LOOKS_AND_WRITES = """
import datetime, errno, socket, struct, sys, time
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
receiver.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
for _ in range(2):
    sys.stdin.readline()
    time.sleep(0.1)  # the kernel begins to stamp some time after it was asked
    receiver.sendto(b"now", receiver.getsockname())
    _, ((_, _, stamp),), _, _ = receiver.recvmsg(10, 64)
    clocks = [time.time(), datetime.datetime.now().timestamp(), struct.unpack("qq", stamp)[0]]
    ends = []
    for file in sys.argv[1:]:
        try:
            with open(file, "w") as handle:
                handle.write("something")
            ends.append(0)
        except OSError as error:
            ends.append(error.errno)
    print(time.monotonic(), *clocks, *ends, flush=True)
"""


def test_orders_set_the_clock_and_keep_files_from_being_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    system = Preloaded(run)
    script = [LOOKS_AND_WRITES, str(run / "file"), str(tmp_path / "elsewhere")]
    # A process that a child of the run starts, and with an environment of its own.
    command = [*mounted(system.setup()), "env", "-i", sys.executable, "-c", *script]
    process = subprocess.Popen(command, cwd=run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    seen = []
    for orders in (Orders(), Orders(step_s=-86400, write_errno=errno.EDQUOT)):
        system.order(orders)
        process.stdin.write("look\n")
        process.stdin.flush()
        seen.append([float(each) for each in process.stdout.readline().split()])
    process.communicate(timeout=60)
    (before, *clocks, own, others), (after, *set_clocks, own_now, others_now) = seen
    assert all(abs(now - then + 86400 - (after - before)) < 30 for then, now in zip(clocks, set_clocks, strict=True))
    assert (own, own_now, others, others_now) == (0, errno.EDQUOT, 0, 0)
    assert not Path("/etc/ld.so.preload").exists(), "the host's own has stayed as it was"
