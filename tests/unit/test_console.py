"""What a terminal is shown: numbers are whole at any width, and text is no more than text."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from harness import plain
from harness.cli.console import print_table

numbers = st.builds(
    lambda value, form: form.format(value),
    st.floats(0, 99999, allow_nan=False),
    st.sampled_from(["{:.2f}x [1.80, 2.30]", "{:.1f} %", "> {:.0f} steps", "{:.3g} MB (2 of 3 reached)", "–", "yes"]),
)
labels = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


def printed(title: str, columns: list[str], rows: list[list[str]], room: int, words: tuple[str, ...] = ()) -> str:
    file = io.StringIO()
    print_table(title, columns, rows, words, room, file)
    return file.getvalue()


def parts(texts: Iterable[str]) -> Counter[str]:
    return Counter(part for text in texts for part in re.split(r"[\s\[\](),]+", text) if part)


@given(
    st.data(),
    st.lists(labels, min_size=1, max_size=4),
    st.integers(1, 10),
    st.integers(40, 200),
    st.text(max_size=200),
)
def test_every_number_of_every_cell_is_whole_at_any_width(
    data: st.DataObject, names: list[str], columns: int, room: int, title: str
) -> None:
    cells = st.lists(numbers, min_size=columns, max_size=columns)
    rows = [[name, *data.draw(cells)] for name in names]
    headings = ["method", *(f"over {data.draw(labels)} {number}" for number in range(columns))]
    shown = printed(title, headings, rows, room)
    found, asked = parts([shown]), parts(cell for _, *own in rows for cell in own)
    assert found >= asked, (asked - found, shown)
    assert max(map(cell_len, shown.split("\n"))) <= room


def test_what_fits_stands_on_one_line_and_what_does_not_is_folded_then_split() -> None:
    rows = [["dense", "1.00x", "2.31 s"], ["pactrain ternary, warm-up of 16 steps", "2.03x [1.80, 2.30]", "262 ms"]]
    columns = ["method", "over dense", "to target"]
    assert "pactrain ternary, warm-up of 16 steps   2.03x [1.80, 2.30]      262 ms" in printed("", columns, rows, 100)
    wrapped = printed("", columns, rows, 52)
    assert "2.03x [1.80, 2.30]" in wrapped
    folded = printed("", columns, rows, 46)
    assert re.search(r"2.03x +262 ms.*\n.*\[1.80, 2.30\]", folded)
    assert folded.count("method") == 1
    assert printed("", columns, rows, 40).count("method") == 2


def test_labels_that_begin_alike_are_told_apart() -> None:
    rows = [[f"{'a very long label ' * 12}{number}", "1"] for number in range(2)]
    shown = printed("", ["method", "samples/s"], rows, 40)
    assert re.search(r"label 0|abel 0|\b0\b", shown)


@pytest.mark.parametrize("text", ["[/x] [bold]b[/bold]", ":smile: [red]", "top-k 中文 é"])
def test_markup_is_only_text(text: str) -> None:
    shown = printed(text, ["method", text], [[text, text]], 160, (text,))
    assert shown.count(text) == 4


def test_what_steers_a_terminal_is_shown() -> None:
    shown = printed("a\x1b[31m", ["m\x07"], [["x\u202ey\nz\tw\x9b"]], 160)
    assert shown.isprintable() or not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    for escape in (r"\x1b[31m", r"m\x07", r"x\u202ey\nz\tw\x9b"):
        assert escape in shown


COLOUR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9\d|10[0-7])(;\d+)*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_none(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    table = ("a title", ["method", "samples/s"], [["dense", "3"]], (), 40)
    file = Terminal()
    print_table(*table, file=file)
    assert not COLOUR.search(file.getvalue())
    for name in variables:
        monkeypatch.delenv(name)
    plain_file = io.StringIO()
    print_table(*table, file=plain_file)
    assert re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()) == plain_file.getvalue()


@given(st.text(), st.integers(1, 30), st.integers(1, 5))
def test_wrapping_loses_nothing_but_blanks(text: str, width: int, lines: int) -> None:
    wrapped = plain.wrapped(text, lambda line: len(line) <= width)
    assert all(len(line) <= width for line in wrapped)
    assert "".join(wrapped).replace(" ", "") == text.replace(" ", "").strip() or any(map(str.isspace, text))
    short = plain.shortened(text, lines, lambda line: len(line) <= width)
    assert len(short) <= lines
    assert all(len(line) <= width for line in short)
    assert short == wrapped or short[-1].endswith(plain.ELLIPSIS)


WITHOUT_FIGURES = """
from harness.cli.main import main
from harness.report.figures import registry
registry.figures = lambda for_paper=False: []
main()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_takes_all_and_shows_nothing(closed: str, tmp_path: Path) -> None:
    few = "run quickstart --on fake --method topk --rounds 1 --set train.steps=40 --out run"
    for arguments, code in (("list methods", 0), (few, 0), ("plan no-such-scenario", 2)):
        shell = f'exec "$0" -c "$1" {arguments} {closed}'
        words = ["sh", "-c", shell, sys.executable, WITHOUT_FIGURES]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == code, done
        assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


