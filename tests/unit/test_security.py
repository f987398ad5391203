"""What strangers give us executes nothing: runs, checkpoints, data and tables; and our code has no door for it."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from in_process import call_pacbench
from synthetic import make_store

from harness import methods, plugins
from harness.errors import UsageError
from harness.provenance import ROOT
from harness.record.store import Store
from harness.report.figures import registry
from harness.scenario.load import load
from harness.worker.local_ranks import in_processes
from harness.workload.data import DATASETS
from harness.workload.models import MODELS

# Our own code

OURS = sorted(path for part in ("baselines", "harness", "examples") for path in (ROOT / part).rglob("*.py"))

BANNED_MODULES = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve", "yaml"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
BANNED_CALLS |= {"pd.read_pickle", "pandas.read_pickle"}

LISTENING_CALLS = {"bind", "listen", "create_server", "init_process_group", "TCPStore", "TCPServer", "HTTPServer"}

FOR_A_REASON = {
    ("harness/plugins.py", "compile"),  # of a plug-in that the user names
    ("harness/plugins.py", "exec"),
    ("harness/workload/images.py", "pickle"),  # CIFAR's own format, read by an unpickler that imports nothing
}


def faults(tree: ast.AST) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (each.name.split(".")[0] for each in names)
            case ast.ImportFrom(module=str(module)):
                yield module.split(".")[0]
            case ast.Call(func=function, keywords=keywords):
                name, given = ast.unparse(function), {each.arg: ast.unparse(each.value) for each in keywords}
                yield name
                if name == "torch.load" and given.get("weights_only") != "True":
                    yield "torch.load without weights_only=True"
                if given.get("shell", "False") != "False":
                    yield "shell=True"
                if given.get("allow_pickle", "False") != "False":
                    yield "allow_pickle=True"


BANNED = BANNED_MODULES | BANNED_CALLS | {"torch.load without weights_only=True", "shell=True", "allow_pickle=True"}


def test_nothing_in_our_code_runs_what_it_reads() -> None:
    found = {
        (str(path.relative_to(ROOT)), fault)
        for path in OURS
        for fault in faults(ast.parse(path.read_bytes()))
        if fault in BANNED
    }
    assert found == FOR_A_REASON


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from pickle import loads", "import joblib.numpy_pickle", "eval('1')", "exec(x)"),
        *("torch.load(file)", "torch.load(file, weights_only=False)", "np.load(file, allow_pickle=True)"),
        *("subprocess.run(x, shell=True)", "programs.run(x, shell=flag)", "os.system('x')", "import yaml"),
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert BANNED & set(faults(ast.parse(code)))


def test_sockets_are_opened_where_the_page_on_security_says() -> None:
    places = {
        str(path.relative_to(ROOT))
        for path in OURS
        if path.is_relative_to(ROOT / "harness")
        for fault in faults(ast.parse(path.read_bytes()))
        if fault.rpartition(".")[2] in LISTENING_CALLS and not fault.startswith(("signature.", "super()"))
    }
    assert places == {
        "harness/cluster/hosts/cluster.py",  # on rank 0's host, where real hosts are used
        "harness/cluster/hosts/shaper.py",  # a name that nobody connects to, in the abstract namespace
        "harness/network/responder.py",  # on nodes
        "harness/worker/script.py",  # on nodes
        "harness/worker/train.py",  # on nodes
        "harness/worker/local_ranks.py",  # on this machine's loopback: the next test
        "harness/network/path/server.py",  # on a host whose path is measured, for who knows its token: test_link.py
        "harness/network/path/protocol.py",  # datagrams between the two hosts
    }
    page = (ROOT / "SECURITY.md").read_text()
    assert all(place in page for place in places)


def _listens() -> list[str]:
    """The local addresses on which this process listens for TCP, in the kernel's words (proc(5))."""
    own = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.exists()}
    found = []
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                found.append(local.split(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1, and the first as the second's kind writes it."""


def test_what_is_timed_outside_of_namespaces_listens_on_loopback_alone() -> None:
    listening = in_processes(_listens, 2)
    assert any(listening), "Gloo's ranks wait for each other"
    assert {address for of_rank in listening for address in of_rank} <= LOOPBACK


# Files of strangers


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.file),)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """What a trap leaves when it is run; the test fails if it is there in the end."""
    return tmp_path / "sprung"


