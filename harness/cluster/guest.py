"""Process 1 of a user-mode-linux kernel: it makes the guest usable, runs the universe in it, and switches it off.

Run as a script by ``uml.py``, with the folder of what the guest needs as its one argument. The guest sees the host's
files, and nothing else of the host. The universe speaks to the harness over the second console, held open and raw.
"""

import json
import os
import subprocess
import sys
import traceback
import tty
from pathlib import Path

MODULES = (
    *("kernel/drivers/net/veth.ko", "kernel/net/sched/sch_netem.ko", "kernel/net/sched/sch_tbf.ko"),
    *(f"kernel/net/ipv4/tcp_{name}.ko" for name in ("bbr", "bic", "dctcp", "htcp", "vegas", "westwood")),
)

GREETING = b'{"kind": "done", "op": "boot"}\n'


def main() -> None:
    """Everything that this kernel does, from its first process to its end."""
    folder = Path(sys.argv[1])
    try:
        settings = json.loads((folder / "settings.json").read_text())
        os.environ.clear()
        os.environ.update(settings["environment"])
        prepare()
        os.chdir(settings["folder"])
        console = os.open("/dev/tty1", os.O_RDWR | os.O_NOCTTY)
        tty.setraw(console)
        os.write(console, GREETING)  # what is sent to a console before it is open is seen late, or never
        subprocess.run(settings["command"], stdin=console, stdout=console)
    except BaseException:
        traceback.print_exc()  # Python would after the kernel has ended
    finally:
        subprocess.run(["busybox", "poweroff", "-f"])


def prepare() -> None:
    """What a system's own start would have done: file systems, modules, the loopback."""
    Path("/dev/shm").mkdir(exist_ok=True)
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/dev/shm"), ("tmpfs", "/run")):
        if Path(place).is_dir():
            subprocess.run(["mount", "-t", kind, kind, place], check=True)
    modules = Path("/usr/lib/uml/modules") / os.uname().release
    for module in MODULES:
        if (modules / module).exists():
            subprocess.run(["busybox", "insmod", str(modules / module)], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


if __name__ == "__main__":
    main()
