"""The page of verdicts: what can be cited follows from the verdicts, what was not run says so, nothing needs colour."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.claims import summary
from harness.analysis.claims.judgements import VERDICTS, Judgement, Part, Verdict, verdict_on
from harness.analysis.claims.one_piece import OnePiece
from harness.analysis.claims.schema import Claim
from harness.analysis.estimates import Estimate
from harness.report import citing, claims_page
from harness.report.claims import cells, why
from harness.report.figures.claims import VERDICT_LOOKS, draw_all, write_claims
from harness.report.figures.drawing import style

PROVENANCE = {"commit": "abc", "started": "today", "command": ["pacbench", "reproduce"]}
EVIL = "<script>document.title = 'taken'</script>"


def claim(**changes: Any) -> Claim:
    fields: dict[str, Any] = {
        "id": "fast/a",
        "source": "Somebody, Fast, 2020",
        "place": "abstract",
        "wording": "faster",
    }
    fields |= {"quantity": "throughput", "model": "resnet50", "rate": "1gbit", "workers": 8, "baseline": "bf16"}
    fields |= {"method": "topk", "range": (1.25, 8.0), "scenario": "some"}
    return Claim.model_validate({**fields, **changes})


def judgement(*found: tuple[float, float, float] | None, **changes: Any) -> Judgement:
    """With an interval for each share of the device, or None where nothing was run."""
    shares = [1.0, 0.5, 0.25][: len(found)]
    asked = claim(devices=shares, **changes)
    parts = []
    for share, each in zip(shares, found, strict=True):
        estimate = Estimate(*each, 3) if each else None
        verdict, reason = verdict_on(estimate, asked) if estimate else ("inconclusive", "nothing of it was run")
        parts.append(Part(share, verdict, estimate, reason))
    origins = ("throughput: resnet50, 9 trials on netns, some-1",) if any(found) else ()
    first = parts[0]
    return Judgement(asked, first.verdict, first.found, first.reason, "Bytes allow it.", origins, "", tuple(parts))


def without_run(verdict: Verdict, **changes: Any) -> Judgement:
    return Judgement(claim(**changes), verdict, None, "there is no such switch", "", ())


NOT_TESTABLE = {"scenario": None, "not_testable": "there is no such switch"}


def test_a_gain_reaches_over_the_intervals_of_all_cases_and_devices() -> None:
    own = [
        judgement((2.0, 1.9, 2.1), (1.8, 1.7, 1.9)),
        judgement((0.9, 0.8, 1.2), model="vgg19"),
        judgement(None, model="vit-b-16"),
        judgement((3.0, 2.9, 3.1), baseline="dense"),
    ]
    over_16_bits, over_dense = summary.gains([own[3], *own[:3]])
    assert (over_16_bits.baseline, over_dense.baseline) == ("bf16", "dense"), (
        "16 bits come first, whatever the file says"
    )
    assert (over_16_bits.low, over_16_bits.high) == (0.8, 2.1)
    assert over_16_bits.ahead == (own[0],)
    assert over_16_bits.open == (own[2],)


def test_what_lies_between_two_devices_that_are_ahead_is_ahead_though_it_was_not_run() -> None:
    own = judgement((2.0, 1.9, 2.1), None, (1.5, 1.4, 1.6))
    assert summary.gains([own])[0].ahead == (own,)
    behind = judgement((2.0, 1.9, 2.1), (1.9, 1.8, 2.0), None)
    assert summary.gains([behind])[0].ahead == ()


def test_a_case_that_two_claims_are_about_counts_once() -> None:
    found = summary.gains([judgement((2.0, 1.9, 2.1)), judgement((2.0, 1.9, 2.1), id="other", range=(1.0, math.inf))])
    assert [len(gain.measured) for gain in found] == [1]


intervals = st.tuples(st.floats(0.1, 50), st.floats(1.01, 1.5)).map(lambda it: (it[0], it[0] / it[1], it[0] * it[1]))


@given(st.lists(intervals, min_size=1, max_size=3))
def test_what_is_cited_is_what_was_found(found: list[tuple[float, float, float]]) -> None:
    (said,) = citing.citable([judgement(*found)])
    low, high = min(low for _, low, _ in found), max(high for *_, high in found)
    assert f"topk had {low:.3g} to {high:.3g} times the throughput of bf16, a 16-bit all-reduce" in said
    is_ahead = found[0][1] > 1 and found[-1][1] > 1
    assert f"surely ahead in {int(is_ahead)} of 1 cases" in said


def test_the_sentence_says_over_whom_where_and_at_what_accuracy() -> None:
    cost = judgement((1.5, 1.2, 1.8), quantity="accuracy", model="fashion-cnn", rate="unshaped", range=(-math.inf, 2.0))
    own = [
        judgement((2.0, 1.9, 2.1), (1.8, 1.7, 1.9), rate="100mbit"),
        judgement((2.0, 1.9, 2.1), (1.8, 1.7, 1.9)),
        judgement((4.0, 3.9, 4.1), (3.8, 3.7, 3.9), baseline="dense"),
        judgement(None, None, model="vit-b-16"),
    ]
    (said,) = citing.citable([*own, cost])
    for part in (
        "1.7 to 2.1 times the throughput of bf16, a 16-bit all-reduce (surely ahead in 2 of 2 cases); 3.7 to 4.1",
        "times the throughput of dense (surely ahead in 1 of 1 cases) (8 workers, a whole or a half device each: "
        "resnet50 at 1 Gbit/s).",
        "That is with 8 workers, a whole or a half device each: resnet50 at 100 Mbit/s, 1 Gbit/s.",
        "Final accuracy against bf16's: -1.5 points [-1.8, -1.2] (fashion-cnn, trained for real).",
        "Nothing is known of vit-b-16.",
    ):
        assert part in said
    (without,) = citing.citable(own)
    assert "What it costs in accuracy is not known here." in without


def test_where_nothing_was_run_nothing_is_said_but_that() -> None:
    own = [judgement(None), judgement(None, baseline="dense")]
    assert citing.citable(own) == [
        "topk, throughput: nothing was run. What it gives over bf16 or dense is not known here."
    ]
    assert citing.gaps(own) == "Of 2 of 2 claims nothing is known here yet: fast (resnet50)."
    assert not citing.gaps([judgement((2.0, 1.9, 2.1)), without_run("not testable here", **NOT_TESTABLE)])


def test_time_to_accuracy_says_whose_steps_they_are() -> None:
    (said,) = citing.citable([judgement((2.0, 1.9, 2.1), quantity="time to accuracy", convergence="small-training")])
    assert "topk was at the target accuracy 1.9 to 2.1 times as soon as bf16" in said
    assert "Steps to the target are those of small-training." in said


def test_each_training_s_steps_and_accuracy_are_told() -> None:
    """Of one replay with the steps of two trainings there are two figures, and none hides the other."""

    def trained(name: str, value: float, lost: float) -> list[Judgement]:
        found, cost = (value, value - 0.1, value + 0.1), (lost, lost - 0.2, lost + 0.2)
        return [
            judgement(found, quantity="time to accuracy", convergence=name),
            judgement(cost, quantity="accuracy", model=f"{name}-net", rate="unshaped", range=(-math.inf, 2.0)),
        ]

    (said,) = citing.citable([*trained("plain", 2.0, 0.5), *trained("residual", 3.0, -0.5)])
    assert "1.9 to 3.1 times as soon as bf16, a 16-bit all-reduce (surely ahead in 2 of 2 cases)" in said
    assert "Steps to the target are those of plain and of residual." in said
    plain, residual = "-0.5 points [-0.7, -0.3] (plain-net", "+0.5 points [+0.3, +0.7] (residual-net"
    assert f"Final accuracy against bf16's: {plain}, trained for real), {residual}, trained for real)." in said


def test_only_what_has_a_figure_counts_as_measured_in_one_piece() -> None:
    piece = OnePiece(device=1.0, model="small", ratio=2.0, claimed_ratio=2.0, warm_up={})
    pieces = [replace(piece, found=Estimate(3.0, 2.9, 3.1, 3)), replace(piece, problem="topk missed the target")]
    training = {"quantity": "time to accuracy", "convergence": "small-training"}
    own = [
        replace(judgement((2.0, 1.9, 2.1), rate=rate, **training), in_one_piece=(each,))
        for rate, each in zip(("100mbit", "1gbit"), pieces, strict=True)
    ]
    (said,) = citing.citable(own)
    assert "2.9 to 3.1 times as soon as bf16 (in 1 of 2 cases)" in said


def test_a_figure_that_is_not_to_be_trusted_is_not_told_as_found() -> None:
    own = judgement((2.0, 1.9, 2.1), (9.0, 8.9, 9.1))
    spoilt = replace(own, parts=(own.parts[0], replace(own.parts[1], is_trusted=False)))
    assert "9.0" not in why(spoilt)
    assert cells(spoilt)["found"].endswith("a half device: 9.00 [8.90, 9.10], not to be trusted")


def test_a_figure_that_is_not_to_be_trusted_is_told_so_though_no_other_is() -> None:
    for own, found in (
        (judgement((2.0, 1.9, 2.1)), "2.00 [1.90, 2.10], not to be trusted"),
        (
            judgement((2.0, 1.9, 2.1), (9.0, 8.9, 9.1)),
            "a whole device: 2.00 [1.90, 2.10], not to be trusted; a half device: 9.00 [8.90, 9.10], not to be trusted",
        ),
    ):
        spoilt = replace(own, parts=tuple(replace(part, is_trusted=False) for part in own.parts))
        assert cells(spoilt)["found"] == found


def test_who_failed_for_good_is_not_told_as_unknown() -> None:
    asked = claim(quantity="time to accuracy", convergence="small-training")
    reason = "topk missed the target in 3 of 3 trainings"
    failed = Judgement(asked, "not reproduced", None, reason, "", (), "", (Part(1.0, "not reproduced", None, reason),))
    (said,) = citing.citable([failed])
    assert said.startswith("topk, time to accuracy: no figure can be given. With resnet50 topk missed the target")
    assert "Nothing is known" not in said
    assert not citing.gaps([failed])


def test_why_is_told_in_plain_words() -> None:
    several = why(judgement((2.0, 1.9, 2.1), (1.8, 1.7, 1.9)))
    assert several.startswith(
        "topk was 2.00 [1.90, 2.10] (a whole device), 1.80 [1.70, 1.90] (a half device) times as fast as bf16. It lies"
    )
    assert why(judgement(None)) == "Nothing of it was run. Bytes allow it."


class Read(HTMLParser):
    """What a page shows, and the names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(page)

    tags: list[str]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def all_verdicts() -> list[Judgement]:
    return [
        judgement((2.0, 1.9, 2.1)),
        judgement((9.0, 8.9, 9.1), rate="100mbit"),
        judgement((0.5, 0.4, 0.6), baseline="dense"),
        judgement((1.2, 1.0, 1.4), model="vgg19"),
        judgement(None, model="vit-b-16"),
        without_run("source inconsistent", id="odd", wording=EVIL),
        without_run("not testable here", id="far", **NOT_TESTABLE),
        judgement((1.5, 1.2, 1.8), id="lost", quantity="accuracy", range=(-math.inf, 2.0)),
        judgement((0.6, 0.55, 0.65), id="part", quantity="ablation", without="dense", range=(0.5, math.inf)),
        judgement((20.0, 19.0, 21.0), id="sent", quantity="bytes", range=(270.0, 600.0)),
    ]


