"""A stored run that was damaged: it is told which file, or nothing that is said of the run has changed."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import call_pacbench
from synthetic import a_row, make_store
from tries import tries

from harness.analysis import reference
from harness.analysis.trials import CASE_COLUMNS
from harness.errors import UsageError
from harness.provenance import ROOT
from harness.record.row import TRIAL_SCHEMA, Event, VerificationRow, check_value
from harness.record.store import Store

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run."""
    folder = tmp_path_factory.mktemp("whole")
    store = make_store(folder / "run", ["rounds=2", "train.steps=8"], methods=["topk"])
    for row in store.trials().itertuples():
        store.append_verification(VerificationRow(trial_id=str(row.trial_id), attempt=0))
    return folder


COMMANDS = (
    ("gate", "run", "--against", "intact", "--json", "gate.json"),
    ("compare", "intact", "run", "--json"),
    ("reference", "quickstart", "--from", "run", "--out", "made.json"),
    ("report", "run", "--paper"),
    ("status", "run"),
)


def said(folder: Path, command: tuple[str, ...]) -> tuple[str, object]:
    """What a command says of the run: its line on stderr, or all that it tells."""
    done = call_pacbench(command, folder)
    if done.stderr:
        assert done.returncode in (2, 5), done
        assert done.stderr.startswith("pacbench: ")
        assert done.stderr.count("\n") == 1
        return done.stderr, None
    files = [folder / name for name in ("gate.json", "made.json", "run/report.md", "run/paper/trials.csv")]
    return "", (done.returncode, done.stdout, [file.read_text() for file in files if file.exists()])


