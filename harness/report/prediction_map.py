"""The map of networks on which methods are predicted to be faster, in words: a page, files for programs, rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness import provenance
from harness.analysis.prediction_map import Grid, Subject, margin, shares
from harness.files import make_folder, write_whole
from harness.plain import markdown
from harness.report.markdown import UNKNOWN, table
from harness.units import format_rate, format_time

CELL = ["label", "rtt_s", "workers", "rate_bps"]


def write(
    found: pd.DataFrame, compared: pd.DataFrame, chosen: Sequence[Subject], grid: Grid, folder: Path, asked: str
) -> Path:
    """Write ``map.md`` and ``shares.csv``; returns the former. Figures are drawn apart.

    Args:
        found: ``prediction_map.gains`` of these subjects on this grid.
        compared: ``prediction_map.errors``.
        asked: the command, for the record.
    """
    make_folder(folder)
    write_whole(folder / "shares.csv", of_profiles(found).to_csv(index=False))
    page = folder / "map.md"
    write_whole(page, as_markdown(found, compared, chosen, grid, asked))
    return page


def of_profiles(found: pd.DataFrame) -> pd.DataFrame:
    """The share of the grid in which a method is faster, of each profile."""
    return shares(found, ["profile", "model", "base", "label"]).round(4).reset_index()


def by_cell(found: pd.DataFrame) -> pd.DataFrame:
    """The share of profiles and devices in which a method is faster, of each network; who is ahead most comes first."""
    order = list(_ranked(found).index)
    cells = shares(found, CELL).round(3).reset_index()
    cells["label"] = pd.Categorical(cells["label"], order)
    return cells.sort_values(CELL, ignore_index=True).astype({"label": str})


def _ranked(found: pd.DataFrame) -> pd.Series[float]:
    """The share of each method over all cells, the greatest first."""
    return shares(found, ["label"]).sort_values(ascending=False, kind="stable")


def rows(found: pd.DataFrame, compared: pd.DataFrame) -> list[dict[str, str]]:
    """A row a method, who is ahead most comes first: column -> text."""
    return [_row(found[found["label"] == label], compared) for label in _ranked(found).index]


def _row(own: pd.DataFrame, compared: pd.DataFrame) -> dict[str, str]:
    of_profiles, least_gain = shares(own, ["profile"]), margin(compared)
    return {
        "method": str(own["label"].iloc[0]),
        "profiles": str(len(of_profiles)),
        "shorter in": _percent((own["gain"] > 1).mean()),
        "from profile to profile": f"{_percent(of_profiles.min())} to {_percent(of_profiles.max())}",
        **_by("rtt_s", own, lambda rtt_s: f"at {format_time(rtt_s)}"),
        **_by("speed_percent", own, lambda percent: f"device x{percent / 100:g}"),
        **({f"by more than {least_gain:.2f}x": _percent((own["gain"] > least_gain).mean())} if len(compared) else {}),
    }


def _by(column: str, own: pd.DataFrame, named: Callable[[float], str]) -> dict[str, str]:
    return {
        named(value): _percent((own.loc[own[column] == value, "gain"] > 1).mean()) for value in own[column].unique()
    }


def as_markdown(found: pd.DataFrame, compared: pd.DataFrame, chosen: Sequence[Subject], grid: Grid, asked: str) -> str:
    """The page: what was predicted, of what, and how far the model is to be trusted."""
    of_methods = rows(found, compared)
    parts = [
        "# Where a step is predicted to be shorter than with the 16-bit all-reduce",
        f"Predicted by `{markdown(asked)}`; nothing was measured. {_grid_in_words(grid)}",
        f"Made by {markdown(provenance.made_by([provenance.code()]))}.",
        "![A heat map a method](map.png)",
        _table(of_methods),
        _how_to_read(compared),
        "## By profile",
        _by_profile(found, chosen, [row["method"] for row in of_methods]),
        "## How far to trust it",
        _errors_in_words(compared),
    ]
    return "\n\n".join(parts) + "\n"


def _grid_in_words(grid: Grid) -> str:
    rates = f"{format_rate(grid.rates_bps[0])} to {format_rate(grid.rates_bps[-1])}"
    rtts = ", ".join(map(format_time, grid.rtts_s))
    workers = f"{grid.workers[0]:,} to {grid.workers[-1]:,}"
    speeds = ", ".join(f"x{percent / 100:g}" for percent in grid.speeds_percent)
    return (
        f"{grid.cells:,} cells for each profile and method, all of which count alike: links of {rates}, round trips of "
        f"{rtts}, {workers} workers in a star, devices of {speeds} the profile's speed."
    )


def _how_to_read(compared: pd.DataFrame) -> str:
    text = "A share is that of all cells, over all profiles that know the method's codec. Accuracy is not in it."
    if len(compared):
        text += (
            f" The last column asks for a gain of {margin(compared):.2f}: what is left if a method's step is predicted "
            "as much too short as the worst case [below](#how-far-to-trust-it)."
        )
    return text


def _by_profile(found: pd.DataFrame, chosen: Sequence[Subject], labels: Sequence[str]) -> str:
    of_profiles = shares(found, ["profile", "label"])
    head = ["profile", "16-bit", *map(markdown, labels)]
    timed = " or ".join(map(str, sorted({workers for subject in chosen for workers in subject.codec_workers})))
    lines = [
        [
            markdown(f"{subject.name} ({subject.profile.origin})"),
            markdown(subject.base.label) + ("" if subject.knows_base else ", free"),
            *(_percent(of_profiles.get((subject.name, label))) for label in labels),
        ]
        for subject in chosen
    ]
    note = (
        "*Free*: the profile does not know what the 16-bit all-reduce costs beside the wire. It is taken to cost "
        f"nothing, which favours it. Codecs were timed with {timed} workers. What it takes to decode the messages of "
        "more is not in it: with many workers, methods that gather look better than they are."
    )
    return table(head, lines, 2, len(head)) + "\n\n" + note


def _errors_in_words(compared: pd.DataFrame) -> str:
    if compared.empty:
        return "No errors are known here: `nox -s flow_model` compares the model with emulated networks and SimGrid."
    head = ["what was compared", "cases", "workers at most", "median error", "from", "to"]
    lines = [
        [
            markdown(str(row["compared"])),
            *(f"{row[column]:,}" for column in ("cases", "workers")),
            *(f"{100 * row[column]:+.1f} %" for column in ("median", "least", "most")),
        ]
        for _, row in compared.iterrows()
    ]
    return (
        "By how much the model's step was longer than the one that was found, in cells that can be emulated, and "
        "whole collectives in SimGrid's fluid model (`nox -s flow_model`).\n\n" + table(head, lines, 1, 5)
    )


def _table(entries: Sequence[Mapping[str, str]]) -> str:
    return table(list(entries[0]), [list(map(markdown, row.values())) for row in entries], 1, len(entries[0]))


def _percent(share: Any) -> str:
    return UNKNOWN if share is None or pd.isna(share) else f"{100 * share:.0f} %"
