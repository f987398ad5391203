"""Files and arguments, however mangled: the command ends with exit 0, 2 or 5, in one line, without a traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from in_process import call_pacbench
from piloted import pilot
from tries import tries
from typer.main import get_command

from harness.analysis.claims import schema
from harness.attach import findings, reading
from harness.cli.app import make_app
from harness.errors import MeasurementError, UsageError
from harness.network.readings import Readings
from harness.record import pilot as pilots
from harness.record.execution import Execution, LinkTraffic, Sample, WorkerUse
from harness.run.pilot.request import again
from harness.scenario.load import load
from harness.workload import profile
from harness.workload.data import DATASETS
from harness.workload.models import MODELS

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


@tries(60)
@given(mangled(SCENARIO))
@example(b"9" * 5000 + b" = 1\n")
@example(SCENARIO.replace('name = "topk"', "name = []").encode())
@example(SCENARIO.replace('name = "topk"', 'name = "topk"\nlabel = []').encode())
@example(SCENARIO.replace('name = "sgd"', "name = []").encode())
@example(SCENARIO.replace('"accuracy 90%"', "[[]]").encode())
def test_any_scenario(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake")


KEYS = st.sampled_from([*re.findall(r"^(\w+) =", SCENARIO, re.MULTILINE), "", "up.rate", "a.b.c", "trace", "replay"])


@tries(60)
@given(st.sampled_from(["link.", "train.", "cluster.", "fabric.", "link.workers.w1.", ""]), KEYS, TOKENS | st.text())
def test_any_override(tmp_path: Path, section: str, key: str, value: str) -> None:
    (tmp_path / "x.toml").write_text(SCENARIO)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake", "--set", f"{section}{key}={value}")


@tries(40)
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


@tries(40)
@given(st.data(), st.sampled_from(["replay", "pace"]))
def test_any_profile(tmp_path: Path, a_profile: str, data: st.DataObject, field: str) -> None:
    (tmp_path / "x.toml").write_text('rounds = 1\n[train]\nsteps = 20\n[[methods]]\nname = "dense"\n')
    (tmp_path / "x.json").write_bytes(data.draw(mangled(a_profile)))
    profile.read.cache_clear()
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake", "--set", f"train.{field}=x.json")


@tries(60)
@given(st.data())
def test_any_claims(tmp_path: Path, data: st.DataObject) -> None:
    """There is no option for their file: they come with pacbench."""
    (tmp_path / "claims.toml").write_bytes(data.draw(mangled(FIRST_CLAIM)))
    with suppress(UsageError):  # one line, as any is
        assert all(claim.needs for claim in schema.load(tmp_path / "claims.toml"))


FIRST_CLAIM = "[[claims]]" + schema.FILE.read_text().split("[[claims]]")[1]


@tries(30)
@given(st.sampled_from(["probe", "exec"]), st.sampled_from(["--rate", "--workers", "--set"]), TOKENS | st.text())
def test_any_links_of_probe_and_exec(tmp_path: Path, verb: str, option: str, value: str) -> None:
    """Together with something that is wrong in any case, so that nothing is started."""
    given_value = f"link.delay={value}" if option == "--set" else value
    done = call_pacbench(
        (verb, option, given_value, "--set", "link.odd=1", "--", *["true"] * (verb == "exec")), tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


OPTIONS = [
    *(("run", "x.toml", "--on", "fake", option) for option in ("--until", "--seeds", "--rounds", "--method", "--out")),
    ("gate", "x.json", "--against", "x.json", "--max-slowdown"),
    *(("tune", "x.toml", "--on", "fake", "-o", "y.toml", option) for option in ("--grid", "--seeds", "--steps")),
    *(("profile", "no such model", "-o", "y.json", option) for option in ("--derive-for", "--steps", "--optimizer")),
    *(("exec", option, "{}", "--set", "link.odd=1", "--") for option in ("--timeout", "--param", "--method", "--on")),
    *((verb, "{}") for verb in ("plan", "run", "report", "compare", "gate", "reference", "doctor", "tune")),
]


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_what_options_are_tried_with_are_such(command: tuple[str, ...]) -> None:
    """Else nothing is tried, but that there is no such option."""
    verb, *words = command[: command.index("--")] if "--" in command else command
    known = get_command(make_app()).commands[verb]  # type: ignore[attr-defined]
    options = {option for parameter in known.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options


@tries(60)
@given(st.sampled_from(OPTIONS), TOKENS | st.text() | st.binary(max_size=9).map(os.fsdecode))
@example(("doctor", "{}"), "9" * 5000)
def test_any_option(tmp_path: Path, command: tuple[str, ...], value: str) -> None:
    """Of a scenario that nothing accepts, so that nothing is started whatever the option says."""
    (tmp_path / "x.toml").write_text(SCENARIO + "odd = 1\n")
    (tmp_path / "x.json").write_text("{}")
    given_value = value.replace("\0", "")  # which no argument can hold
    full = [given_value if part == "{}" else part for part in command]
    done = call_pacbench(tuple(full if "{}" in command else [*full, given_value]), tmp_path)
    assert done.returncode in (0, 2), done
    assert done.stderr.count("\n") == (done.returncode == 2), done
    assert len(done.stderr) < 5000


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bits flipped, cut off, cut out or put in."""
    for _ in range(draw(st.integers(1, 3))):
        place, size = draw(st.integers(0, len(content))), draw(st.integers(0, 16))
        match draw(st.integers(0, 3)):
            case 0 if place < len(content):
                content = content[:place] + bytes([content[place] ^ 1 << size % 8]) + content[place + 1 :]
            case 1:
                content = content[:place]
            case 2:
                content = content[:place] + content[place + size :]
            case _:
                content = content[:place] + draw(st.binary(max_size=8)) + content[place:]
    return content


