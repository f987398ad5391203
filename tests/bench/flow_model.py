"""The flow model against emulation, on set-ups drawn at random, and against SimGrid's fluid model.

    nox -s flow_model -- emulation --networks 24     # on a machine that does nothing else; about a minute each
    nox -s flow_model -- emulation --for-s 200       # begins no network later than that
    nox -s flow_model -- simgrid                     # needs Debian's python3-simgrid

Either goes on where it stopped, and writes a table of errors to results/reference/: flow_model_emulation.csv, or
flow_model_simgrid.csv.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.cluster.netns import NetnsCluster
from harness.network.flows import arrivals_s
from harness.network.pipeline import Hop, Lane, pipeline
from harness.plan import predict
from harness.plan.expected import network_of, state_of
from harness.plan.status import DONE
from harness.plan.trial import Trial
from harness.record.store import Store
from harness.run.planning import plan_run
from harness.workload.profile import Codec

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
STEPS = 32
PROFILE, MODEL = "digits-cnn-epyc", "digits-cnn"
COLUMNS = {
    **{name: name for name in ("label", "workers", "status", "rate_bps", "delay_s", "queue_drops")},
    "dilation": "trial_dilation",
    "added_s": "added_s_per_step",
    "encode_s": "encode_s_per_step",
    "decode_s": "decode_s_per_step",
    "comm_s": "comm_s_per_step",
    "found_s": "step_time_median_s",
}
"""What is kept of a trial's row, and its name there."""

METHODS = """
[[methods]]
name = "dense"

[[methods]]
name = "topk"
ratio = 0.01

[[methods]]
name = "parameter_server"
servers = {servers}
"""

RINGS = [(64, 63), (256, 64), (1024, 32), (4096, 16)]
ALL_TO_ALLS = [(64, 63), (256, 32), (1024, 16), (4096, 8)]
"""Workers, and rounds or peers: all of an all-to-all of 4,096 would be 16 million flows."""

DELAYS_MS = [0, 0, 1, 5, 20]
"""Half a round trip of a star's links, or of a trunk between regions: some none, for kernels without netem."""

LINKS = [(4e5, 1e8, 5e-4), (1e5, 1e9, 1e-3)]
"""Bytes of a message, bit/s, and delay of each link."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the flow model.")
    parser.add_argument("against", choices=["emulation", "simgrid"])
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--for-s", type=float, default=math.inf)
    options = parser.parse_args()
    if options.against == "simgrid":
        table = compare_with_simgrid(REFERENCE / "flow_model_simgrid.csv")
    else:
        table = compare_with_emulation(REFERENCE / "flow_model_emulation.csv", options.networks, options.for_s)
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


def compare_with_emulation(file: Path, networks: int, for_s: float) -> pd.DataFrame:
    """What was found is kept; predictions are made anew each time, so that a better model needs no new runs.

    Few workers come first: many take a quarter of an hour each on two processors.
    """
    table = kept(file, [setup_of(number) for number in sorted(range(networks), key=workers_of)], emulated, for_s)
    numbers = {name: int(name.split()[0]) for name in table["setup"]}
    for name, number in numbers.items():
        if name != " ".join(map(str, setup_of(number))):
            sys.exit(f"{file}: set-up {name}: network {number} is drawn otherwise now; move the file away")
    trials = {name: trials_of(number) for name, number in numbers.items()}
    table["predicted_s"] = [predicted_s(trials[row["setup"]][row["label"]], row) for _, row in table.iterrows()]
    table["error"] = table["predicted_s"] / table["found_s"] - 1
    table.to_csv(file, index=False, float_format="%.6g")
    return table[table["status"] == DONE]


def setup_of(number: int) -> tuple[int, str]:
    """A network's number, and a digest of what was drawn: rows of a network that is drawn otherwise are told apart."""
    return number, hashlib.sha256(drawn(number).scenario.encode()).hexdigest()[:8]


