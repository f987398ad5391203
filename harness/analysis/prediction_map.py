"""The map: on which networks a method's step is predicted to be shorter than that of the 16-bit all-reduce.

Predictions, not measurements: by the model of a step that plans use (``plan/predict.py``), on a star whose links are
all alike. A profile is asked only about methods whose codec it knows: a codec that costs nothing would win anywhere.
Codecs cost what they did with as many workers as the profile had. So what it takes to decode the messages of a thousand
workers is not in it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from harness.analysis.reference import REFERENCES
from harness.errors import UsageError
from harness.methods import method_named
from harness.network.topology import Topology
from harness.plan.collectives import Network
from harness.plan.expected import state_of
from harness.plan.predict import Schedule, schedule
from harness.scenario.links import Link
from harness.scenario.schema import MethodSpec, Scenario
from harness.workload import profile as profiles
from harness.workload.profile import Profile

LINKS_TO_CROSS = 4
"""A round trip between two workers of a star passes each one's link there and back."""

ANY_LINK = Link.model_validate({"rate": "1gbit"})


RATES_BPS = tuple(round(10 ** (7 + step / 2)) for step in range(9))
"""10 Mbit/s to 100 Gbit/s, two a decade."""

WORKERS = tuple(2**step for step in range(1, 11))
"""2 to 1,024."""


class Grid(NamedTuple):
    """The networks and devices of a map. Each combination counts alike."""

    rates_bps: tuple[int, ...] = RATES_BPS
    """Rate of each link."""
    rtts_s: tuple[float, ...] = (1e-4, 1e-3, 2e-2, 0.2)
    """Round trip between two workers: within a rack, a city, a country, the world."""
    workers: tuple[int, ...] = WORKERS
    speeds_percent: tuple[int, ...] = (50, 100, 200)
    """Speed of the device, its codecs included, over that of the profile's."""

    @property
    def cells(self) -> int:
        """How many combinations there are."""
        return len(self.rates_bps) * len(self.rtts_s) * len(self.workers) * len(self.speeds_percent)


@dataclass(frozen=True)
class Subject:
    """A profile, and the methods whose codec it knows."""

    name: str
    profile: Profile
    base: MethodSpec
    """The 16-bit all-reduce that the others are compared with: of those whose codec the profile knows the scenario's
    own first. If it knows none, the scenario's own, whose codec is then taken to cost nothing."""
    methods: tuple[MethodSpec, ...]

    @property
    def knows_base(self) -> bool:
        """Whether the profile knows what the 16-bit all-reduce costs."""
        return self.profile.codec(self.base, 2) is not None

    @property
    def codec_workers(self) -> list[int]:
        """With how many workers its codecs were timed."""
        return sorted({codec.workers for codec in self.profile.codecs})


def subjects(scenario: Scenario, names: Sequence[str] = ()) -> tuple[list[Subject], list[str]]:
    """What a map is about.

    Args:
        scenario: its methods are compared, all that are no plain all-reduce.
        names: of profiles, or their files; default: all that come with pacbench.

    Returns:
        The subjects, and the names of those profiles that know no codec to compare.

    Raises:
        UsageError: there is no such profile, or one is named twice; a named one, or every one, knows no codec to
            compare; or the scenario has no methods to compare.
    """
    sixteen_bit = sorted(filter(_is_sixteen_bit, scenario.methods), key=lambda each: each.label != scenario.sixteen_bit)
    compared = [each for each in scenario.methods if each not in sixteen_bit and each.label != scenario.baseline]
    if not sixteen_bit or not compared:
        found = ", ".join(method.label for method in scenario.methods)
        raise UsageError.at("scenario", "methods", found, "a 16-bit all-reduce, such as bf16, and a method to compare")
    made, left_out = [], []
    for name, shown in _named(dict.fromkeys(names or profiles.available())).items():
        profile = profiles.read(name)
        bases, methods = ([each for each in own if profile.codec(each, 2)] for own in (sixteen_bit, compared))
        if methods:
            made.append(Subject(shown, profile, [*bases, *sixteen_bit][0], tuple(methods)))
        elif names:
            known = ", ".join(dict.fromkeys(each.method for each in profile.codecs)) or "none"
            allowed = f"a profile with codecs of some of {', '.join(method.label for method in compared)}"
            raise UsageError.at("command line", "profile", f"{name}, with codecs of {known}", allowed)
        else:
            left_out.append(name)
    if not made:
        found = ", ".join(method.label for method in compared)
        plain = {method.name for method in scenario.methods if method not in compared}
        with_codecs = sorted({codec.method for name in left_out for codec in profiles.read(name).codecs} - plain)
        allowed = f"some whose codec a profile knows with the same parameters, of {', '.join(with_codecs)}"
        raise UsageError.at("scenario", "methods", found, allowed)
    return made, left_out