def test_the_page_has_every_verdict_with_a_sign_and_its_reason(all_verdicts: list[Judgement], tmp_path: Path) -> None:
    drawings = write_claims(all_verdicts, tmp_path)
    page = claims_page.write(all_verdicts, tmp_path, PROVENANCE, drawings).read_text()
    read = Read(page)
    assert len(set(claims_page.MARKS.values())) == len(VERDICTS)
    for verdict in VERDICTS:
        assert f"{claims_page.MARKS[verdict]} {verdict}" in read.text
    for each in all_verdicts:
        assert each.reason in read.text
    assert "topk had 1 to 9.1 times the throughput of bf16" in read.text
    assert "Of 1 of 10 claims nothing is known here yet: fast (vit-b-16)." in read.text
    assert "script" not in read.tags
    assert EVIL in read.text, "shown, not run"
    assert page.count("<img") == len(drawings) == 4
    linked = [
        name for name in ("claims", "claims-bytes", "claims-accuracy", "claims-shares") if f'"{name}.png"' in page
    ]
    assert len(linked) == 4
    assert all((tmp_path / f"{name}.png").is_file() for name in linked)


def test_a_fake_clusters_verdicts_are_told_as_such(tmp_path: Path) -> None:
    honest = judgement((2.0, 1.9, 2.1))
    assert not citing.is_scripted([honest])
    origin = "throughput: resnet50, 9 trials on a fake cluster, SCRIPTED, not measured, some-1"
    recited = Judgement(**{**vars(honest), "origins": (origin,)})
    assert (
        "They say nothing about any method" in Read(claims_page.write([recited], tmp_path, PROVENANCE).read_text()).text
    )


