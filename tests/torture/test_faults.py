"""Whatever happens to a run: one line, nothing of ours left, nothing finished lost, and all that comes later right."""

from __future__ import annotations

import errno
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from drawing import of_kind
from host import wait_until
from memory_group import MemoryGroup
from ordeal import STRUCK, Ordeal, Undisturbed, check_what_was_kept, done_trials, try_to_strike
from preloaded import Orders, Preloaded

from harness.network.addresses import address
from harness.record.store import Store

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

Strike = Callable[[Ordeal], object]

ENDED_WELL, FAILED, INTERRUPTED = 0, 5, 130
STOPPED_S = 5.0


def verified(ordeal: Ordeal) -> set[str]:
    """Trials that are done, on links that were seen to be what they were afterwards."""
    if not Store.is_run(ordeal.store):
        return set()
    trials = done_trials(ordeal.store)
    return set(trials.loc[trials["verified_after"].notna() & trials["drift"].isna(), "trial_id"])


def survive(
    ordeal: Ordeal,
    undisturbed: Undisturbed,
    strike: Strike,
    codes: set[int],
    prepare: Callable[[], object] = lambda: None,
) -> int:
    """Start a run, strike it, and look at what is left and what comes after.

    Args:
        codes: exit codes that the run may end with. It may always end well: whoever was meant was perhaps about to end.
        prepare: undoes the strike, before each run.

    Returns:
        The exit code.
    """
    calm, code = undisturbed.hashes(ordeal), ENDED_WELL

    def attempt() -> bool:
        nonlocal code
        prepare()
        ordeal.start_anew()
        ordeal.wait_for_a_moment()
        before, struck = verified(ordeal), False
        with suppress(psutil.NoSuchProcess, ProcessLookupError, StopIteration):  # whoever was meant has ended by itself
            is_under_way = not ordeal.has_ended()
            strike(ordeal)
            struck = is_under_way
        code = ordeal.end()
        assert code in codes | {ENDED_WELL}, ordeal.output
        assert ordeal.output.count("pacbench: ") <= 1, ordeal.output
        check_what_was_kept(ordeal, before, calm)
        return struck

    try_to_strike(attempt)
    return code


@pytest.fixture
def ordeal(tmp_path: Path, chance: random.Random) -> Ordeal:
    return Ordeal(tmp_path, chance)


# Signals


def send(*numbers: signal.Signals, to: Callable[[Ordeal], psutil.Process]) -> Strike:
    def strike(ordeal: Ordeal) -> None:
        victim = to(ordeal)
        for number in numbers:
            victim.send_signal(number)
            time.sleep(ordeal.chance.uniform(0.0, 0.3))

    return strike


def stop(to: Callable[[Ordeal], psutil.Process]) -> Strike:
    def strike(ordeal: Ordeal) -> None:
        victim = to(ordeal)
        victim.suspend()
        time.sleep(STOPPED_S)
        with suppress(psutil.NoSuchProcess):  # whom nobody waits for, such as a player, is ended with its trial
            victim.resume()

    return strike


def harness(ordeal: Ordeal) -> psutil.Process:
    return psutil.Process(ordeal.pid)


def any_forked(ordeal: Ordeal) -> psutil.Process:
    """Whoever measures, trains, looks on or plays at the moment."""
    return one_of(ordeal, ordeal.forked)


def worker(ordeal: Ordeal) -> psutil.Process:
    """Whoever has computed for some time."""
    return one_of(ordeal, ordeal.busy)


def one_of(ordeal: Ordeal, some: Callable[[], list[psutil.Process]]) -> psutil.Process:
    """One of them, once there are some."""
    found: list[psutil.Process] = []
    wait_until(lambda: found.extend(some()) or found or ordeal.is_over())
    if not found:
        raise StopIteration
    return ordeal.chance.choice(found)