def damaged(whole: Path, folder: Path) -> Path:
    """A copy to be damaged, beside an intact one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / "run", folder / "run")
    shutil.copytree(whole / "run", folder / "intact")
    return folder / "run"


@pytest.fixture(scope="module")
def as_it_was(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, without_figures: None
) -> dict[tuple[str, ...], object]:
    found: dict[tuple[str, ...], object] = {}
    for command in COMMANDS:
        folder = tmp_path_factory.mktemp("as_it_was")
        damaged(whole, folder)
        found[command] = said(folder, command)[1]
    return found


def files_of(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file())


def flip(file: Path, where: float, how: int) -> None:
    content = bytearray(file.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1 << how % 8
    file.write_bytes(content)


def truncate(file: Path, where: float, how: int) -> None:
    file.write_bytes(file.read_bytes()[: int(where * file.stat().st_size)])


def overwrite(file: Path, where: float, how: int) -> None:
    file.write_bytes(
        [b"", b"garbage", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"schema": 1e999}'][how % 8]
    )


def rename_a_column(file: Path, where: float, how: int) -> None:
    if file.suffix != ".parquet":
        return flip(file, where, how)
    table = pq.ParquetFile(file).read()
    number = int(where * (table.num_columns - 1))
    names = [f"{name}x" if each == number else name for each, name in enumerate(table.column_names)]
    return pq.write_table(table.rename_columns(names), file)


def change_a_type(file: Path, where: float, how: int) -> None:
    if file.suffix != ".parquet":
        return flip(file, where, how)
    table = pq.ParquetFile(file).read()
    number = int(where * (table.num_columns - 1))
    kind = [pa.string(), pa.int64(), pa.float32(), pa.bool_()][how % 4]
    try:
        changed = table.column(number).cast(kind, safe=False)
    except pa.ArrowException:
        changed = pa.nulls(table.num_rows, kind)
    return pq.write_table(table.set_column(number, table.column_names[number], changed), file)


def change_a_value(file: Path, where: float, how: int) -> None:
    if file.suffix != ".parquet":
        return flip(file, where, how)
    table = pq.ParquetFile(file).read()
    number = int(where * (table.num_columns - 1))
    field = table.schema.field(number)
    value = {"string": "odd", "double": 1e300}.get(str(field.type), 7)
    changed = pa.array([value] * table.num_rows, field.type)
    return pq.write_table(table.set_column(number, field, changed).replace_schema_metadata(table.schema.metadata), file)


def put_another_in_its_place(file: Path, where: float, how: int) -> None:
    others = sorted(file.parent.iterdir())
    other = others[int(where * (len(others) - 1))]
    if other.is_file():
        shutil.copyfile(other, file) if other != file else None


def make_it_a_folder(file: Path, where: float, how: int) -> None:
    file.unlink()
    file.mkdir()


WAYS: list[Callable[[Path, float, int], None]] = [
    *(flip, flip, truncate, overwrite, rename_a_column, change_a_type, change_a_value),
    *(put_another_in_its_place, make_it_a_folder),
]


@tries(40)
@given(
    part=st.sampled_from(["", "trials.parquet", "events.parquet", "verified.parquet"]),
    which=st.floats(0, 1),
    way=st.sampled_from(WAYS),
    where=st.floats(0, 1),
    how=st.integers(0, 99),
    command=st.sampled_from(COMMANDS),
)
def test_any_damage_is_told_or_changes_nothing(
    whole: Path,
    as_it_was: dict[tuple[str, ...], object],
    tmp_path: Path,
    part: str,
    which: float,
    way: Callable[[Path, float, int], None],
    where: float,
    how: int,
    command: tuple[str, ...],
) -> None:
    run = damaged(whole, tmp_path / "case")
    files = [file for file in files_of(run / part) if file.parent == run / part]
    file = files[int(which * (len(files) - 1))]
    way(file, where, how)
    line, found = said(tmp_path / "case", command)
    if line:
        assert "run" in line, line
    else:
        assert found == as_it_was[command], (file, way.__name__)


@tries(12)
@given(which=st.floats(0, 1), command=st.sampled_from(COMMANDS))
def test_any_file_may_be_missing(whole: Path, tmp_path: Path, which: float, command: tuple[str, ...]) -> None:
    run = damaged(whole, tmp_path / "case")
    files = files_of(run)
    files[int(which * (len(files) - 1))].unlink()
    done = call_pacbench(command, tmp_path / "case")
    assert done.stderr == "" or done.stderr.startswith("pacbench: "), done
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize("name", ["scenario.json", "store.json", "provenance.json"])
def test_a_file_that_is_missing_is_told_though_the_rest_is_read(whole: Path, tmp_path: Path, name: str) -> None:
    for command in COMMANDS:
        run = damaged(whole, tmp_path)
        (run / name).unlink()
        done = call_pacbench(command, tmp_path)
        assert name in done.stderr, (command, done)
        assert done.stderr.startswith("pacbench: ")
        assert done.stderr.count("\n") == 1
        assert (done.returncode == 2) == (name == "scenario.json")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize(
    "part",
    ["trials.parquet", "events.parquet", "verified.parquet", "provenance.json", "store.json", "scenario.json"],
)
def test_what_cannot_be_read_now_is_not_called_damaged(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, number: int
) -> None:
    """Whoever is told to move it away does away with whole trials."""
    damaged(whole, tmp_path)
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if part in (path.name, path.parent.name):
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    done = call_pacbench(("report", "run"), tmp_path)
    assert done.returncode == (5 if number == errno.EMFILE else 2), done
    assert done.stderr.startswith(f"pacbench: run/{part}")
    assert f": cannot be read: {os.strerror(number)}\n" in done.stderr
    assert "move" not in done.stderr
    assert "damaged" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_value_that_was_changed_is_told_whichever_it_is(whole: Path, tmp_path: Path) -> None:
    run = damaged(whole, tmp_path)
    file = next(iter(sorted((run / "trials.parquet").iterdir())))
    before = file.read_bytes()
    columns = pq.ParquetFile(file).read().num_columns
    for number in range(columns):
        file.write_bytes(before)
        change_a_value(file, number / (columns - 1), 0)
        with pytest.raises(UsageError, match=rf"{file.name}: damaged"):
            Store.open(run).trials()


def test_what_is_whole_is_read_when_the_damaged_file_was_moved_away(whole: Path, tmp_path: Path) -> None:
    run = damaged(whole, tmp_path)
    for part in ("trials.parquet", "events.parquet"):
        file = run / part / next(iter(sorted((run / "trials.parquet").iterdir()))).name
        truncate(file, 0.5, 0)
        done = call_pacbench(("report", "run"), tmp_path)
        assert done.returncode == 2
        assert f"{file.name}: damaged" in done.stderr
        assert "its trial runs again" in done.stderr
        (run / "trials.parquet" / file.name).unlink()
    assert len(Store.open(run).trials()) == 4 - 2
    assert call_pacbench(("report", "run"), tmp_path).returncode == 0


def test_an_attempt_that_was_moved_away_is_never_written_over_a_later_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", ["rounds=1", "train.steps=8"], methods=["topk"])
    store.append(a_row("a", attempt=0, status="crashed"), [])
    store.append(a_row("a", attempt=1), [Event(0, 0, 0.0, "loss", 1.0)])
    (store.folder / "trials.parquet" / "a-0.parquet").unlink()
    assert store.attempts_of("a") == 2
    store.append(a_row("a", attempt=2), [])
    assert store.attempts_of("[a]") == 0, "an id is no pattern"


def test_how_many_files_are_damaged_is_told_at_once(whole: Path, tmp_path: Path) -> None:
    run = damaged(whole, tmp_path)
    for file in (run / "trials.parquet").iterdir():
        truncate(file, 0.5, 0)
    done = call_pacbench(("compare", "run", "intact"), tmp_path)
    assert done.returncode == 2
    assert "so are 3 more there" in done.stderr


def test_a_method_that_was_renamed_since_is_one_line_with_the_file(whole: Path, tmp_path: Path) -> None:
    run = damaged(whole, tmp_path)
    content = (run / "scenario.json").read_text()
    (run / "scenario.json").write_text(content.replace('"name": "topk"', '"name": "topq"'))
    (run / "store.json").write_text('{"schema": 2}')  # as older runs have it, which know no digest
    for command in COMMANDS:
        line, _ = said(tmp_path, command)
        assert "run/scenario.json: methods (topk).name: found 'topq'; allowed: bf16, demo, dense" in line


def test_a_scenario_whose_file_was_edited_is_told(whole: Path, tmp_path: Path) -> None:
    run = damaged(whole, tmp_path)
    content = (run / "scenario.json").read_text()
    (run / "scenario.json").write_text(content.replace('"tolerance": 0.02', '"tolerance": 0.03'))
    assert (run / "scenario.json").read_text() != content
    line, _ = said(tmp_path, COMMANDS[0])
    assert "run/scenario.json: damaged: it is not what the run was started with" in line


OLDER_RUNS = sorted(path.parent for path in (ROOT / "results" / "reference").glob("*/scenario.json"))


@pytest.mark.parametrize("run", OLDER_RUNS, ids=lambda run: run.name)
def test_runs_from_before_there_were_digests_are_read_and_their_damage_is_told(run: Path, tmp_path: Path) -> None:
    store = Store.open(run)
    assert store.provenance()
    trials = store.trials()
    assert len(trials)
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("events.parquet", "plots"))
    file = next(iter(sorted((copy / "trials.parquet").glob("*.parquet"))))
    before = file.read_bytes()
    for way in (truncate, rename_a_column, overwrite):
        file.write_bytes(before)
        way(file, 0.5, 1)
        done = call_pacbench(("gate", "run", "--against", "run"), tmp_path)
        assert done.returncode == 2
        assert f"{file.name}: damaged" in done.stderr


JUDGING = ("reproduce", "--claim", "omnireduce-micro", "--judge", "runs", "--out", "verdicts")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, without_figures: None) -> Path:
    """A folder with a run that a claim needs, and its verdict."""
    folder = tmp_path_factory.mktemp("judged")
    stored = next((ROOT / "results/reference/claims/runs").glob("sparse-tensor-*"))
    shutil.copytree(stored, folder / "runs" / stored.name)
    assert call_pacbench(JUDGING, folder).returncode == 0
    return folder


@tries(6)
@given(part=st.sampled_from(["", "trials.parquet", "events.parquet"]), which=st.floats(0, 1), how=st.integers(0, 99))
def test_claims_are_not_judged_by_a_run_that_is_damaged(
    judged: Path, tmp_path: Path, part: str, which: float, how: int
) -> None:
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    shutil.copytree(judged / "runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs").iterdir()
    files = sorted(file for file in (run / part).iterdir() if file.is_file())
    overwrite(files[int(which * (len(files) - 1))], 0.5, how)
    done = call_pacbench(JUDGING, tmp_path)
    if done.returncode:
        assert done.returncode == 2, done
        assert done.stderr.startswith(f"pacbench: runs/{run.name}"), done
        assert done.stderr.count("\n") == 1
    else:
        verdicts = [folder / "verdicts" / "claims.csv" for folder in (judged, tmp_path)]
        assert verdicts[0].read_text() == verdicts[1].read_text()


@pytest.fixture(scope="module")
def beside_a_reference(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and a reference made of it."""
    folder = tmp_path_factory.mktemp("reference")
    damaged(whole, folder)
    assert call_pacbench(COMMANDS[2], folder).returncode == 0
    return folder


