"""Text of others, shown as it is: labels, names, reasons and logs may hold any sign, and none of them is obeyed.

What would steer a terminal or turn a page's text round is written as an escape, such as ``\\x1b`` or ``\\u202e``. What
would be markup is escaped by the one function of that kind of page; HTML's own is Jinja's.
"""

from __future__ import annotations

import bisect
import codecs
import re
from collections.abc import Callable

STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # of terminals: ESC, line ends, and the like
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # of the direction of what follows
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line ends, a mark of byte order, notes between lines
    "\ud800-\udfff\ufffe\uffff]"  # no characters at all: no file of text can hold them
)

MARKDOWN_SIGNS = re.compile(r"[\\`*_\[\]|~$]")
MARKDOWN_STARTS = re.compile(r"^(\d*)([#>=]|[+-](?!\d)|(?<=\d)[.)](?= |$))")
"""How lines begin that are headings, quotations, lists or rules; but no number."""

IN_ASCII = {"–": "-", "…": "~", "×": "x", "÷": "/", "µ": "u", "─": "-", "█": "#"}
"""What stands for our own signs where a terminal cannot show them; each as wide as the sign."""

BREAKS = re.compile(r"(?<=[ =])(?=[^ =])|(?<=,)(?=[^ ,\d])|(?<=\w-)(?=[^ \d-])")
"""Where lines may end: behind blanks, equals signs, commas and hyphens, but within no number."""

ELLIPSIS = "…"

UTF_8 = "text in UTF-8"
"""What is allowed where files of ours must hold what a command line gives, whose arguments may be any bytes."""


def visible(text: str) -> str:
    """Text on one line, in which whatever steers terminals and pages is an escape as Python writes it."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def is_utf_8(text: str) -> bool:
    """Whether it can be written so. Python makes surrogates of bytes that cannot, in arguments, variables and paths."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def visible_lines(text: str) -> str:
    """The same of text with lines, such as a log's end: line ends stay, and tabs become blanks."""
    return "\n".join(visible(line.expandtabs()) for line in text.splitlines())


def prose(text: str) -> str:
    """A description on one line: its line ends are blanks."""
    return visible(" ".join(text.split()))


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a paragraph, a heading, a list or a table's cell."""
    shown = re.sub(" +", " ", visible(text)).strip()
    escaped = MARKDOWN_SIGNS.sub(r"\\\g<0>", shown.replace("&", "&amp;").replace("<", "&lt;"))
    return MARKDOWN_STARTS.sub(r"\1\\\2", escaped)


def wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Text in lines that fit, broken where it may be, and within a word that no line has room for.

    Args:
        fits: whether there is room for a line; for a single character there always is.
    """
    lines = [""]
    for piece in _pieces(text, fits):
        if fits((lines[-1] + piece).rstrip()):
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines if line.strip()] or [""]


def shortened(text: str, lines: int, fits: Callable[[str], bool]) -> list[str]:
    """The same in so many lines at most; what has no room there is an ellipsis."""
    found = wrapped(text, fits)
    if len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and not fits(last + ELLIPSIS):
        last = last[:-1]
    return [*found[: lines - 1], last.rstrip() + ELLIPSIS]


def _pieces(text: str, fits: Callable[[str], bool]) -> list[str]:
    found: list[str] = []
    for piece in BREAKS.split(text):
        found += [piece] if fits(piece.rstrip()) else _chopped(piece, fits)
    return found


def _chopped(word: str, fits: Callable[[str], bool]) -> list[str]:
    """A word in parts, each as long as there is room for."""
    parts = []
    while word:
        count = bisect.bisect_left(range(1, len(word) + 1), True, key=lambda length: not fits(word[:length]))
        parts.append(word[: max(count, 1)])
        word = word[max(count, 1) :]
    return parts


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """For streams: our own signs by what stands for them, and all else that cannot be written as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(sign) or sign.encode("unicode_escape").decode("ascii") for sign in lost), error.end


codecs.register_error("pacbench", _in_ascii)