SIGNALS = {
    "the harness is killed": (send(signal.SIGKILL, to=harness), {-signal.SIGKILL}),
    "Ctrl-C": (send(signal.SIGINT, to=harness), {INTERRUPTED}),
    "Ctrl-C twice": (send(signal.SIGINT, signal.SIGINT, to=harness), {INTERRUPTED}),
    "Ctrl-C five times": (send(*[signal.SIGINT] * 5, to=harness), {INTERRUPTED}),
    "the harness is asked to end": (send(signal.SIGTERM, to=harness), {INTERRUPTED}),
    "the terminal goes away": (send(signal.SIGHUP, to=harness), {INTERRUPTED}),
    "the harness stands still": (stop(to=harness), {ENDED_WELL}),
    "the universe's outer process is killed": (send(signal.SIGKILL, to=Ordeal.outer), {FAILED}),
    "the universe's outer process is asked to end": (send(signal.SIGTERM, to=Ordeal.outer), {FAILED}),
    "the agent is killed": (send(signal.SIGKILL, to=Ordeal.agent), {FAILED}),
    "the agent is asked to end": (send(signal.SIGTERM, to=Ordeal.agent), {FAILED}),
    "the agent loses its terminal": (send(signal.SIGHUP, to=Ordeal.agent), {FAILED}),
    "the agent stands still": (stop(to=Ordeal.agent), {FAILED}),
    "whoever works is killed": (send(signal.SIGKILL, to=any_forked), {FAILED}),
    "whoever works is asked to end": (send(signal.SIGTERM, to=any_forked), {FAILED}),
    "whoever works stands still": (stop(to=any_forked), {FAILED}),
    "a worker is killed": (send(signal.SIGKILL, to=worker), {FAILED}),
    "a worker is asked to end": (send(signal.SIGTERM, to=worker), {FAILED}),
    "a worker is interrupted": (send(signal.SIGINT, to=worker), {FAILED}),
    "a worker loses its terminal": (send(signal.SIGHUP, to=worker), {FAILED}),
    "a worker stands still": (stop(to=worker), {FAILED}),
}