@tries(25)
@given(way=st.sampled_from([flip, truncate, overwrite]), where=st.floats(0, 1), how=st.integers(0, 99))
def test_a_damaged_reference_is_told_or_changes_nothing(
    beside_a_reference: Path, way: Callable[[Path, float, int], None], where: float, how: int
) -> None:
    folder = beside_a_reference
    content = (folder / "made.json").read_bytes()
    shutil.copyfile(folder / "made.json", folder / "bad.json")
    way(folder / "bad.json", where, how)
    line, _ = said(folder, ("gate", "run", "--against", "bad.json", "--json", "gate.json"))
    assert "bad.json" in line or json.loads((folder / "bad.json").read_bytes()) == json.loads(content)


@pytest.mark.parametrize(
    "entry",
    [{"command": [1]}, {"command": "x"}, {"cpu_count": [1]}, {"started": 1}, {"libraries": []}, {"container": [1]}],
    ids=str,
)
def test_provenance_that_is_none_is_told(whole: Path, tmp_path: Path, entry: dict[str, object]) -> None:
    run = damaged(whole, tmp_path)
    assert call_pacbench(("reference", *COMMANDS[2][1:]), tmp_path).returncode == 0
    content = json.loads((tmp_path / "made.json").read_text())
    content.pop("digest")
    (tmp_path / "odd.json").write_text(json.dumps({**content, "provenance": [entry]}))
    (run / "provenance.json").write_text(json.dumps([entry]))
    for command, file in ((("gate", "intact", "--against", "odd.json"), "odd.json"), (COMMANDS[3], "provenance.json")):
        done = call_pacbench(command, tmp_path)
        assert done.returncode == 2, done
        assert file in done.stderr
        assert next(iter(entry)) in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [("target", "odd"), ("links", "odd"), ("links", "[]"), ("links", "[1]"), ("verified_after", "{}")],
)
def test_text_of_a_row_without_a_digest_that_says_nothing_is_told(
    whole: Path, tmp_path: Path, column: str, value: str
) -> None:
    run = damaged(whole, tmp_path)
    part = "verified.parquet" if column == "verified_after" else "trials.parquet"
    file = min((run / part).iterdir())
    table = pq.ParquetFile(file).read()
    table = table.set_column(table.column_names.index(column), column, pa.array([value]))
    pq.write_table(table.replace_schema_metadata(None), file)
    done = call_pacbench(("report", "run"), tmp_path)
    assert done.returncode == 2, done
    assert f"{file.name}: damaged ({column}: found '{value}')" in done.stderr
    assert done.stderr.count("\n") == 1


