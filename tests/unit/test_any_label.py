"""Labels may hold any sign and be of any length: each output shows them as they are, and every figure has room."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from in_process import call_pacbench
from markdown_it import MarkdownIt
from matplotlib.text import Text
from synthetic import make_store

from harness.analysis.cases import CaseResult, case_results
from harness.analysis.claims import schema
from harness.analysis.claims.judgements import Judgement, Part
from harness.analysis.crossover import RATE_OF_WORKERS_BPS
from harness.analysis.estimates import Estimate
from harness.plain import markdown, visible
from harness.report import paper
from harness.report.figures import layout, registry
from harness.report.figures.claims import claims as draw_claims
from harness.report.figures.crossover import crossover
from harness.report.figures.drawing import style
from harness.report.figures.look import Look
from harness.report.figures.registry import Drawing, Results
from harness.report.figures.throughput import throughput
from harness.scenario.load import load

WIDTHS_IN = (3.5, 5.2, 7.2)

# Figures have room


class Kind(NamedTuple):
    """A kind of labels."""

    length: int
    with_blanks: bool
    count: int


KINDS_AND_WIDTHS = [
    *((Kind(length, blanks, 2), width) for length in (46, 200) for blanks in (True, False) for width in WIDTHS_IN),
    *((Kind(1, False, 2), 3.5), (Kind(70, True, 2), 5.2), (Kind(70, False, 2), 7.2)),
    *((Kind(1, False, 24), 3.5), (Kind(70, True, 24), 5.2), (Kind(200, False, 24), 7.2), (Kind(200, False, 24), 3.5)),
]
"""Every width with labels short and long, with and without blanks, few and many; and the most text in least room."""


class Measured(NamedTuple):
    """What figures are drawn from."""

    cases: list[CaseResult]
    events: pd.DataFrame
    labels: list[str]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A run of 24 methods at two rates."""
    folder = tmp_path_factory.mktemp("labels")
    methods = "".join(f"[[methods]]\nname = 'topk'\nratio = {0.5 / number}\n" for number in range(1, 24))
    scenario = folder / "many.toml"
    scenario.write_text(
        "rounds = 1\n[link]\nrate = ['10mbit', '1gbit']\n[cluster]\nworkers = 2\n[train]\nsteps = 8\n"
        f"[[methods]]\nname = 'dense'\n{methods}"
    )
    store = make_store(folder / "run", scenario=str(scenario))
    events = store.events()
    rates = events[events["kind"] == "step_s"].assign(kind="link_rate_bps", value=1e7)
    perplexities = events[events["kind"] == "accuracy"].assign(kind="perplexity")
    cases = case_results(store.trials(), store.scenario())
    labels = [method.label for method in store.scenario().methods]
    return Measured(cases, pd.concat([events, rates, perplexities]), labels)


def labels_of(kind: Kind) -> list[str]:
    """All different, where their length leaves room for it."""
    body = "pactrain ternary, warm-up of 16 steps, values=fp32 " if kind.with_blanks else "PactrainTernary0123456789"
    signs = [chr(ord("A") + number) for number in range(kind.count)]
    return [(sign + body * 8)[: kind.length - 1].ljust(kind.length - 1, "x") + sign for sign in signs]


def relabelled(measured: Measured, kind: Kind) -> tuple[list[CaseResult], dict[str, Look]]:
    """The same cases with fewer methods, under other labels, and with a workload of such a name."""
    names = dict(zip(measured.labels, labels_of(kind), strict=False))
    cases = [
        replace(
            case,
            parts=(*case.parts[:-1], next(iter(names.values()))),
            methods=tuple(
                replace(
                    each,
                    label=names[each.label],
                    over={names[label]: gain for label, gain in each.over.items() if label in names},
                )
                for each in case.methods
                if each.label in names
            ),
        )
        for case in measured.cases[: 2 if kind.length == 46 else 1]
    ]
    cases = [
        replace(case, trials=case.trials[case.trials["label"].isin(names)].replace({"label": names})) for case in cases
    ]
    look = Look((0.2, 0.4, 0.6), "-", "o")
    return cases, dict.fromkeys(names.values(), look)


def drawings(measured: Measured, kind: Kind) -> Iterator[Drawing]:
    cases, looks = relabelled(measured, kind)
    events, both = measured.events, dict.fromkeys(("baseline", "baseline_16bit"), next(iter(looks)))
    scenario = load("quickstart").model_copy(update=both)
    if kind.length not in (46, 200):  # titles and legends of any other length are seen in other figures
        events = events[~events["kind"].isin(["perplexity", "link_rate_bps"])]
    results = Results(cases, events, scenario, looks, scenario.baseline)
    for draws in registry.figures(for_paper=True):
        yield from draws(results)
    yield draw_claims(judged(list(looks)))
    yield crossover(predicted(list(looks)), looks)