def emulated(setup: tuple[int, str]) -> Iterator[dict[str, Any]]:
    """For each method, what a replay's steps took on an emulated network."""
    number, _ = setup
    drawing = drawn(number)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "drawn.toml").write_text(drawing.scenario)
        command = [sys.executable, "-m", "harness", "run", "drawn.toml", "--on", "netns", "--out", "run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        trials = Store.open(Path(folder) / "run").trials() if (Path(folder) / "run").exists() else pd.DataFrame()
    if trials.empty:
        print(f"network {number} ({drawing.shape}) cannot be emulated here: {done.stderr.strip()}", flush=True)
    for _, row in trials.iterrows():
        own = {ours: row[theirs] for ours, theirs in COLUMNS.items()}
        yield {"shape": drawing.shape, **own, "load": os.getloadavg()[0]}


def trials_of(number: int) -> dict[str, Trial]:
    """The trials of a network, by their method's label."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "drawn.toml").write_text(drawn(number).scenario)
        plan = plan_run(str(Path(folder) / "drawn.toml"), NetnsCluster())
    return {trial.method.label: trial for trial in plan.trials}


def predicted_s(trial: Trial, row: pd.Series) -> float:
    """What a step was to take, with the codec's time as it was found: the network's is what is put to the test."""
    profile, case = trial.expected.profile, trial.case
    assert profile
    codec = Codec(
        method=trial.method.name,
        params=trial.method.params,
        workers=case.cluster.workers,
        encode_s=row.fillna(0.0)["encode_s"],
        beside_s=0.0,
        decode_s=row.fillna(0.0)["decode_s"],
        optimizer_s=profile.optimizer_s,
    )
    network = network_of(trial.expected.topology, row["dilation"])
    known = profile.model_copy(update={"codecs": (codec,)})
    return predict.step_s(known, trial.method, state_of(trial.method), network, case.train.bucket_bytes)


class Drawn(NamedTuple):
    shape: str
    workers: int
    scenario: str


def workers_of(number: int) -> int:
    return drawn(number).workers


def drawn(number: int) -> Drawn:
    """A network and the scenario that has it.

    Rates are such that a step of many workers takes about as long as one of few. How slow time runs the run finds by
    itself, so that what this machine adds is known, and not taken for the network's.
    """
    dice = random.Random(number)
    shape = dice.choice(list(FABRICS))
    workers = dice.choice([4, 6, 8, 12, 16, 24, 32, 64, 128])
    rate_mbps = round(5 * workers * 10 ** dice.uniform(0.3, 0.8))
    delay_ms = dice.choice(DELAYS_MS) if shape == "star" else 0
    lines = ["rounds = 1", f"[cluster]\nworkers = {workers}", f'[link]\nrate = "{rate_mbps}mbit"']
    lines += [f'delay = "{delay_ms}ms"'] if delay_ms else []
    lines += FABRICS[shape](dice, workers, rate_mbps)
    lines += ["[train]", f'replay = "{PROFILE}"', f'model = "{MODEL}"', "batch_size = 16"]
    lines += ['target = "none"', f"steps = {STEPS}"]
    return Drawn(shape, workers, "\n".join([*lines, METHODS.format(servers=workers // 2)]))


def star(dice: random.Random, workers: int, rate_mbps: int) -> list[str]:
    return []


def uneven(dice: random.Random, workers: int, rate_mbps: int) -> list[str]:
    return [
        f'[link.workers.w{worker}]\nrate = "{round(rate_mbps * dice.uniform(0.3, 0.9), 1)}mbit"'
        for worker in dice.sample(range(workers), 2)
    ]


def racks(dice: random.Random, workers: int, rate_mbps: int) -> list[str]:
    return [f'[fabric]\ngroups = "a b"\noversubscription = {dice.choice([2, 4])}.0']


def regions(dice: random.Random, workers: int, rate_mbps: int) -> list[str]:
    trunk = f'rate = "{round(rate_mbps * dice.uniform(0.5, 2), 1)}mbit", delay = "{dice.choice(DELAYS_MS)}ms"'
    return [f'[fabric]\ngroups = "a b c"\nmesh = true\ntrunk = {{ {trunk} }}']


def nodes(dice: random.Random, workers: int, rate_mbps: int) -> list[str]:
    """Two or four ranks a node, which share its card."""
    ranks = 4 if workers % 4 == 0 and workers > 4 else 2
    names = " ".join(f"n{node}" for node in range(workers // ranks))
    return [f'[fabric]\ngroups = "{names}"\ntrunk = {{ rate = "{rate_mbps}mbit" }}']


FABRICS = {"star": star, "uneven": uneven, "racks": racks, "regions": regions, "nodes": nodes}


def kept(file: Path, setups: list[tuple[Any, ...]], compare: Any, for_s: float = math.inf) -> pd.DataFrame:
    """The table with a row or more for each set-up; those that it has are not compared anew.

    Args:
        for_s: none begins later than so many seconds from now.
    """
    began_s = time.monotonic()
    table = pd.read_csv(file, dtype={"setup": str}) if file.exists() else pd.DataFrame(columns=["setup"])
    for setup in setups:
        name = " ".join(map(str, setup))
        if name in set(table["setup"]):
            continue
        if time.monotonic() - began_s > for_s:
            break
        table = pd.concat([table, pd.DataFrame({"setup": name, **row} for row in compare(setup))], ignore_index=True)
        table.to_csv(file, index=False, float_format="%.6g")
        if name in set(table["setup"]):
            print(table[table["setup"] == name].to_string(index=False, header=False), flush=True)
    return table


if __name__ == "__main__":
    main()