def test_values_of_a_reference_that_are_none_are_told(whole: Path, tmp_path: Path) -> None:
    damaged(whole, tmp_path)
    assert call_pacbench(("reference", *COMMANDS[2][1:]), tmp_path).returncode == 0
    content = json.loads((tmp_path / "made.json").read_text())
    content.pop("digest")
    for key, value in (
        ("round", "two"),
        ("samples_per_s", "fast"),
        ("label", 7),
        ("status", "fine"),
        ("workers", None),
        ("odd", 1),
        ("target", "odd"),
        ("target_accuracy", 7.0),
    ):
        trials = [{**content["trials"][0], key: value}, *content["trials"][1:]]
        (tmp_path / "odd.json").write_text(json.dumps({**content, "trials": trials}))
        done = call_pacbench(("gate", "run", "--against", "odd.json"), tmp_path)
        assert done.returncode == 2, (key, done.stdout)
        assert "odd.json: not a reference that this version can read (trial 1: " in done.stderr
        assert done.stderr.count("\n") == 1


NUMBERS = {"0": 0.0, "-1": -1.0, "1e999": math.inf, "NaN": math.nan}
"""As JSON may have them."""

FLOATS = [field.name for field in TRIAL_SCHEMA if pa.types.is_floating(field.type)]


def may_hold(column: str, value: float) -> bool:
    """Whether a column may, as it is declared."""
    try:
        check_value(column, value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("column", "held"),
    [
        ("samples_per_s", set()),
        ("delay_s", {"0"}),
        ("loss", {"0"}),
        ("time_to_target_s", {"0"}),
        ("added_s_per_step", {"0", "-1"}),
        ("final_loss", {*NUMBERS}),
    ],
)
def test_what_a_column_may_hold_is_declared(column: str, held: set[str]) -> None:
    assert {name for name, value in NUMBERS.items() if may_hold(column, value)} == held


