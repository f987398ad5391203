"""A run for programs: its figures as JSON, and in the shape of pytest-benchmark's, which dashboards can follow.

There, each method of a case is a benchmark, each finished round one of its values: the mean seconds of a steady step.
"""

from __future__ import annotations

import math
import platform
import statistics
from typing import Any

import numpy as np

from harness.analysis.cases import CaseResult, case_results
from harness.analysis.compare import unfinished
from harness.analysis.estimates import Estimate
from harness.analysis.methods import MethodResult
from harness.analysis.reference import Measured
from harness.plugins import short
from harness.record.store import Store, require_done
from harness.report.facts import sentences_of

VERSION = "5.1.0"
"""The version of pytest-benchmark whose fields these are."""


def figures_json(store: Store) -> dict[str, Any]:
    """What a run says of each method in each case, with the sentences that its report begins with.

    Raises:
        MeasurementError: no trial finished.
        UsageError: a file of the run is damaged.
    """
    trials, scenario = store.trials(), store.scenario()
    require_done(trials, store.folder)
    cases = case_results(trials, scenario)
    return {
        "scenario": scenario.name,
        "folder": str(store.folder),
        "report": str(store.folder / "report.html"),
        "methods": [_figures(case, result) for case in cases for result in case.methods],
        "sentences": sentences_of(cases, scenario),
    }


def _figures(case: CaseResult, result: MethodResult) -> dict[str, Any]:
    others = {label: gain for label, gain in result.over.items() if label != result.label}
    return {
        "case": case.title,
        "label": result.label,
        "trials": result.trials,
        "done": len(result.done),
        "samples_per_s": _interval(result.samples_per_s),
        "over": {label: _interval(gain.throughput) for label, gain in others.items()},
        "sooner": {label: _interval(gain.time_to_target) for label, gain in others.items()},
        "final": result.final.mean if result.final else None,
        "metric": result.quality.metric,
        "difference": _interval(result.quality.difference),
        "keeps": result.quality.keeps,
    }


def _interval(estimate: Estimate | None) -> dict[str, Any] | None:
    return estimate._asdict() if estimate else None


def benchmark_json(run: Measured) -> dict[str, Any]:
    """What ``pytest --benchmark-json`` would have written."""
    last = run.provenance[-1] if run.provenance else {}
    commit = str(last.get("commit", "unknown"))
    return {
        "machine_info": {
            "node": "",
            "machine": platform.machine(),
            "system": "Linux",
            "release": last.get("kernel", ""),
            "python_version": last.get("python", ""),
            "cpu": {"brand_raw": last.get("cpu", ""), "count": last.get("cpu_count", 0)},
        },
        "commit_info": {
            "id": commit.removesuffix("-dirty"),
            "time": None,
            "author_time": None,
            "dirty": commit.endswith("-dirty"),
            "project": "pacbench",
            "branch": "(unknown)",
        },
        "benchmarks": [
            _benchmark(run.scenario.name, case, result)
            for case in run.cases
            for result in case.methods
            if result.samples_per_s
        ],
        "datetime": last.get("started", ""),
        "version": VERSION,
    }


def _benchmark(scenario: str, case: CaseResult, result: MethodResult) -> dict[str, Any]:
    samples_per_step = case.key["workers"] * case.key["batch_size"]
    step_s = (samples_per_step / result.done.sort_values("round")["samples_per_s"].dropna()).tolist()
    return {
        "group": f"{scenario}: {case.title}",
        "name": f"{scenario}[{result.label}]",
        "fullname": f"{scenario}/{case.title}[{result.label}]",
        "params": {"method": short(result.method), **result.params},
        "param": result.label,
        "extra_info": {
            "speedup": result.speedup._asdict() if result.speedup else None,
            "wire_bytes_per_step": _known(result.mean("wire_bytes_per_step")),
            "final_accuracy": _known(result.mean("final_accuracy")),
            "unfinished": list(unfinished(case.trials, result.label)),
        },
        "options": {"timer": "perf_counter", "warmup": False},
        "stats": _stats(step_s),
    }


def _stats(step_s: list[float]) -> dict[str, Any]:
    mean = statistics.fmean(step_s)
    deviation = statistics.stdev(step_s) if len(step_s) > 1 else 0.0
    first_quartile, median, third_quartile = (float(value) for value in np.percentile(step_s, [25, 50, 75]))
    iqr = third_quartile - first_quartile
    low, high = first_quartile - 1.5 * iqr, third_quartile + 1.5 * iqr
    beyond_fences = sum(not low <= value <= high for value in step_s)
    beyond_deviation = sum(abs(value - mean) > deviation for value in step_s)
    return {
        "min": min(step_s),
        "max": max(step_s),
        "mean": mean,
        "stddev": deviation,
        "rounds": len(step_s),
        "median": median,
        "iqr": iqr,
        "q1": first_quartile,
        "q3": third_quartile,
        "iqr_outliers": beyond_fences,
        "stddev_outliers": beyond_deviation,
        "outliers": f"{beyond_deviation};{beyond_fences}",
        "ld15iqr": min(value for value in step_s if value >= low),
        "hd15iqr": max(value for value in step_s if value <= high),
        "ops": 1 / mean,
        "total": sum(step_s),
        "data": step_s,
        "iterations": 1,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
