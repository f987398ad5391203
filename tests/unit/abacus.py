"""A profile of digits-cnn on a device that never was, for tests of replays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import baselines
from harness.plan.plan import Plan, make
from harness.scenario.load import load
from harness.workload.profile import Profile

SHAPES = ((10,), (10, 448), (448,), (448, 512), (128, 64, 3, 3), (128,), (64, 1, 3, 3), (64,))


NAMES = [f"classifier.{layer}.{part}" for layer in (3, 1) for part in ("bias", "weight")]
NAMES += [f"features.{layer}.{part}" for layer in (3, 0) for part in ("weight", "bias")]


READY_S = (0.001, 0.001, 0.002, 0.002, 0.011, 0.011, 0.015, 0.015)


def profile(**changes: Any) -> Profile:
    """Of digits-cnn on a device that never was."""
    content = {
        "schema": 1,
        "model": "digits-cnn",
        "batch_size": 16,
        "device": "abacus",
        "source": "modelled",
        "made_by": "hand",
        "forward_s": 0.004,
        "backward_s": 0.016,
        "optimizer_s": 0.001,
        "gradients": [
            {"parameter": name, "shape": shape, "ready_s": ready_s}
            for name, shape, ready_s in zip(NAMES, SHAPES, READY_S, strict=True)
        ],
        "codecs": [
            {"method": "dense", "params": {}, "workers": 4}
            | {"encode_s": 0.0, "beside_s": 0.0, "decode_s": 0.0, "optimizer_s": 0.001},
        ],
    }
    return Profile.model_validate({**content, **changes})


def codec(method: str, given: dict[str, Any] | None = None, **seconds: float) -> dict[str, Any]:
    params = baselines.get(method).State(**(given or {})).parameters
    none = {"encode_s": 0.0, "beside_s": 0.0, "decode_s": 0.0, "optimizer_s": 0.0}
    return {"method": method, "params": params, "workers": 4, **none, **seconds}


def written(path: Path, **changes: Any) -> str:
    path.write_text(profile(**changes).as_json())
    return str(path)


def replayed(path: Path, *overrides: str) -> Plan:
    unpaced = ("train.pace=none", "train.target=none")
    return make(load("quickstart", [f"train.replay={path}", *unpaced, *overrides]), "fake")