def _named(names: Iterable[str]) -> dict[str, str]:
    """What each profile is called: by its file and share of the device, or as it was given, if two would be the same.

    Raises:
        UsageError: there is no such profile, or two are the same.
    """
    places: dict[tuple[Path, int], str] = {}
    stems = {}
    for name in names:
        base, percent = profiles.split(name)
        if (other := places.setdefault((_find(name).resolve(), percent), name)) != name:
            raise UsageError.at("command line", "profile", name, f"each profile once; {other} is the same one")
        stems[name] = Path(base).stem + (f"@{percent}%" if percent < 100 else "")
    counts = Counter(stems.values())
    return {name: stem if counts[stem] == 1 else name for name, stem in stems.items()}


def _find(name: str) -> Path:
    try:
        return profiles.find(name)
    except UsageError:
        allowed = f"a profile's .json file, or a name ({', '.join(profiles.available())})"
        raise UsageError.at("command line", "profile", name, allowed) from None


def _is_sixteen_bit(method: MethodSpec) -> bool:
    return method_named(method.name).State.is_sixteen_bit


def gains(chosen: Sequence[Subject], bucket_bytes: int, grid: Grid | None = None) -> pd.DataFrame:
    """How many times shorter each method's step is than that of the 16-bit all-reduce, all over a grid.

    Args:
        bucket_bytes: at which DDP closes a bucket.
        grid: default: the whole one.

    Returns:
        A row a subject, method and cell: ``profile``, ``model``, ``label``, ``base`` (the 16-bit one's label),
        ``speed_percent``, ``workers``, ``rtt_s``, ``rate_bps``, ``gain``.
    """
    grid = grid or Grid()
    rows = (row for workers in grid.workers for row in _with_workers(chosen, bucket_bytes, workers, grid))
    columns = ["profile", "model", "label", "base", "speed_percent", "workers", "rtt_s", "rate_bps", "gain"]
    return pd.DataFrame(rows, columns=columns)


def _with_workers(
    chosen: Sequence[Subject], bucket_bytes: int, workers: int, grid: Grid
) -> Iterator[tuple[object, ...]]:
    """The rows of one number of workers: what they compute and send is found once for all links."""
    scheduled = [
        (subject, percent, *_schedules(subject, percent, workers, bucket_bytes))
        for subject, percent in itertools.product(chosen, grid.speeds_percent)
    ]
    for rtt_s, rate_bps in itertools.product(grid.rtts_s, grid.rates_bps):
        link = ANY_LINK.model_copy(update={"rate_bps": rate_bps, "delay_s": rtt_s / LINKS_TO_CROSS})
        network = Network(Topology(workers=workers, link=link))
        for subject, percent, base, methods in scheduled:
            base_s = base.step_s(network)
            place = subject.base.label, percent, workers, rtt_s, rate_bps
            for label, own in methods.items():
                yield subject.name, subject.profile.model, label, *place, base_s / own.step_s(network)


def _schedules(subject: Subject, percent: int, workers: int, bucket_bytes: int) -> tuple[Schedule, dict[str, Schedule]]:
    profile = subject.profile.at(percent)
    base, *others = (
        schedule(profile, method, state_of(method), workers, bucket_bytes)
        for method in (subject.base, *subject.methods)
    )
    return base, {method.label: each for method, each in zip(subject.methods, others, strict=True)}


def shares(found: pd.DataFrame, by: Sequence[str]) -> pd.Series[float]:
    """The share of cells in which a method is faster, named ``share``, by such columns of ``gains``."""
    is_faster = (found["gain"] > 1).astype(float).rename("share")
    return is_faster.groupby([found[column] for column in by], sort=False).mean()


def margin(compared: pd.DataFrame) -> float:
    """By how many times a method must be faster, if its step were predicted as much too short as the worst of these.

    Args:
        compared: ``errors``; without any, 1.
    """
    return 1 / (1 + min(0.0, compared["least"].min())) if len(compared) else 1.0


def errors(folder: Path = REFERENCES) -> pd.DataFrame:
    """How far the model's times were off, where they were compared with emulated networks and with SimGrid.

    Args:
        folder: holds ``flow_model_emulation.csv`` and ``flow_model_simgrid.csv``, which ``nox -s flow_model`` makes.

    Returns:
        A row for each kind: ``compared``, ``cases``, ``workers`` (the most), and of the share by which times are
        predicted too long ``median``, ``least`` and ``most``. Empty without the files.
    """
    frames = []
    for kind in ("emulation", "simgrid"):
        path = folder / f"flow_model_{kind}.csv"
        if path.is_file():
            read = pd.read_csv(path).assign(kind=kind)
            frames.append(read if "label" in read else read.assign(label=read["setup"].str.split().str[0]))
    if not frames:
        return pd.DataFrame(columns=["compared", "cases", "workers", "median", "least", "most"])
    both = pd.concat(frames).dropna(subset=["predicted_s", "found_s"])
    both["compared"] = both["label"] + both["kind"].map({"emulation": ", emulated", "simgrid": ", by SimGrid"})
    both["off"] = both["predicted_s"] / both["found_s"] - 1
    return (
        both.groupby("compared", sort=False)
        .agg(
            cases=("off", "size"),
            workers=("workers", "max"),
            median=("off", "median"),
            least=("off", "min"),
            most=("off", "max"),
        )
        .reset_index()
    )