ASKED_TO_END_WHILE_IT_ENDS = """
import os, signal, sys
from harness.cli.main import main

class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), numbers=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        for number in numbers:
            kill(own, number)
        print("late", flush=True)

late = Late()
main()
"""


@pytest.mark.parametrize(("words", "code"), [(("list", "models"), 0), (("plan", "no-such-scenario"), 2)])
def test_a_command_that_has_ended_keeps_its_exit_code_whatever_signal_comes(words: tuple[str, str], code: int) -> None:
    """The second Ctrl-C may come when the interpreter has already taken its handlers away."""
    started = [sys.executable, "-c", ASKED_TO_END_WHILE_IT_ENDS, *words]
    done = subprocess.run(started, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()[-1]) == (code, "late"), done
    assert "Traceback" not in done.stderr


def test_a_command_whose_reader_has_gone_ends_by_no_signal_either() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    started = [sys.executable, "-c", ASKED_TO_END_WHILE_IT_ENDS.replace('print("late", flush=True)', "pass")]
    with open(writing, "w") as unread:
        done = subprocess.run([*started, "list", "models"], stdout=unread, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode >= 0, done.stderr) == (True, b""), done


ASKED_TO_END_WHILE_IT_IMPORTS = """
import os, signal, sys, time

def strike():
    os.kill(os.getpid(), signal.Signals[os.environ["NUMBER"]])

class Dying:
    def __del__(self):
        strike()

class Early:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MODULE"]:
            exec(os.environ["STRIKE"])

sys.meta_path.insert(0, Early())
"""
STRIKES = {
    "at first": {"MODULE": "harness.cli.app", "STRIKE": "strike()"},
    "for a verb": {"MODULE": "harness.workload.models", "STRIKE": "strike()"},  # as a dataclass is made
    "in a destructor": {"MODULE": "harness.workload.models", "STRIKE": "Dying(); time.sleep(60)"},
}


@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_that_still_imports_is_interrupted_in_one_line(number: str, strike: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ASKED_TO_END_WHILE_IT_IMPORTS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBER": number, **STRIKES[strike]}
    command = [sys.executable, "-m", "harness", "list", "models"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, ""), done
    assert done.stderr == "pacbench: interrupted; what had finished is kept\n"
    if (number, strike) == ("SIGTERM", "in a destructor"):
        in_background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
        beside = subprocess.run(in_background, env=environment, capture_output=True, text=True, timeout=60)
        assert beside.returncode == 130, beside
    if (number, strike) == ("SIGHUP", "for a verb"):
        ignoring = subprocess.run(["nohup", *command], env=environment, capture_output=True, text=True, timeout=60)
        assert ignoring.returncode == 0, ignoring


@given(st.text(st.characters(codec=None)))
def test_what_is_visible_can_be_written_and_stays_as_it_is(text: str) -> None:
    shown = plain.visible(text)
    shown.encode("utf-8")
    assert plain.visible(shown) == shown
    assert not plain.STEERING.search(shown)
