"""The flow model against emulation, on set-ups drawn at random, and against SimGrid's fluid model.

    nox -s flow_model -- emulation --networks 24     # on a machine that does nothing else; about half a minute each
    nox -s flow_model -- simgrid                     # needs Debian's python3-simgrid

Either goes on where it stopped, and writes a table of errors to results/reference/: flow_model.csv, or
flow_model_simgrid.csv.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.network.flows import arrivals_s
from harness.network.pipeline import Hop, Lane, pipeline
from harness.plan.status import DONE
from harness.record.store import Store

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
STEPS = 10
METHODS = """
[[methods]]
name = "dense"

[[methods]]
name = "topk"
ratio = 0.01

[[methods]]
name = "parameter_server"
servers = 2
"""

RINGS = [(64, 63), (256, 64), (1024, 32), (4096, 16)]
ALL_TO_ALLS = [(64, 63), (256, 32), (1024, 16), (4096, 8)]
"""Workers, and rounds or peers: all of an all-to-all of 4,096 would be 16 million flows."""

LINKS = [(4e5, 1e8, 5e-4), (1e5, 1e9, 1e-3)]
"""Bytes of a message, bit/s, and delay of each link."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the flow model.")
    parser.add_argument("against", choices=["emulation", "simgrid"])
    parser.add_argument("--networks", type=int, default=24)
    options = parser.parse_args()
    if options.against == "simgrid":
        table = compare_with_simgrid(REFERENCE / "flow_model_simgrid.csv")
    else:
        table = compare_with_emulation(REFERENCE / "flow_model.csv", options.networks)
    errors = (table["predicted_s"] / table["found_s"] - 1).abs()
    print(f"{len(errors)} set-ups: median {errors.median():.1%}, 95th percentile {errors.quantile(0.95):.1%}")


def compare_with_simgrid(file: Path) -> pd.DataFrame:
    return kept(
        file, [(kind, *size, *link) for kind, sizes in KINDS.items() for size in sizes for link in LINKS], fluid
    )


KINDS = {"ring": RINGS, "all-to-all": ALL_TO_ALLS}


def fluid(setup: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """A comparison: bytes without headers, since SimGrid has none."""
    kind, workers, count, size, rate_bps, delay_s = setup
    command = ["/usr/bin/python3", str(Path(__file__).with_name("simgrid_flows.py")), *map(str, setup)]
    found_s = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    if kind == "ring":
        lane = Lane(rate_bps / 8, 0.0, delay_s)
        predicted_s, _ = pipeline(Hop((lane, lane), 2 * delay_s, 2 * delay_s), size, count, 1, 0.0, 0.0)
    else:
        (sent_s,) = arrivals_s(np.full((2, 1), float(count)), np.full(2, rate_bps / 8), np.zeros(2), np.array([size]))
        predicted_s = sent_s + 2 * delay_s
    yield {"workers": workers, "found_s": found_s, "predicted_s": predicted_s}


def compare_with_emulation(file: Path, networks: int) -> pd.DataFrame:
    return kept(file, [(number,) for number in range(networks)], emulated)


def emulated(setup: tuple[int]) -> Iterator[dict[str, Any]]:
    """A comparison for each method: what a replay's steps took on an emulated network, and what was predicted."""
    (number,) = setup
    shape, content = drawn(random.Random(number))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "drawn.toml").write_text(content + METHODS)
        command = [sys.executable, "-m", "harness", "run", "drawn.toml", "--on", "netns", "--out", "run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not (Path(folder) / "run").exists():
            sys.exit(f"network {number}: {done.stderr}")
        trials = Store.open(Path(folder) / "run").trials()
    for _, row in trials.iterrows():
        yield {
            "shape": shape,
            "label": row["label"],
            "workers": row["workers"],
            "status": row["status"],
            "dilation": row["dilation"],
            "rate_bps": row["rate_bps"],
            "delay_s": row["delay_s"],
            "found_s": row["step_time_median_s"],
            "predicted_s": row["predicted_step_s"],
        }


def drawn(dice: random.Random) -> tuple[str, str]:
    """A network, of a star, racks, regions or uneven links, and the scenario that has it."""
    shape = dice.choice(["star", "racks", "regions", "uneven"])
    workers = dice.choice([4, 8, 12, 16, 24, 32])
    rate_mbps = round(10 ** dice.uniform(1, 2.3))
    delay_ms = dice.choice([0, 0, 1, 5, 20]) if shape == "star" else 0
    dilation = max(1, math.ceil(workers / 4))
    lines = ["rounds = 1", f"[cluster]\nworkers = {workers}", f'[link]\nrate = "{rate_mbps}mbit"']
    lines += [f'delay = "{delay_ms}ms"'] if delay_ms else []
    if shape == "uneven":
        lines += [
            f'[link.workers.w{worker}]\nrate = "{round(rate_mbps * dice.uniform(0.3, 0.9), 1)}mbit"'
            for worker in dice.sample(range(workers), 2)
        ]
    if shape == "racks":
        lines += [f'[fabric]\ngroups = "a b"\noversubscription = {dice.choice([2, 4, 8])}.0']
    if shape == "regions":
        trunk = f'rate = "{round(rate_mbps * dice.uniform(0.3, 2), 1)}mbit", delay = "{dice.choice([5, 20, 50])}ms"'
        lines += [f'[fabric]\ngroups = "a b c"\nmesh = true\ntrunk = {{ {trunk} }}']
    train = (
        f'replay = "digits-cnn-epyc"\nmodel = "digits-cnn"\ntarget = "none"\nsteps = {STEPS}\ndilation = {dilation}.0'
    )
    return shape, "\n".join([*lines, f"[train]\n{train}\n"])


def kept(file: Path, setups: list[tuple[Any, ...]], compare: Any) -> pd.DataFrame:
    """The table with a row or more for each set-up; those that it has are not compared anew."""
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["setup"])
    for setup in setups:
        name = " ".join(map(str, setup))
        if name in set(table["setup"].astype(str)):
            continue
        table = pd.concat([table, pd.DataFrame({"setup": name, **row} for row in compare(setup))], ignore_index=True)
        table.to_csv(file, index=False, float_format="%.6g")
        print(table[table["setup"].astype(str) == name].to_string(index=False, header=False), flush=True)
    return table[table["status"] == DONE] if "status" in table else table


if __name__ == "__main__":
    main()