@pytest.mark.parametrize("fault", of_kind("process", SIGNALS))
def test_signals(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    survive(ordeal, undisturbed, *SIGNALS[fault])


# Who changes links is forked beside the workers: a trace's player, and who slows them for a run that looks for a
# dilation. What they change is no drift.

TRACED = ("--set", f"link.trace={Path(__file__).with_name('dip.csv')}")

DILATED = ("--set", "train.pace=digits-cnn-epyc")


def player(ordeal: Ordeal) -> psutil.Process:
    """Who changes the links: of those that the agent has forked, the one that stays in the agent's own network."""
    return one_of(ordeal, lambda: [each for each in ordeal.forked() if network(each) == network(ordeal.agent())])


def network(process: psutil.Process) -> str:
    """The network namespace of a process; none of one that has ended."""
    with suppress(FileNotFoundError):
        return os.readlink(f"/proc/{process.pid}/ns/net")
    return ""


HARM = {
    "is killed": send(signal.SIGKILL, to=player),
    "is asked to end": send(signal.SIGTERM, to=player),
    "loses its terminal": send(signal.SIGHUP, to=player),
    "stands still": stop(to=player),
}
PLAYERS = {
    f"{who} {what}": (settings, strike)
    for who, settings in {"the player": TRACED, "a dilated run's player": DILATED}.items()
    for what, strike in HARM.items()
}


@pytest.mark.parametrize("fault", of_kind("process", PLAYERS))
def test_players(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    ordeal.settings, strike = PLAYERS[fault]
    survive(ordeal, undisturbed, strike, {FAILED})


# Links


def links(*command: str) -> Strike:
    return lambda ordeal: ordeal.inside("ip", "netns", "exec", "w1", *command)


LINKS = {
    "a link goes down": links("ip", "link", "set", "eth0", "down"),
    "a link is deleted": links("ip", "link", "delete", "eth0"),
    "a link loses its address": links("ip", "addr", "flush", "dev", "eth0"),
    "a queue is taken away": links("tc", "qdisc", "delete", "dev", "eth0", "root"),
    "a queue is made slower": links(
        *("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", "20mbit", "burst", "32kb", "latency", "100ms")
    ),
    "a foreign route": links("ip", "route", "replace", "blackhole", "default"),
    "a foreign route in front of a worker's": links("ip", "route", "add", "blackhole", address(0)),
    "packets become smaller": links("ip", "link", "set", "eth0", "mtu", "600"),
}


@pytest.mark.parametrize("fault", of_kind("links", LINKS))
def test_links(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    survive(ordeal, undisturbed, LINKS[fault], {FAILED})


# Limits


def limit(kind: int, of: Callable[[Ordeal], psutil.Process], amount: Callable[[psutil.Process], int]) -> Strike:
    def strike(ordeal: Ordeal) -> None:
        victim = of(ordeal)
        most = amount(victim)
        resource.prlimit(victim.pid, kind, (most, most))

    return strike


def open_files(process: psutil.Process) -> int:
    return process.num_fds()


def memory(process: psutil.Process) -> int:
    return process.memory_info().vms + (1 << 20)


FILE_LIMITS = {
    "the harness has no more files": limit(resource.RLIMIT_NOFILE, harness, open_files),
    "the agent has no more files": limit(resource.RLIMIT_NOFILE, Ordeal.agent, open_files),
    "a worker has no more files": limit(resource.RLIMIT_NOFILE, worker, open_files),
}
MEMORY_LIMITS = {
    "the harness has no more memory": limit(resource.RLIMIT_AS, harness, memory),
    "the agent has no more memory": limit(resource.RLIMIT_AS, Ordeal.agent, memory),
    "a worker has no more memory": limit(resource.RLIMIT_AS, worker, memory),
}
DISK_LIMITS = {"files may not grow": limit(resource.RLIMIT_FSIZE, harness, lambda process: 2_000)}

LIMITS = FILE_LIMITS | MEMORY_LIMITS | DISK_LIMITS


@pytest.mark.parametrize(
    "fault", [*of_kind("process", FILE_LIMITS), *of_kind("memory", MEMORY_LIMITS), *of_kind("disk", DISK_LIMITS)]
)
def test_limits(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    survive(ordeal, undisturbed, LIMITS[fault], {FAILED})


# The kernel kills whoever needs memory where there is none.

LEFT_BYTES = 1 << 20

OUT_OF_MEMORY = {
    "a worker is killed for want of memory": worker,
    "the agent is killed for want of memory": Ordeal.agent,
    "the harness is killed for want of memory": harness,
}


@pytest.mark.parametrize("fault", of_kind("memory", OUT_OF_MEMORY))
def test_out_of_memory(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    with MemoryGroup(LEFT_BYTES) as group:
        code = survive(
            ordeal, undisturbed, lambda run: group.take(OUT_OF_MEMORY[fault](run)), {FAILED, -signal.SIGKILL}
        )
        assert code == ENDED_WELL or group.kills()


# Disks. They are the run's own: mounted where nobody but the run and its children sees them.


def mounted(command: str) -> tuple[str, ...]:
    """What goes before a command that is to find something mounted."""
    return ("unshare", "--mount", "sh", "-c", f'{command} && exec "$@"', "sh")


SMALL_DISK = "mkdir -p disk && mount -t tmpfs -o size=20M tmpfs disk"


def where_it_is_seen(ordeal: Ordeal, command: str) -> tuple[str, ...]:
    """The command that runs a shell's line in the run's folder, where its disk is seen."""
    there = f"cd {shlex.quote(str(ordeal.folder))} && {{ {command}; }}"
    return ("nsenter", "--target", str(ordeal.pid), "--mount", "sh", "-c", there)


def on_disk(ordeal: Ordeal, command: str) -> None:
    """Run a shell's line there."""
    done = subprocess.run(where_it_is_seen(ordeal, command), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@contextmanager
def holding(ordeal: Ordeal) -> Iterator[Path]:
    """The run's disk as it was mounted, whatever becomes of the mount and of the run."""
    seen = Path(f"/proc/{ordeal.pid}/root{ordeal.store}")
    wait_until(lambda: Store.is_run(seen))
    with subprocess.Popen(where_it_is_seen(ordeal, "cd disk && exec sleep 1000")) as holder:
        disk = Path(f"/proc/{holder.pid}/cwd")
        try:
            wait_until(lambda: Store.is_run(disk / "run"))  # at first it is in /, where there is a /run
            yield disk
        finally:
            holder.kill()


DISKS = {
    "a disk is full": "dd if=/dev/zero of=disk/filler bs=4k || true",
    # Files that are open for writing keep a mount from it. A copy over it will do: files are opened anew.
    "a disk becomes read-only": "cp -a disk frozen; mount --bind frozen disk && mount -o remount,bind,ro disk",
    "a disk vanishes": "umount --lazy disk",
}
FOLDERS = {
    "a run's folder is deleted": "rm -r disk/run",
    "a run's rows are deleted": "rm -r disk/run/trials.parquet",
}


@pytest.mark.parametrize("fault", [*of_kind("disk", DISKS), *of_kind("folder", FOLDERS)])
def test_disks(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    calm = undisturbed.hashes(ordeal)
    ordeal.prefix, ordeal.out = mounted(SMALL_DISK), Path("disk/run")
    ordeal.start()
    ordeal.wait_for_a_moment()
    with holding(ordeal) as disk:
        on_disk(ordeal, f"cp -r disk/run before; {(DISKS | FOLDERS)[fault]}")
        STRUCK[1] += 1  # nobody sees the disk of a run that has ended
        assert ordeal.end() in {ENDED_WELL, FAILED, 2}, ordeal.output
        assert ordeal.output.count("pacbench: ") <= 1, ordeal.output
        # The disk is put right, or what was deleted is brought back: everything from before is still there.
        shutil.copytree(disk / "run" if fault in DISKS else ordeal.folder / "before", ordeal.folder / "kept")
    ordeal.out = Path("before")
    before = verified(ordeal)
    ordeal.out = Path("kept")
    check_what_was_kept(ordeal, before, calm)


# A quota, a disk that breaks, and a clock that is set: what is preloaded does what no kernel does on demand.

WRITES_FAIL = {
    "a quota is reached": Orders(write_errno=errno.EDQUOT),
    "a disk breaks": Orders(write_errno=errno.EIO),
}
CLOCK_STEPS = {
    "the clock is set an hour ahead": Orders(step_s=3600),
    "the clock is set back by a day": Orders(step_s=-86400),
}


@pytest.mark.parametrize("fault", [*of_kind("disk", WRITES_FAIL), *of_kind("clock", CLOCK_STEPS)])
def test_preloaded(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    system = Preloaded(ordeal.folder)
    ordeal.prefix = mounted(system.setup())
    orders = (WRITES_FAIL | CLOCK_STEPS)[fault]
    codes = {FAILED} if orders.write_errno else set()
    survive(ordeal, undisturbed, lambda _: system.order(orders), codes, prepare=lambda: system.order(Orders()))


# Surroundings that are odd from the start


CLOCKS = ("unshare", "--time", "--fork", "--monotonic", "86400", "--boottime", "864000")

DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty"
NO_SHM = f"mkdir dev && mount -t tmpfs tmpfs dev && cp -a {DEVICES} dev && mount --move dev /dev"

SURROUNDINGS: dict[str, dict[str, tuple[tuple[str, ...], dict[str, str], set[int]]]] = {
    "memory": {
        "a small /dev/shm": (mounted("mount -t tmpfs -o size=64k tmpfs /dev/shm"), {}, {ENDED_WELL}),
        "a /dev/shm that is read-only": (mounted("mount -t tmpfs -o ro tmpfs /dev/shm"), {}, {ENDED_WELL}),
        "no /dev/shm": (mounted(NO_SHM), {}, {ENDED_WELL}),
    },
    "machine": {
        "/proc/sys is read-only": (
            mounted("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"),
            {},
            {ENDED_WELL, FAILED},
        ),
    },
    "clock": {"clocks that were set": (CLOCKS, {}, {ENDED_WELL})},
    "folder": {
        "no temporary folder": ((), {"TMPDIR": "/proc/nowhere"}, {ENDED_WELL}),
        "no home": ((), {"HOME": "/proc/nowhere"}, {ENDED_WELL}),
    },
}


@pytest.mark.parametrize("name", [fault for kind, some in SURROUNDINGS.items() for fault in of_kind(kind, some)])
def test_surroundings(ordeal: Ordeal, undisturbed: Undisturbed, name: str) -> None:
    calm = undisturbed.hashes(ordeal)
    ordeal.prefix, ordeal.environment, codes = next(some[name] for some in SURROUNDINGS.values() if name in some)
    assert ordeal.start().end() in codes, ordeal.output
    check_what_was_kept(ordeal, verified(ordeal), calm)


# Two at once


@pytest.mark.fault("folder")
def test_two_harnesses_on_one_folder(ordeal: Ordeal, undisturbed: Undisturbed) -> None:
    calm = undisturbed.hashes(ordeal)

    def attempt() -> bool:
        ordeal.start_anew()
        ordeal.wait_for_a_moment()
        other = ordeal.again()
        if under_way := not ordeal.has_ended():
            assert other.returncode == 2, other.stdout + other.stderr
            assert other.stderr.count("\n") == 1
        assert ordeal.end() == ENDED_WELL, ordeal.output
        check_what_was_kept(ordeal, set(calm), calm)
        return under_way

    try_to_strike(attempt)


@pytest.mark.fault("machine")
def test_two_harnesses_on_one_machine(ordeal: Ordeal, undisturbed: Undisturbed, tmp_path: Path) -> None:
    calm = undisturbed.hashes(ordeal)
    other = Ordeal(tmp_path / "other", ordeal.chance)
    other.folder.mkdir()
    for each in (ordeal, other):
        each.start()
    for each in (ordeal, other):
        assert each.end() in {ENDED_WELL, FAILED}, each.output
    for each in (ordeal, other):
        check_what_was_kept(each, verified(each), calm)


# User-mode-linux

KERNELS = {
    "the kernel is killed": (send(signal.SIGKILL, to=lambda ordeal: kernel(ordeal)), {FAILED}),
    "the kernel is asked to end": (send(signal.SIGTERM, to=lambda ordeal: kernel(ordeal)), {FAILED}),
    "the kernel stands still": (stop(to=lambda ordeal: kernel(ordeal)), {FAILED}),
    "the harness is killed": (send(signal.SIGKILL, to=harness), {-signal.SIGKILL}),
    "Ctrl-C": (send(signal.SIGINT, to=harness), {INTERRUPTED}),
}


def kernel(ordeal: Ordeal) -> psutil.Process:
    wait_until(lambda: any(each.name() == "linux.uml" for each in harness(ordeal).children(recursive=True)))
    return next(each for each in harness(ordeal).children(recursive=True) if each.name() == "linux.uml")


@pytest.mark.parametrize("fault", of_kind("machine", KERNELS))
def test_user_mode_linux(ordeal: Ordeal, undisturbed: Undisturbed, fault: str) -> None:
    ordeal.cluster, ordeal.rounds = "uml", 1  # a trial takes half a minute there
    survive(ordeal, undisturbed, *KERNELS[fault])