def weights(legacy: bool) -> bytes:
    content = io.BytesIO()
    torch.save(MODELS["digits-cnn"].build().state_dict(), content, _use_new_zipfile_serialization=not legacy)
    return content.getvalue()


@tries(60)
@given(st.sampled_from([weights(legacy) for legacy in (False, True)]).flatmap(changed_bytes))
def test_any_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with suppress(UsageError):
        MODELS["digits-cnn"].build_from(tmp_path / "weights.pt")


IMAGES = np.arange(4 * 28 * 28, dtype=np.int64).astype(np.uint8)
IDX = b"\0\0\x08\x03" + np.array([4, 28, 28], ">i4").tobytes() + IMAGES.tobytes()
LABELS = b"\0\0\x08\x01" + np.array([4], ">i4").tobytes() + bytes(range(4))
CIFAR = [
    pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}, protocol=protocol)
    for protocol in (2, 4)
]


@tries(80)
@given(st.one_of([changed_bytes(each) for each in CIFAR]))
def test_any_pickled_data(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(content)
    with suppress(UsageError):
        DATASETS["cifar-10"].load(tmp_path)


def test_images_without_dimensions_are_one_line(tmp_path: Path) -> None:
    for name, content in (("images-idx3", b"\x00\x00\x08\x00\x07"), ("labels-idx1", LABELS)):
        for each in ("train", "t10k"):
            (tmp_path / f"{each}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UsageError, match="train-images-idx3-ubyte.gz: not a readable IDX file: found 0 dimensions"):
        DATASETS["fashion-mnist"].load(tmp_path)


@tries(60)
@given(st.data(), st.sampled_from(["train", "t10k"]), st.sampled_from(["images-idx3", "labels-idx1"]), st.booleans())
def test_any_images(tmp_path: Path, data: st.DataObject, part: str, kind: str, zipped: bool) -> None:
    for each in ("train", "t10k"):
        for name, content in (("images-idx3", IDX), ("labels-idx1", LABELS)):
            (tmp_path / f"{each}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    content = IDX if kind == "images-idx3" else LABELS
    changed = (
        gzip.compress(data.draw(changed_bytes(content))) if zipped else data.draw(changed_bytes(gzip.compress(content)))
    )
    (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(changed)
    with suppress(UsageError):
        DATASETS["fashion-mnist"].load(tmp_path)


FINDINGS = [
    findings.Model(world_size=2, device="cpu", optimizer="SGD", parameters=[("a", [2, 3])]),
    findings.Buckets(sizes_bytes=[24], parameters=[["a"]]),
    findings.Metric(steps=1, at_s=1.0, name="loss", value=0.5),
    findings.Ended(steps=1),
    findings.Refused(reason="why"),
]


@tries(60)
@given(mangled("".join(json.dumps(vars(each)) + "\n" for each in FINDINGS)))
@example(b'{"world_size": ' + b"[" * 3000 + b"\n")
def test_any_findings_of_a_script(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rank-0.jsonl").write_bytes(content)
    with suppress(MeasurementError):
        reading.shortfall(tmp_path, 2)


def test_files_of_other_names_are_no_findings(tmp_path: Path) -> None:
    for name in ("rank-x.jsonl", "rank-.jsonl", "rank-0 (copy).jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert reading.read(tmp_path) == []


LINK = """[link]
rate = "100mbit"
delay = "1ms"
queue = "64KiB"
loss_bursts = { p = "1%", r = "25%" }
[link.up]
rate = "50mbit"
[link.workers.w1]
rate = "10mbit"
"""


@tries(40)
@given(mangled(LINK))
def test_any_file_of_a_link(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_text('rounds = 1\n[train]\nsteps = 20\n[[methods]]\nname = "dense"\n')
    (tmp_path / "link.toml").write_bytes(content)
    ends_well(tmp_path, "plan", "x.toml", "--on", "fake", "--link", "link.toml")


RECORD = Execution(
    command=("true",),
    folder="/",
    cluster="netns",
    workers=1,
    per_node=1,
    network={"workers": 2},
    network_in_words="2 workers",
    ending="failed",
    reason="w0: its container has ended",
    exit_code=5,
    wall_time_s=1.5,
    links=(
        LinkTraffic(
            link="w0",
            direction="up",
            worker=0,
            rate_bps_asked=None,
            wire_bytes=1514,
            payload_bytes=1448,
            packets=1,
            drops=0,
            samples=(Sample(time_s=0.0, wire_bytes=0, backlog_bytes=0),),
        ),
    ),
    uses=(WorkerUse(worker="w0", exit_codes={0: -9}, retransmits=0, cpu_s=None, peak_memory_bytes=None),),
    before=Readings(links=(), rtt_s=(1e-4,), took_s=0.5),
    after=None,
    provenance={"command": ["pacbench", "exec"]},
)


@tries(60)
@given(mangled(RECORD.model_dump_json(by_alias=True)))
def test_any_record_of_a_command(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "exec.json").write_bytes(content)
    with suppress(UsageError):
        Execution.load(tmp_path)


@tries(60)
@given(mangled(pilot().model_dump_json(by_alias=True, indent=1)))
def test_any_record_of_a_pilot(tmp_path: Path, content: bytes) -> None:
    (tmp_path / pilots.FILE).write_bytes(content)
    with suppress(UsageError):
        known = pilots.load(tmp_path / pilots.FILE)
        again(known, known.network, {}, tmp_path)
        assert any(each.label == known.verdict.label for each in known.trainings)


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