@pytest.fixture(autouse=True)
def _nothing_was_run(sprung: Path) -> Iterator[None]:
    yield
    assert not sprung.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    content = pickle.dumps(Trap(tmp_path / "other"))
    pickle.loads(content)
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_checkpoint_runs_nothing(
    tmp_path: Path, sprung: Path, legacy: bool, recwarn: pytest.WarningsRecorder
) -> None:
    weights = {**MODELS["digits-cnn"].build().state_dict(), "trap": Trap(sprung)}
    torch.save(weights, tmp_path / "weights.pt", pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UsageError, match="a file with the state_dict of digits-cnn"):
        MODELS["digits-cnn"].build_from(tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Trap(sprung), protocol=4))
    settings = ("--set", f"train.checkpoint={tmp_path / 'weights.pt'}")
    done = call_pacbench(("plan", "quickstart", "--on", "fake", *settings), tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "train.checkpoint: found" in done.stderr
    assert not [each for each in recwarn if "checkpoint" in str(each.message)], "which would be further lines"


def lies_of_arrays() -> Iterator[bytes]:
    """Pickled arrays that are no bytes, or not as many as they say."""
    good = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}, protocol=4)
    yield pickle.dumps({"data": np.array([[None]]), "labels": [0]}, protocol=4)
    yield pickle.dumps({"data": np.zeros((10, 3072)), "labels": list(range(10))}, protocol=4)
    yield good.replace(b"M\x00\x0c", b"M\xff\x0c")  # the width
    yield pickle.dumps({"data": [0] * 30720, "labels": list(range(10))})
    yield pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": {"a": 1}}, protocol=4)
    yield b"\x80\x04r\xff\xff\xff\xff."  # a memo of 2^32 entries
    yield b"(" * 100_000
    yield b"cnumpy.f2py.__main__\nmain\n."  # importing it is running it


@pytest.mark.parametrize("content", [*lies_of_arrays()], ids=range(8))
def test_a_data_set_that_is_pickled_runs_and_imports_nothing(tmp_path: Path, sprung: Path, content: bytes) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for bad in (content, pickle.dumps(Trap(sprung)), pickle.dumps({"data": Trap(sprung), "labels": [1]})):
        for number in range(1, 6):
            (folder / f"data_batch_{number}").write_bytes(bad)
        with pytest.raises(UsageError, match=r"data_batch_1: not a readable CIFAR file: ") as refused:
            DATASETS["cifar-10"].load(tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pixels_of_any_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)
    for order, test in ((np.ascontiguousarray, "F"), (np.asfortranarray, "C")):
        content = pickle.dumps({"data": order(pixels), "labels": list(range(10))}, protocol=protocol)
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            (folder / name).write_bytes(content)
        read = DATASETS["cifar-10"].load(tmp_path)
        back = read.test_inputs - read.test_inputs.mean((0, 2, 3), keepdim=True)
        true = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).astype(np.float32))
        true = (true - true.mean((0, 2, 3), keepdim=True)) / true.std((0, 2, 3), keepdim=True, correction=0)
        assert torch.allclose(back, true, atol=1e-3), test


