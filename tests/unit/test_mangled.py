"""Files and arguments, however mangled: the command ends with exit 0, 2 or 5, in one line, without a traceback."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import call_pacbench

from harness.analysis.claims import schema
from harness.errors import UsageError
from harness.scenario.load import load
from harness.workload import profile

SCENARIO = """description = "all that can be mangled"
rounds = 2
seed = 1
[cluster]
workers = [2, 3]
[link]
rate = "100mbit"
delay = "1ms"
jitter = "0.1ms"
burst = "64KiB"
loss_bursts = {p = "1%", r = "25%"}
up = { rate = "50mbit" }
[link.workers.w1]
rate = "10mbit"
[fabric]
groups = "a b"
oversubscription = 2.0
[train]
model = "digits-cnn"
steps = 20
lr = 0.05
bucket = "1MB"
timeout = "1min"
target = "accuracy 90%"
optimizer = { name = "sgd" }
schedule = "cosine"
[[methods]]
name = "dense"
[[methods]]
name = "topk"
ratio = [0.01, 0.1]
"""

CSV = "t_s,rate_bps,delay_s,loss\n0,1000000000,0.001,0.01\n2.5,50000000,0.02,0.02\n"
MAHIMAHI = "0\n1\n5\n5\n400\n"

TOKENS = st.sampled_from(
    [
        *(
            "",
            "inf",
            "-inf",
            "nan",
            "0",
            "-1",
            "1e999",
            "1e-999",
            "9" * 40,
            "9" * 5000,
            "true",
            '""',
            "[]",
            "{}",
            "[[]]",
        ),
        *(
            '"\\u0000"',
            '"\\ud800"',
            "'",
            '"',
            "\n",
            "=",
            "1979-05-27",
            "0x7fffffffffffffffffff",
            "[" * 3000,
            "ﬀ",
            "\ufeff",
        ),
        *('"../x"', '"x.py:y"', '"%s"', '"{0}"', '"' + "x" * 300 + '"', '["a", 1]', "1_000", "٣"),
    ]
)

FEW = {"derandomize": True, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@st.composite
def mangled(draw: st.DrawFn, text: str) -> bytes:
    """The text with a few of its words replaced, lines cut out or doubled, or bytes changed."""
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.integers(0, 3))
        if how == 0:
            words = list(re.finditer(r'"[^"\n]*"|[\w.%]+', text))
            word = words[draw(st.integers(0, max(len(words) - 1, 0)))] if words else None
            text = text if word is None else text[: word.start()] + draw(TOKENS) + text[word.end() :]
        elif how == 1:
            lines = text.split("\n")
            number = draw(st.integers(0, len(lines) - 1))
            text = "\n".join([*lines[:number], *[lines[number]] * draw(st.sampled_from([0, 2])), *lines[number + 1 :]])
        elif how == 2:
            place = draw(st.integers(0, len(text)))
            text = text[:place] + draw(st.text(max_size=3)) + text[place:]
        else:
            text = text[: draw(st.integers(0, len(text)))]
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0 and content:
        place = draw(st.integers(0, len(content) - 1))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + 1 :]
    return content


def ends_well(folder: Path, *command: str) -> None:
    done = call_pacbench(command, folder)
    assert done.returncode in (0, 2, 5), done
    if done.returncode:
        assert done.stderr.startswith("pacbench: ")
        assert done.stderr.count("\n") == 1
        assert len(done.stderr) < 5000
    else:
        assert done.stderr == ""


@settings(max_examples=60, **FEW)
@given(mangled(SCENARIO))
def test_any_scenario(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake")


KEYS = st.sampled_from([*re.findall(r"^(\w+) =", SCENARIO, re.MULTILINE), "", "up.rate", "a.b.c", "trace", "replay"])


@settings(max_examples=60, **FEW)
@given(st.sampled_from(["link.", "train.", "cluster.", "fabric.", "link.workers.w1.", ""]), KEYS, TOKENS | st.text())
def test_any_override(tmp_path: Path, section: str, key: str, value: str) -> None:
    (tmp_path / "x.toml").write_text(SCENARIO)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake", "--set", f"{section}{key}={value}")


@settings(max_examples=40, **FEW)
@given(st.sampled_from([CSV, MAHIMAHI]).flatmap(mangled))
def test_any_trace(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_text('rounds = 1\n[train]\nsteps = 20\n[[methods]]\nname = "dense"\n')
    (tmp_path / "x.trace").write_bytes(content)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake", "--set", "link.trace=x.trace")


@pytest.fixture(scope="module")
def a_profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("profile")
    command = ("profile", "digits-cnn", "--derive-for", "a40", "--batch-size", "32", "-o", "x.json")
    assert call_pacbench(command, folder).returncode == 0
    return (folder / "x.json").read_text()


@settings(max_examples=40, **FEW)
@given(st.data(), st.sampled_from(["replay", "pace"]))
def test_any_profile(tmp_path: Path, a_profile: str, data: st.DataObject, field: str) -> None:
    (tmp_path / "x.toml").write_text('rounds = 1\n[train]\nsteps = 20\n[[methods]]\nname = "dense"\n')
    (tmp_path / "x.json").write_bytes(data.draw(mangled(a_profile)))
    profile.read.cache_clear()
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake", "--set", f"train.{field}=x.json")


@settings(max_examples=60, **FEW)
@given(st.data())
def test_any_claims(tmp_path: Path, data: st.DataObject) -> None:
    """There is no option for their file: they come with pacbench."""
    (tmp_path / "claims.toml").write_bytes(data.draw(mangled(FIRST_CLAIM)))
    with suppress(UsageError):  # one line, as any is
        assert all(claim.needs for claim in schema.load(tmp_path / "claims.toml"))


FIRST_CLAIM = "[[claims]]" + schema.FILE.read_text().split("[[claims]]")[1]


@settings(max_examples=30, **FEW)
@given(st.sampled_from(["probe", "exec"]), st.sampled_from(["--rate", "--workers", "--set"]), TOKENS | st.text())
def test_any_links_of_probe_and_exec(tmp_path: Path, verb: str, option: str, value: str) -> None:
    """Together with something that is wrong in any case, so that nothing is started."""
    given_value = f"link.delay={value}" if option == "--set" else value
    done = call_pacbench(
        (verb, option, given_value, "--set", "link.odd=1", "--", *["true"] * (verb == "exec")), tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_what_is_nested_deeply_is_one_line(tmp_path: Path) -> None:
    deep = "[" * 50_000
    (tmp_path / "x.toml").write_text(f"x = {deep}")
    (tmp_path / "x.json").write_text(deep)
    (tmp_path / "y.toml").write_text(SCENARIO)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake")
    ends_well(tmp_path, "plan", "y.toml", "--on", "fake", "--set", "train.replay=x.json")
    ends_well(tmp_path, "gate", "x.json", "--against", "x.json")
    with pytest.raises(UsageError, match="x"):
        load("quickstart", [f"x={deep}"])


def test_json_of_other_kinds_is_no_profile_and_no_reference(tmp_path: Path) -> None:
    (tmp_path / "y.toml").write_text(SCENARIO)
    for content in ([], None, 1, "x", {"schema": 1}, {"format": 2}, {"schema": 1, "gradients": [1]}, {"format": [2]}):
        (tmp_path / "x.json").write_text(json.dumps(content))
        profile.read.cache_clear()
        for command in (
            ("plan", "y.toml", "--on", "fake", "--set", "train.replay=x.json"),
            ("gate", "x.json", "--against", "x.json"),
        ):
            assert call_pacbench(command, tmp_path).returncode == 2
            ends_well(tmp_path, *command)
