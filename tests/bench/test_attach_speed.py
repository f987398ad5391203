"""What it costs a script to be observed: a share of its step, from steps that are observed and steps that are not.

Both are taken in turn, in one process, so that what else the machine does meets both alike. A world of one rank: what
observing costs does not depend on what is sent. What leaves the interface is counted, too, as ``--observe`` does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from harness import attach
from harness.analysis.estimates import geometric_mean

MOST_SHARE = 0.02
ROUNDS = 60

SCRIPT = """
import json, os, statistics, sys, tempfile, time
import torch, torch.distributed as dist
import torch.optim.optimizer as optim
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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

def steps_s(way, count=10):
    use(*way)
    start = time.perf_counter()
    for _ in range(count):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    return (time.perf_counter() - start) / count

steps_s(observed), steps_s(plain)
pairs = []
for number in range(rounds):
    ways = (observed, plain) if number % 2 else (plain, observed)
    taken = {way is observed: steps_s(way) for way in ways}
    pairs.append((taken[True], taken[False]))
print(json.dumps(pairs))
"""


def test_observing_costs_a_small_share_of_a_step(benchmark, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pairs = benchmark.pedantic(measured, (tmp_path, 384), rounds=1)
    ratio = geometric_mean([observed / plain for observed, plain in pairs])
    step_s = statistics.median(plain for _, plain in pairs)
    benchmark.extra_info |= {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "step_s": step_s}
    print(
        f"observed / plain: {ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f}), of a step of {1e3 * step_s:.1f} ms"
    )
    assert ratio.value <= 1 + MOST_SHARE


def measured(folder: Path, width: int) -> list[tuple[float, float]]:
    """Mean seconds of a step, observed and not, of each round."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    added = attach.environment(attach.Attachment(interface="lo"), folder)
    shown = subprocess.run(
        [sys.executable, str(script), f"{width}", f"{ROUNDS}"],
        env={**os.environ, **added, "GLOO_SOCKET_IFNAME": "lo"},
        check=True,
        stdout=subprocess.PIPE,
    )
    return [tuple(pair) for pair in json.loads(shown.stdout)]
