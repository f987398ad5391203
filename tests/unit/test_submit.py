"""What is handed to Slurm or Ray: the script, what is refused, and how a task knows that it sees the same folder."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import call_pacbench

from harness.record.claims import Claims, Holder
from harness.record.store import Store

RUN = ("quickstart", "--method", "topk", "--rounds", "2", "--set", "train.steps=24", "--on", "fake")
SUBMIT = ("submit", *RUN, "--out", "a shared/run")
TRIALS = 6

pytestmark = pytest.mark.usefixtures("without_figures")


def written(folder: Path) -> Path:
    (script,) = (folder / "a shared" / "run").glob("submit-*")
    return script


def test_a_script_for_slurm_is_an_array_whose_tasks_join_the_run(tmp_path: Path) -> None:
    options = ("--option", "--partition=long", "--option", "--cpus-per-task=4", "--tasks", "7")
    done = call_pacbench((*SUBMIT, "--engine", "slurm", *options), tmp_path)
    assert done.returncode == 0, done.stderr
    script = written(tmp_path)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    orders = [line for line in lines if line.startswith("#SBATCH ")]
    assert {"#SBATCH --array=1-7", "#SBATCH --partition=long", "#SBATCH --cpus-per-task=4"} <= {*orders}
    assert lines.index(orders[-1]) < len(lines) - 1, "orders below the first command are not read"
    begin, srun, *command = shlex.split(lines[-1])
    assert (begin, srun) == ("exec", "srun")
    run = str(tmp_path / "a shared" / "run")
    assert command[-5:] == ["--join", "--out", run, "--mark", script.name]
    hand_over = shlex.join(["sbatch", str(script)])
    names = (f"script: {script}", f"hand it over: {hand_over}", "pacbench status '", "pacbench report '")
    assert all(name in done.stdout for name in names)


def test_a_task_of_the_script_runs_all_that_is_left(tmp_path: Path) -> None:
    assert call_pacbench((*SUBMIT, "--engine", "slurm"), tmp_path).returncode == 0
    assert call_pacbench(("status", "a shared/run"), tmp_path).stdout.startswith(f"0 of {TRIALS} trials are done")
    task = shlex.split(written(tmp_path).read_text().splitlines()[-1])[2:]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = subprocess.run(task, cwd=elsewhere, capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    trials = Store.open(tmp_path / "a shared" / "run").trials()
    assert trials["status"].tolist() == ["done"] * TRIALS
    said = call_pacbench(("status", "a shared/run"), tmp_path)
    assert said.stdout == f"{TRIALS} of {TRIALS} trials are done\n"


def test_a_script_for_ray_has_as_many_tasks(tmp_path: Path) -> None:
    done = call_pacbench((*SUBMIT, "--engine", "ray", "--tasks", "3", "--option", "num_cpus=2"), tmp_path)
    assert done.returncode == 0, done.stderr
    script = written(tmp_path)
    tree = ast.parse(script.read_text())
    (command,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.List) and all(map(_is_text, node.elts)) and node.elts
    )
    run = str(tmp_path / "a shared" / "run")
    assert ast.literal_eval(command)[-5:] == ["--join", "--out", run, "--mark", script.name]
    assert "range(1, 3 + 1)" in script.read_text()
    assert "OPTIONS.update(num_cpus=2)" in script.read_text()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_a_template_of_one_s_own_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "own.sh").write_text("#!/bin/sh\n$options\necho $$HOME $tasks\n$command\n")
    own = ("--template", "own.sh", "--tasks", "2", "--option", "-n 3")
    assert call_pacbench((*SUBMIT, "--engine", "slurm", *own), tmp_path).returncode == 0
    lines = written(tmp_path).read_text().splitlines()
    assert lines[:3] == ["#!/bin/sh", "#SBATCH -n 3", "echo $HOME 2"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("echo $HOME\n", "own.sh: template: found '$HOME'; allowed: $tasks, $options, $command, $log, and $$"),
        ("echo $(date)\n", "own.sh: template: found 'Invalid placeholder in string: line 1, col 6'; allowed: $tasks"),
        (None, "own.sh: cannot be read: No such file or directory"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_named(tmp_path: Path, template: str | None, says: str) -> None:
    if template:
        (tmp_path / "own.sh").write_text(template)
    _refused(call_pacbench((*SUBMIT, "--engine", "slurm", "--template", "own.sh"), tmp_path), 2, says)


@pytest.mark.parametrize(
    ("engine", "more", "says"),
    [
        ("lsf", (), "--engine: found 'lsf'; allowed: slurm or ray"),
        ("slurm", ("--option", "time=1"), "--option: found 'time=1'; allowed: a line for slurm: --time=2:00:00"),
        ("ray", ("--option", "a"), "--option: found 'a'; allowed: a line for ray: num_cpus=4"),
        ("slurm", ("--option", "--time=1\nrm x"), "--option: found '--time=1\\nrm x'; allowed: a line for slurm"),
        ("slurm", ("--on", "moon"), "--on: found 'moon'; allowed: auto, netns"),
        ("slurm", ("--set", "link.rate=x"), "link.rate"),
    ],
)
def test_what_cannot_be_handed_over_is_refused_before_anything_is_written(
    tmp_path: Path, engine: str, more: tuple[str, ...], says: str
) -> None:
    _refused(call_pacbench((*SUBMIT, "--engine", engine, *more), tmp_path), 2, says)
    assert not list(tmp_path.rglob("submit-*"))


def test_nothing_is_left_of_what_cannot_be_handed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.sh")
    for more in (("--option", "time=1"), ("--template", "missing.sh"), ("--template", "pipe.sh")):
        done = call_pacbench((*SUBMIT, "--engine", "slurm", *more), tmp_path)
        assert done.returncode == 2, done
        assert [path.name for path in tmp_path.iterdir()] == ["pipe.sh"]


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert call_pacbench(("submit", *RUN, "--out", name, "--engine", "slurm"), tmp_path).returncode == 0
    (script,) = (tmp_path / name).glob("submit-*")
    assert bytes(tmp_path / name) in script.read_bytes()


@pytest.mark.parametrize(("engine", "lacks"), [("slurm", "sbatch is not in PATH"), ("ray", "this Python has no ray")])
def test_an_engine_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, lacks: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    done = call_pacbench((*SUBMIT, "--engine", engine, "--go"), tmp_path)
    _refused(done, 2, f"--engine: found '{engine}'; allowed: with --go an engine that is here ({lacks}")
    assert not (tmp_path / "a shared").exists()


def test_a_folder_that_is_not_shared_is_found_out_by_the_task(tmp_path: Path) -> None:
    """The folder of the same name on another machine's own disk is another folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    for machine in (here, there):
        machine.mkdir()
    assert call_pacbench(("submit", *RUN, "--out", "run", "--engine", "slurm"), here).returncode == 0
    (script,) = (here / "run").glob("submit-*")
    task = ("run", *RUN, "--join", "--out", "run", "--mark", script.name)
    says = f"is not the folder that the run was submitted in: there is no {script.name}; give --out a folder that all"
    _refused(call_pacbench(task, there), 5, says)
    assert not (there / "run").exists()
    assert call_pacbench(task, here).returncode == 0