def judged(labels: list[str]) -> list[Judgement]:
    claim = schema.load()[0]
    return [
        Judgement(
            claim.model_copy(update={"method": (label,), "baseline": labels[0]}),
            "reproduced",
            Estimate(2.0, 1.8, 2.2, 3),
            "",
            "",
            (),
            parts=(Part(1.0, "reproduced", Estimate(2.0, 1.8, 2.2, 3), ""),),
        )
        for label in labels
    ]


def predicted(labels: list[str]) -> pd.DataFrame:
    rates = itertools.product(labels, (2, 8, 64), (1e7, RATE_OF_WORKERS_BPS, 1e11))
    rows = [(labels[-1], *each, 1 + 0.1 * np.log10(each[2])) for each in rates]
    return pd.DataFrame(rows, columns=["replay", "label", "workers", "rate_bps", "speedup"])


def style_of(width_in: float) -> dict[str, object]:
    if width_in > 3.5:
        return {"figure.figsize": (width_in, 4.0)}
    small = paper.COLUMNS["one-column"]
    return {**small, **dict.fromkeys(paper.SMALLER, small["font.size"])}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """Every text that is really drawn, in order."""
    found: list[Text] = []
    draw = Text.draw

    def watched(text: Text, renderer: object, *arguments: object, **named: object) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        draw(text, renderer, *arguments, **named)

    monkeypatch.setattr(Text, "draw", watched)
    return found


@pytest.mark.parametrize(("kind", "width_in"), KINDS_AND_WIDTHS, ids=str)
def test_no_text_leaves_its_figure_or_covers_another(
    measured: Measured, drawn: list[Text], kind: Kind, width_in: float
) -> None:
    with style(style_of(width_in)):
        for drawing in drawings(measured, kind):
            drawn.clear()
            drawing.figure.set_dpi(200)
            drawing.figure.draw_without_rendering()
            assert drawing.figure.get_figwidth() <= width_in
            assert_apart(drawing, drawn)
            if "label" in drawing.data:
                assert set(drawing.data["label"]) <= set(labels_of(kind)), "tables have labels as they are"


def assert_apart(drawing: Drawing, drawn: list[Text]) -> None:
    canvas, boxes = drawing.figure.bbox, [(text.get_text(), text.get_window_extent()) for text in drawn]
    for text, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= canvas.x1 + 1 and box.y1 <= canvas.y1 + 1
        assert inside, (drawing.name, text, box.extents, canvas.extents)
    for (text, box), (other, other_box) in itertools.combinations(boxes, 2):
        across = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
        along = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
        assert min(across, along) <= 2, (drawing.name, text, other)


def test_a_label_without_room_stands_whole_in_the_key(measured: Measured, drawn: list[Text]) -> None:
    kind = Kind(200, True, 2)
    with style(style_of(3.5)):
        cases, looks = relabelled(measured, kind)
        results = Results(cases, measured.events, load("quickstart"), looks, next(iter(looks)))
        (drawing,) = throughput(results)
        drawing.figure.draw_without_rendering()
    shown = [" ".join(text.get_text().split()) for text in drawn]
    rows = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert [row[:3] for row in rows] == ["A: ", "B: "]
    for sign, label in zip("AB", looks, strict=True):
        assert any(f"{sign}: {' '.join(label.split())}" in text for text in shown)


def test_no_sign_of_a_key_is_a_label() -> None:
    with style():
        key = layout.Key(["A", "C", "a long label", "another one"])
        assert [key.inline(label, 0.2, "font.size") for label in ("A", "a long label", "another one")] == [
            "A",
            "B",
            "D",
        ]
        assert key.text(2.0) == "B: a long label\nD: another one"


def test_what_the_font_lacks_is_shown_by_its_number() -> None:
    with style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layout.shown("é 中文 \u202e x") == r"é U+4E2D U+6587 \u202e x"


# Each output shows them as they are

