"""A pilot of a job whose numbers are made up, so that what follows from them can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.analysis.pilot import learning
from harness.analysis.pilot.forecast import Forecast, predictions
from harness.analysis.pilot.verdict import phases, verdict
from harness.network.topology import Topology
from harness.record.pilot import Fit, Job, Pilot, Training
from harness.run.pilot.request import Request
from harness.scenario.schema import MethodSpec
from harness.workload.profile import Codec, Profile

DENSE, BF16 = (MethodSpec(name=name, label=name, lr=None) for name in ("dense", "bf16"))
TOPK = MethodSpec(name="topk", label="topk, 1 %", params={"ratio": 0.01}, lr=None)
METHODS = (DENSE, BF16, TOPK)
LOCAL = MethodSpec(name="local_sgd", label="local_sgd", params={"period": 7}, lr=None)
"""Its ranks meet once in seven steps."""
TOLERANCE = 0.02


def network(rate: str = "100mbit", workers: int = 4) -> Topology:
    return Topology.model_validate({"workers": workers, "link": {"rate": rate}})


def job(codec_s: float = 0.01, slower: float = 1.0, **changes: Any) -> Job:
    """A million entries in two tensors, 30 ms of computation."""
    gradients = [
        {"parameter": "head", "shape": (400_000,), "ready_s": 0.005 * slower},
        {"parameter": "body", "shape": (600_000,), "ready_s": 0.02 * slower},
    ]
    costs = {"dense": 0.0, "bf16": codec_s / 2, "topk": codec_s}
    codecs = [
        Codec(method=each.name, params=each.params, workers=2, encode_s=costs[each.name], beside_s=0.0, decode_s=0.0,
              optimizer_s=0.001)
        for each in METHODS
    ]  # fmt: skip
    profile = {
        "schema": 1,
        "model": "the script's",
        "batch_size": 32,
        "device": "a device",
        "source": "measured",
        "made_by": "pacbench pilot",
        "forward_s": 0.01 * slower,
        "backward_s": 0.02 * slower,
        "optimizer_s": 0.001,
        "gradients": gradients,
        "codecs": codecs,
    }
    fits = [
        Fit(
            method=each,
            refused=None,
            nmse=0.0,
            cosine=1.0,
            progress=1.0,
            codec_s=costs[each.name],
            held_bytes=4_000_000,
        )
        for each in METHODS
    ]
    plain: dict[str, Any] = {
        "profile": Profile.model_validate(profile),
        "between_s": 0.002,
        "bucket_bytes": 25_000_000,
        "compute_s": tuple(0.033 * slower for _ in range(12)),
        "non_zero": 1.0,
        "holding_90": 0.1,
        "holding_99": 0.3,
        "fits": tuple(fits),
        "overhead_s": 8.0,
    }
    return Job(**{**plain, **changes})


def falling(steps: int, to: float, by: int) -> tuple[float, ...]:
    """Losses that fall from 2 to a value, along a line, in so many steps, and stay there."""
    return tuple(2 - (2 - to) * min(1.0, (step + 1) / by) for step in range(steps))


def training(method: MethodSpec, seed: int, pace_s: float, losses: Sequence[float | None], **changes: Any) -> Training:
    plain: dict[str, Any] = {
        "label": method.label,
        "method": method,
        "seed": seed,
        "steps": len(losses),
        "pace_s": pace_s,
        "exposed_s": max(0.0, pace_s - 0.033),
        "compute_s": 0.031,
        "encode_s": 0.001,
        "decode_s": 0.0,
        "sent_bytes": 1e6,
        "formula_bytes": 1e6,
        "peak_memory_bytes": 300_000_000,
        "losses": tuple(losses),
        "wall_s": 10.0,
        "record": f"runs/{method.label}-{seed}",
    }
    return Training(**{**plain, **changes})


def trainings(topk_s: float = 0.05, topk_end: float = 1.0, seeds: int = 3) -> list[Training]:
    """Dense and bf16 learn alike; each seed a little differently."""
    found = []
    for seed in range(seeds):
        end = 1 + 0.01 * seed
        found += [
            training(DENSE, seed, 0.5, falling(40, end, 30)),
            training(BF16, seed, 0.27, falling(40, end, 30)),
            training(TOPK, seed, topk_s, falling(40, topk_end * end, 30)),
        ]
    return found


def pilot(own: Sequence[Training] | None = None, **changes: Any) -> Pilot:
    """All that follows from trainings."""
    own = trainings() if own is None else own
    of_job = changes.get("job") or job()
    forecast = Forecast(of_job, network())
    outcomes = learning.outcomes(own, "dense", "bf16", TOLERANCE, forecast)
    decided = verdict(outcomes, "dense", "bf16", TOLERANCE, forecast)
    plain: dict[str, Any] = {
        "command": ("python", "train.py"),
        "folder": "/somewhere",
        "cluster": "netns",
        "network": network(),
        "tolerance": TOLERANCE,
        "steps": 40,
        "seeds": 3,
        "plain_label": "dense",
        "sixteen_label": "bf16",
        "job": of_job,
        "predictions": tuple(predictions(forecast)),
        "trainings": tuple(own),
        "outcomes": tuple(outcomes),
        "verdict": decided,
        "phases": phases(decided, outcomes, TOLERANCE),
        "left_out": (),
        "took_s": 100.0,
        "provenance": {"command": ["pacbench", "pilot"], "commit": "abc"},
    }
    return Pilot(**{**plain, **changes})


def request(out: Path, **changes: Any) -> Request:
    """What a pilot of this job may be asked for."""
    plain: dict[str, Any] = {
        "command": ("python", "train.py"),
        "folder": out,
        "environment": {},
        "network": network(),
        "per_node": 1,
        "on": "netns",
        "methods": METHODS,
        "unsuited": "",
        "plain": "dense",
        "sixteen": "bf16",
        "tolerance": TOLERANCE,
        "steps": 60,
        "seeds": 3,
        "tested": 3,
        "budget_s": None,
        "out": out,
        "command_line": ("pacbench", "pilot"),
    }
    return Request(**{**plain, **changes})


def hostile(label: str, **changes: Any) -> Pilot:
    """One whose method has such a label, wherever it is named."""
    evil = TOPK.model_copy(update={"label": label})
    own = job()
    fits = tuple(fit.model_copy(update={"method": evil}) if fit.method == TOPK else fit for fit in own.fits)
    named = [each.model_copy(update={"label": label, "method": evil}) for each in trainings() if each.method == TOPK]
    others = [each for each in trainings() if each.method != TOPK]
    return pilot([*others, *named], job=own.model_copy(update={"fits": fits}), **changes)