# Runs of strangers


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small run, without its figures, which are made of what everything else is made of."""
    monkeypatch.setattr(registry, "figures", lambda for_paper=False: [])
    make_store(tmp_path / "run", ["rounds=2", "train.steps=8"], methods=["topk"])
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    return tmp_path / "run"


READING = (
    ("report", "run", "--paper"),
    ("compare", "run", "other"),
    ("compare", "other", "run", "--json"),
    ("gate", "run", "--against", "run"),
    ("gate", "other", "--against", "run"),
    ("reference", "quickstart", "--from", "run", "--out", "made.json"),
)
"""All commands that read a stored run."""


def ends_in_one_line(folder: Path, command: tuple[str, ...]) -> str:
    done = call_pacbench(command, folder)
    assert done.returncode in (0, 2, 4, 5), done
    assert done.stderr.count("\n") == (done.returncode in (2, 5))
    return done.stderr


def test_code_that_only_a_run_names_is_not_run(tmp_path: Path, run: Path, sprung: Path) -> None:
    """Neither a method, which reports ask for its colour and its bounds, nor a model or a data set."""
    plugin = run / "evil.py"
    plugin.write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    stored = json.loads((run / "scenario.json").read_text())
    for case in stored["cases"]:
        case["train"] |= {"model": f"{plugin}:evil", "dataset": "run/evil.py:evil"}
    next(each for each in stored["methods"] if each["name"] == "topk")["name"] = f"{plugin}:evil"
    for folder in (run, tmp_path / "other"):
        (folder / "scenario.json").write_text(json.dumps(stored))
        (folder / "store.json").write_text('{"schema": 2}')  # which a stranger leaves out
    for command in READING:
        ends_in_one_line(tmp_path, command)
    assert not ends_in_one_line(tmp_path, READING[0]), "it is read all the same"
    assert methods.declared(f"{plugin}:evil") is None


def test_code_that_a_user_names_is_asked_what_it_says_of_itself(tmp_path: Path, run: Path) -> None:
    for name in ("block_sign.py", "own.toml", "tiny_net.py", "shifted_digits.py"):
        shutil.copy(ROOT / "examples" / "plugins" / name, tmp_path / name)
    method = f"{tmp_path / 'block_sign.py'}:block_sign"
    make_store(tmp_path / "own", ["rounds=1"], scenario=str(tmp_path / "own.toml"))
    assert methods.declared(method), "the user named the scenario, which names the plug-in"
    for known in (plugins.load, plugins._module_in, methods.method_named):
        known.cache_clear()
    for name in [name for name in plugins.sys.modules if name.startswith(plugins.PACKAGE)]:
        del plugins.sys.modules[name]
    assert call_pacbench(("report", "own"), tmp_path).returncode == 0
    assert methods.declared(method) is None
    done = call_pacbench(("report", "own", "--plugin", "block_sign.py:block_sign"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert methods.declared(method)


def test_tables_of_strangers_run_nothing(tmp_path: Path, run: Path, sprung: Path) -> None:
    """Columns of an extension type that is a pickle (CVE-2023-47248), and pandas' own metadata."""
    kind = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(sprung)),
        b"pandas": pickle.dumps(Trap(sprung)),
    }
    for file in sorted((run / "trials.parquet").iterdir()):
        table = pq.ParquetFile(file).read()
        fields = [field.with_metadata(kind) for field in table.schema]
        pq.write_table(table.cast(pa.schema(fields, metadata={**(table.schema.metadata or {}), **kind})), file)
    for command in READING:
        ends_in_one_line(tmp_path, command)


def test_a_profile_of_a_stranger_is_read_as_numbers(tmp_path: Path, sprung: Path) -> None:
    (tmp_path / "x.json").write_bytes(pickle.dumps(Trap(sprung)))
    for field in ("replay", "pace"):
        command = ("plan", "quickstart", "--on", "fake", "--set", f"train.{field}=x.json")
        assert call_pacbench(command, tmp_path).returncode == 2


def test_names_that_a_run_has_stored_do_not_lead_out_of_its_folder(tmp_path: Path, run: Path) -> None:
    """Labels name files in a paper's folder; a scenario's name names nothing that is written."""
    stored = json.loads((run / "scenario.json").read_text())
    stored["methods"][-1]["label"] = "../../escaped"
    (run / "scenario.json").write_text(json.dumps(stored))
    (run / "store.json").write_text('{"schema": 2}')
    before = {path.name for path in tmp_path.iterdir()}
    for command in READING[:-1]:
        ends_in_one_line(tmp_path, command)
    assert {path.name for path in tmp_path.iterdir()} == before
    stored["name"] = "../escaped"
    (run / "scenario.json").write_text(json.dumps(stored))
    assert "run/scenario.json: " in ends_in_one_line(tmp_path, READING[0])


def test_a_stored_scenario_is_what_was_loaded(run: Path) -> None:
    """So the tests above change what is really read."""
    assert Store.open(run).scenario().name == load("quickstart").name