LABELS = (
    "dense [fp32]",
    "[/x] [bold]b[/bold] :smile:",
    "<b>h</b> &amp; <img src=x onerror=alert(1)>",
    "$x$ 50 % _a_ #2 {~^} \\ -- \"q\" 'q'",
    "| a ` *b* [c](d) ~~e~~",
    "* [0.5] # x",
    "_under",
    "esc \x1b[31m red \x07 tab\tline\nend",
    "rtl \u202e אבג 12 中文 😀",
)
NAME, DESCRIPTION = "name [y] <i> | $z$", "description [/y] <i> | $z$ \x1b[1m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of such labels was made, reported, held against itself, and compared, by the command line."""
    folder = tmp_path_factory.mktemp("text")
    quoted = [json.dumps(label, ensure_ascii=False) for label in LABELS]
    methods = "".join(
        f"[[methods]]\nname = 'topk'\nratio = {0.5 / number}\nlabel = {label}\n"
        for number, label in enumerate(quoted[1:], start=1)
    )
    (folder / "text.toml").write_text(
        f"name = {json.dumps(NAME)}\ndescription = {json.dumps(DESCRIPTION)}\nbaseline = {quoted[0]}\nrounds = 2\n"
        f"[train]\nsteps = 40\n[[methods]]\nname = 'dense'\nlabel = {quoted[0]}\n{methods}",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "figures", lambda for_paper=False: [throughput])  # all of them: see the tests above
        for command in COMMANDS:
            done = call_pacbench(tuple(command.split()), folder)
            (folder / f"{command.split()[0]}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
            (folder / f"{command.split()[0]}.code").write_text(str(done.returncode))
    return folder


COMMANDS = (
    "plan text.toml --on fake",
    "run text.toml --on fake --out run",
    "report run --paper",
    "gate run --against run --markdown g.md --junit g.xml --json g.json --benchmark-json b.json",
    "compare run run",
)


@pytest.mark.parametrize("verb", [command.split()[0] for command in COMMANDS])
def test_terminals_show_every_label_as_it_is(folder: Path, verb: str) -> None:
    shown = (folder / f"{verb}.txt").read_text(encoding="utf-8")
    assert "Traceback" not in shown
    assert (folder / f"{verb}.code").read_text() == "0"
    for label in LABELS[1:] if verb == "gate" else LABELS:
        begins = visible(label).split()[0] if verb == "compare" else visible(label)  # its columns leave less room
        assert begins in shown, label
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


class Page(HTMLParser):
    """A page's text, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(page: str) -> Page:
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page))


def test_pages_show_every_label_as_it_is(folder: Path) -> None:
    html = Page((folder / "run" / "report.html").read_text(encoding="utf-8"))
    page = rendered((folder / "run" / "report.md").read_text(encoding="utf-8"))
    gate = rendered((folder / "g.md").read_text(encoding="utf-8"))
    for found, labels in ((html, LABELS), (page, LABELS), (gate, LABELS[1:])):
        for label in (*labels, NAME):
            assert visible(label) in found.text, label
        assert found.tags.isdisjoint({"b", "i"} if found is html else {"b", "i", "a", "s", "del"})
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", found.text)
    assert "<bdi>" in (folder / "run" / "report.html").read_text(encoding="utf-8")


def test_files_for_programs_hold_every_label(folder: Path) -> None:
    suite = ElementTree.parse(folder / "g.xml")
    assert {case.get("name") for case in suite.iter("testcase")} == set(map(visible, LABELS[1:]))
    assert {each["label"] for each in json.loads((folder / "g.json").read_text())["methods"]} == set(LABELS[1:])
    assert {each["param"] for each in json.loads((folder / "b.json").read_text())["benchmarks"]} == set(LABELS)
    assert set(pd.read_csv(folder / "run" / "plots" / "throughput.csv")["label"]) == set(LABELS)


def test_latex_is_given_every_label_as_text(folder: Path) -> None:
    table = (folder / "run" / "paper" / "results.tex").read_text(encoding="utf-8")
    for label in LABELS:
        assert paper.tex(label) in table
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert not [row for row in rows if row.lstrip()[0] in "[*"]
    assert "אבג" in table
    assert r"\textbackslash{}x1b" in table


@pytest.mark.parametrize(
    "text",
    [
        "# h",
        "1. one",
        "2) two",
        "- a",
        "+ b",
        "> q",
        "=== ",
        "---",
        "~~~ f",
        "    code",
        "a\n\n# b",
        "![i](u)",
        "<!-- c -->",
    ],
)
def test_markdown_shows_text_as_it_is_wherever_it_begins(text: str) -> None:
    for before in ("", "# ", "* "):
        found = rendered(f"{before}{markdown(text)}\n")
        assert found.text.strip() == " ".join(visible(text).split())
        assert found.tags <= {"p", "h1", "ul", "li"}


@pytest.mark.parametrize(
    ("text", "kept"), [("+1.2 % [-0.6]", "+1.2 %"), ("-0.5", "-0.5"), ("2.03x", "2.03x"), ("100 Mbit/s", "100 Mbit/s")]
)
def test_markdown_leaves_numbers_as_they_are(text: str, kept: str) -> None:
    assert markdown(text).startswith(kept)


def test_an_error_is_one_line_whatever_was_found(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('baseline = "x\\u001b[31m\\n\\u202e"\n[[methods]]\nname = "dense"\n')
    done = call_pacbench(("run", "bad.toml", "--on", "fake"), tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert r"\x1b[31m\n\u202e" in done.stderr
