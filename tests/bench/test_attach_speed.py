"""What it costs a script to be observed: a share of its step, from steps that are observed and steps that are not.

One of each is taken in turn, in one process, so that what else the machine does meets both alike, and the middle one of
all differences counts. What is marked in a step is read once a second, within one of many steps, which the middle one
does not show: that is timed by itself. A world of one rank: what observing costs does not depend on what is sent. What
leaves the interface is counted, too, as ``--observe`` does.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

from harness import attach

MOST_SHARE = 0.02
WIDTH = 768
"""Of each layer, so that a step takes 20 to 25 ms, of which its communication would be a part. What observing costs is
about a quarter of a millisecond, however long a step is."""
ROUNDS = 1000

SCRIPT = """
import json, sys, tempfile, time
import torch, torch.distributed as dist
import torch.optim.optimizer as optim
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from harness.attach.watch import StepWatch

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
width, rounds = int(sys.argv[1]), int(sys.argv[2])
layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(8)]
model = DistributedDataParallel(nn.Sequential(*layers))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
inputs = torch.randn(64, width)

observed = DistributedDataParallel.forward, torch.autograd.backward, dict(optim._global_optimizer_post_hooks)
plain = observed[0].__wrapped__, observed[1].__wrapped__, {}

def use(forward, backward, hooks):
    DistributedDataParallel.forward, torch.autograd.backward = forward, backward
    optim._global_optimizer_post_hooks.clear()
    optim._global_optimizer_post_hooks.update(hooks)

reading_s, read = 0.0, StepWatch._read

def timed_read(*arguments):
    global reading_s
    start = time.perf_counter()
    read(*arguments)
    reading_s += time.perf_counter() - start

StepWatch._read = timed_read

def step_s(way):
    use(*way)
    before_s, start = reading_s, time.perf_counter()
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()
    return time.perf_counter() - start - (reading_s - before_s)

for _ in range(10):
    step_s(observed), step_s(plain)
pairs = []
for number in range(rounds):
    ways = (observed, plain) if number % 2 else (plain, observed)
    taken = {way is observed: step_s(way) for way in ways}
    pairs.append((taken[True], taken[False]))
print(json.dumps({"pairs": pairs, "reading_s": reading_s / rounds}))
"""


def test_observing_costs_a_small_share_of_a_step(benchmark, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pairs, reading_s = benchmark.pedantic(measured, (tmp_path, WIDTH), rounds=1)
    step_s = statistics.median(plain for _, plain in pairs)
    low, middle, high = (
        (more_s + reading_s) / step_s for more_s in middle_one([observed - plain for observed, plain in pairs])
    )
    benchmark.extra_info |= {"share": middle, "low": low, "high": high, "step_s": step_s}
    interval = f"{100 * low:.2f} to {100 * high:.2f}"
    print(
        f"observing costs {1e3 * step_s * middle:.3f} ms, {100 * middle:.2f} % ({interval}) of a step of "
        f"{1e3 * step_s:.1f} ms; reading of it {100 * reading_s / step_s:.2f}"
    )
    assert middle <= MOST_SHARE


def middle_one(values: list[float]) -> tuple[float, float, float]:
    """The median within its 95 % interval, of order statistics (Conover, Practical Nonparametric Statistics, 3.2)."""
    ordered, half = sorted(values), 1.96 * math.sqrt(len(values)) / 2
    middle = len(values) / 2
    return ordered[int(middle - half)], statistics.median(values), ordered[int(middle + half)]


def measured(folder: Path, width: int) -> tuple[list[tuple[float, float]], float]:
    """Seconds of a step, observed and not, of each round; and seconds a step that reading takes."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    added = attach.environment(attach.Attachment(interface="lo"), folder)
    shown = subprocess.run(
        [sys.executable, str(script), f"{width}", f"{ROUNDS}"],
        env={**os.environ, **added, "GLOO_SOCKET_IFNAME": "lo"},
        check=True,
        stdout=subprocess.PIPE,
    )
    told = json.loads(shown.stdout)
    return told["pairs"], told["reading_s"]