def test_the_picture_has_a_mark_for_each_verdict_where_it_was_found(all_verdicts: list[Judgement]) -> None:
    assert len({marker for _, marker in VERDICT_LOOKS.values()}) == len(VERDICT_LOOKS)
    with style():
        drawing = next(draw_all(all_verdicts))
    over_16_bits, over_dense = drawing.figure.axes
    marks = {
        (line.get_marker(), float(line.get_xdata()[0]))
        for axes in (over_16_bits, over_dense)
        for line in axes.lines
        if line.get_marker() not in ("None", "", None)
    }
    expected = {(VERDICT_LOOKS[each.verdict][1], each.found.value) for each in all_verdicts[:4] if each.found}
    assert marks == expected
    said = [text.get_text() for axes in drawing.figure.axes for text in axes.texts]
    for nothing in ("nothing of it was run", "source inconsistent", "not testable here"):
        assert nothing in said
    assert over_16_bits.get_xscale() == "log"


def test_baselines_that_share_a_column_are_all_in_the_picture() -> None:
    found = {"fp16": (2.0, 1.9, 2.1), "bf16": (3.0, 2.9, 3.1), "dense": (4.0, 3.9, 4.1)}
    drawn = [judgement(interval, id=f"fast/{name}", baseline=name) for name, interval in found.items()]
    with style():
        (drawing,) = draw_all(drawn)
    over_16_bits, over_dense = (
        [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == VERDICT_LOOKS["reproduced"][1]]
        for axes in drawing.figure.axes
    )
    assert (over_16_bits, over_dense) == ([2.0, 3.0], [4.0])
    said = " ".join(text.get_text().replace("\n", " ") for axes in drawing.figure.axes for text in axes.texts)
    assert all(f"over {name}" in said for name in ("fp16", "bf16"))
