"""Samples per second on hosts of a real Slurm over those on an emulated network with links of the same kind.

    python tests/bench/hosts.py --rounds 3 --out results/hosts    # on a machine that does nothing else

Needs root, and Debian's slurm-wlm and munge. Each host is namespaces of its own, its link shaped at both ends from
outside, as a provider would; the emulated links have the same rate and bucket. Both runs are paced by the same profile,
so that what is compared is the network and not who computes faster. Three rounds take about seven minutes. The same
command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))
from host import MARK, PACBENCH
from machines import BUCKET_BYTES
from slurm import Slurm

from harness.record.store import Store

HOSTS = 4


def samples_per_s(run: Path) -> dict[str, float]:
    """The mean of each method's rounds."""
    trials = Store.open(run).trials()
    assert (trials["status"] == "done").all(), trials[["label", "status", "reason"]].to_string()
    return {str(label): float(rate) for label, rate in trials.groupby("label")["samples_per_s"].mean().items()}


def main() -> None:
    """Run both, and print a line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", default="20mbit")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/hosts"))
    asked = parser.parse_args()
    os.environ[MARK] = uuid.uuid4().hex
    settings = ["train.dilation=1", "train.target=none", f"train.steps={asked.steps}", f"cluster.workers={HOSTS}"]
    training = ["quickstart", "--method", "topk", "--method", "pactrain-fp32", "--rounds", str(asked.rounds)]
    training += [word for setting in settings for word in ("--set", setting)]
    out, began_s = asked.out.resolve(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Slurm(Path(folder), HOSTS, asked.rate) as slurm:
        command = [*PACBENCH, "worker", *training, "--set", "link.rate=unshaped", "--out", str(out / "hosts")]
        done = slurm.run(HOSTS, *command, timeout_s=3600)
        assert done.returncode == 0, done.stderr
    shaped = ["--set", f"link.rate={asked.rate}", "--set", f"link.burst={BUCKET_BYTES}B", "--on", "netns"]
    command = [*PACBENCH, "run", *training, *shaped, "--out", str(out / "netns")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    hosts, emulated = samples_per_s(out / "hosts"), samples_per_s(out / "netns")
    for label, rate in emulated.items():
        print(f"{label}: {hosts[label]:.1f} samples/s on hosts, {rate:.1f} emulated: {hosts[label] / rate:.3f}")
    print(f"{asked.rounds} rounds of each took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