@pytest.mark.parametrize("column", [name for name in reference.COLUMNS if name in FLOATS])
def test_a_number_of_a_reference_that_cannot_be_is_told(beside_a_reference: Path, tmp_path: Path, column: str) -> None:
    content = json.loads((beside_a_reference / "made.json").read_text())
    content.pop("digest")
    content["trials"][0][column] = "odd number"
    for name, value in NUMBERS.items():
        (beside_a_reference / "odd.json").write_text(json.dumps(content).replace('"odd number"', name))
        done = call_pacbench(("gate", "run", "--against", "odd.json"), beside_a_reference)
        if may_hold(column, value):
            assert (done.returncode in (0, 3, 4), done.stderr) == (True, ""), (name, done)
        else:
            assert done.returncode == 2, (name, done)
            assert f"odd.json: not a reference that this version can read (trial 1: {column}: " in done.stderr
            assert done.stderr.count("\n") == 1


def test_of_times_of_nothing_no_ratio_is_made(beside_a_reference: Path) -> None:
    content = json.loads((beside_a_reference / "made.json").read_text())
    content.pop("digest")
    for trial in content["trials"]:
        trial.update(time_to_target_s=0.0, compute_s_per_step=0.0, wire_bytes_per_step=0.0)
    (beside_a_reference / "odd.json").write_text(json.dumps(content))
    for command in (("gate", "run", "--against", "odd.json"), ("compare", "run", "odd.json")):
        done = call_pacbench(command, beside_a_reference)
        assert (done.returncode in (0, 3, 4), done.stderr) == (True, ""), done


def without_digest(file: Path) -> pa.Table:
    """A row that nothing vouches for; the invented one's links have not the form of real ones."""
    table = pq.ParquetFile(file).read().replace_schema_metadata(None)
    return table.set_column(table.column_names.index("links"), "links", pa.nulls(1, pa.string()))


def test_a_number_of_a_row_without_a_digest_that_cannot_be_is_told(whole: Path, tmp_path: Path) -> None:
    run = damaged(whole, tmp_path)
    file = min((run / "trials.parquet").iterdir())
    before = without_digest(file)
    for column in FLOATS:
        for name, value in NUMBERS.items():
            number = before.column_names.index(column)
            pq.write_table(before.set_column(number, column, pa.array([value])), file)
            if may_hold(column, value):
                assert len(Store.open(run).trials()) == 4, (column, name)
                continue
            with pytest.raises(UsageError, match=rf"{file.name}: damaged \({column}: "):
                Store.open(run).trials()
            if column == "samples_per_s":
                done = call_pacbench(("compare", "intact", "run"), tmp_path)
                assert (done.returncode, done.stderr.count("\n")) == (2, 1), done


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_all_that_a_row_may_hold_is_shown(whole: Path, tmp_path: Path, value: float) -> None:
    run = damaged(whole, tmp_path)
    for file in (run / "trials.parquet").iterdir():
        table = without_digest(file)
        for column in FLOATS:
            if may_hold(column, value) and column not in CASE_COLUMNS:
                table = table.set_column(table.column_names.index(column), column, pa.array([value]))
        pq.write_table(table, file)
    for command in (("report", "run", "--paper"), ("compare", "run", "intact"), ("compare", "intact", "run")):
        done = call_pacbench(command, tmp_path)
        assert (done.returncode in (0, 3, 4), done.stderr) == (True, ""), done