def test_a_mark_belongs_to_a_shared_folder(tmp_path: Path) -> None:
    says = "--mark: found 'x'; allowed: with --join and --out"
    _refused(call_pacbench(("run", *RUN, "--out", "run", "--mark", "x"), tmp_path), 2, says)
    says = "--mark: found '../x'; allowed: the name of a file in --out"
    _refused(call_pacbench(("run", *RUN, "--join", "--out", "run", "--mark", "../x"), tmp_path), 2, says)


def test_two_versions_of_the_code_do_not_share_a_run(tmp_path: Path) -> None:
    """Refused where claims tell, before the other machine has stored anything, and where stored trials do."""
    assert call_pacbench(("submit", *RUN, "--out", "run", "--engine", "slurm"), tmp_path).returncode == 0
    older = Holder(**{**vars(Holder.this()), "name": "older", "machine": "m7", "boot": "other", "code": "0123456789ab"})
    assert Claims.joined(tmp_path / "run", older).take("round-0-0123abcd", None)
    done = call_pacbench(("run", *RUN, "--join", "--out", "run"), tmp_path)
    _refused(done, 2, "the code of m7 is 0123456789ab, and here it is")
    assert Store.open(tmp_path / "run").trials().empty


def _refused(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line]
    assert says in errors[-1]
    assert len(errors) == 1
