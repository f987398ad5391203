"""Where a pilot's commands are run, one after the other, within its budget.

Every command that runs has a folder of its own, named by all that makes it this experiment: what is there already is
not run again. Of a training that is there on another network the losses are known, and only its pace is measured.
Before each command the time that is left is looked at; what has no room is left out, and said so.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from harness import attach, provenance
from harness.analysis.pilot.learning import first_common
from harness.attach.attachment import Attachment
from harness.attach.orders import LOOK_STEPS
from harness.attach.sources import hash_of
from harness.cluster import registry
from harness.errors import MeasurementError, UsageError
from harness.files import as_name, is_file, make_folder, writing
from harness.messages import Output
from harness.network.topology import Topology
from harness.plan.dilation import whole_periods
from harness.plan.expected import state_of
from harness.plan.machine import NETWORK_S
from harness.plan.status import first_steady_step
from harness.plugins import file_of
from harness.record.execution import FILE as RECORD
from harness.record.execution import Execution
from harness.record.pilot import Job, Training
from harness.run.attached import FINDINGS, execute_attached
from harness.run.command import Job as CommandJob
from harness.run.pilot.found import Found
from harness.run.pilot.look import job_of
from harness.run.pilot.request import ATTACHED_WORKERS, Request, Tell
from harness.run.pilot.trained import cut, training_of
from harness.scenario.properties import UNSHAPED
from harness.scenario.schema import MethodSpec
from harness.units import format_time

OF_SESSIONS = re.compile(
    r"""
    # The shell: where it is, what it shows and remembers.
    (_|(OLD)?PWD|SHELL|(CONDA_)?SHLVL|LINES|COLUMNS|PS\d|PROMPT_(COMMAND|DIRTRIM)|CONDA_PROMPT_MODIFIER
      |VIRTUAL_ENV_PROMPT|HIST(CHARS|CONTROL|FILE|FILESIZE|IGNORE|SIZE|TIMEFORMAT)|LS_?COLORS|(NO_|FORCE_)COLOR
      |CLICOLOR(_FORCE)?|MAIL|TMPDIR)$
    # The terminal, and what runs in it: multiplexers, editors, notebooks.
    |TERM|LC_TERMINAL|COLORTERM$|COLORFGBG$|VTE_|GNOME_|KONSOLE_|ITERM|KITTY_|ALACRITTY_|WEZTERM_|GHOSTTY_|TILIX_|GUAKE_
    |WT_(SESSION|PROFILE_ID)$|WSL|TMUX|STY$|BYOBU_|ZELLIJ|VSCODE|(GIT_ASKPASS|BROWSER)$|INSIDE_EMACS$|NVIM|JPY_|PYCHARM_
    # The desktop. Where it has users keep their files is theirs.
    |DISPLAY$|WINDOW(ID|PATH)$|WAYLAND|(X|ICE)AUTHORITY$|SESSION_MANAGER$|DESKTOP_|KDE_|GTK_|GDK_|QT_(IM|QPA|ACCESS)
    |GIO_LAUNCHED_|SWAYSOCK$|I3SOCK$|HYPRLAND_|DBUS_|XDG_(?!\w+_HOME$)
    # The login, and who has become another.
    |SSH_|GPG_(TTY|AGENT_INFO)$|SUDO_|DOAS_USER$|PKEXEC_UID$
    # The service, or the job. By which task of an array it is, scripts choose what to train.
    |(INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|MANAGERPID|NOTIFY_SOCKET)$|(LISTEN|WATCHDOG|MEMORY_PRESSURE)_[A-Z]+$
    |(SLURM|PBS|LSB|SGE)_(?!\w*(TASK_ID|INDEX|ARRAYID)$)|PYTEST_
    """,
    re.VERBOSE,
)
"""Variables that a session gives to all that is started in it: they differ from one to the next, and no training
depends on them. Programs begin such names with their own, which stands here, so that what newer ones add is passed over
as well. A name that users may have made is not here: to run something twice takes time, to mix things up is wrong."""

ALONE = Topology.model_validate({"workers": ATTACHED_WORKERS, "link": {"rate": UNSHAPED}})
"""On what the job is looked at."""

MOST_LONGER = 5.0
"""Times the steps of the 32-bit all-reduce that a method with shorter ones makes at most."""

STEPS_OF_PACE = 20
"""Steady steps, at least, that tell the pace of a training whose losses are known."""


class Bench:
    """Where commands are run, one after the other, within a budget."""

    def __init__(self, request: Request, tell: Tell) -> None:
        self._request, self._tell = request, tell
        self._began_s = time.monotonic()
        self._overheads_s: list[float] = []
        self._without_room: dict[str, list[int]] = {}
        self._failed: list[str] = []
        self._has_skipped = False
        """Whether methods were not trained with some seed, since dense was not."""
        self.links_changed = False
        """Whether a training does not count because of that."""

    @property
    def left_out(self) -> list[str]:
        """What had no room in the budget, or failed, a sentence each."""
        seeds = [
            f"{label} ({'seed' if len(own) == 1 else 'seeds'} {', '.join(map(str, own))})"
            for label, own in self._without_room.items()
        ]
        found = [*([f"No room in the budget had {'; '.join(seeds)}."] if seeds else []), *self._failed]
        if self._has_skipped:
            found.append(f"With seeds that {self._request.plain} lacks no method was trained: nothing compares.")
        return found

    @property
    def passed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    @property
    def _left_s(self) -> float:
        return math.inf if self._request.budget_s is None else self._request.budget_s - self.passed_s

    def job(self, attempt: int = 0) -> Job:
        """The user's job, looked at.

        Args:
            attempt: which look at it; each is a command of its own.

        Raises:
            MeasurementError: the script cannot be attached to, fails, or takes longer than the budget.
        """
        request = self._request
        folder, attachment = self._look(attempt)
        self._tell(f"looking at the job: {LOOK_STEPS} steps on {ATTACHED_WORKERS} workers, unshaped")
        found = _done(folder) or self._run(folder, attachment, ALONE)
        if found.ending == "timed out":
            raise MeasurementError(
                f"the budget of {format_time(request.budget_s or 0.0)} ended while the script was looked at: "
                "one look takes longer than that"
            )
        if why := _why_not(found):
            raise MeasurementError(f"the script cannot be looked at: {why}")
        return job_of(attach.read(folder / FINDINGS), request.methods, found.wall_time_s)

    def known_job(self) -> Job | None:
        """The job as it was looked at before; None: it was not, or it has changed. Starts nothing."""
        folder, _ = self._look(0)
        found = _done(folder)
        try:
            return job_of(attach.read(folder / FINDINGS), self._request.methods, found.wall_time_s) if found else None
        except MeasurementError:  # its script ended before the look was over
            return None

    def _look(self, attempt: int) -> tuple[Path, Attachment]:
        look = tuple((method.name, method.params) for method in self._request.methods)
        attachment = Attachment(seed=attempt, steps=LOOK_STEPS, look=look)
        return self._folder("job", attachment, ALONE), attachment

    def expected(self, method: MethodSpec, job: Job, beyond_s: float = 0.0) -> tuple[int, float]:
        """How many steps a training would make, and about how many seconds it would take.

        Args:
            beyond_s: see ``Forecast``.
        """
        steps = self._steps(method, job)
        return steps, self._expected_s(method, job, steps, beyond_s)

    def in_reach(self, methods: Sequence[MethodSpec]) -> list[MethodSpec]:
        """Those whose ranks meet twice in the steps that they may make; the others are told as left out."""
        found = []
        for method in methods:
            period = state_of(method).agrees_every
            if first_common(period) <= self.most_steps:
                found.append(method)
            else:
                self._failed.append(
                    f"{method.label}: its ranks meet every {period} steps, and must meet twice; it makes "
                    f"{self.most_steps} at most, {MOST_LONGER:g} times --steps."
                )
        return found

    def train_in_turns(self, found: Found, methods: Sequence[MethodSpec]) -> None:
        """Train with each method, seed by seed, as long as there is room; with those seeds alone that dense has."""
        plain = self._request.plain
        for seed in range(self._request.seeds):
            for method in methods:
                has_dense = any((each.label, each.seed) == (plain, seed) for each in found.trainings)
                if method.label != plain and not has_dense:
                    self._has_skipped = True
                    continue
                training = self.train(method, seed, found.job)
                if training is not None:
                    found.trainings.append(training)

    def train(self, method: MethodSpec, seed: int, job: Job, steps: int | None = None) -> Training | None:
        """The script with a method on the emulated network; None where there is no room, or it failed.

        Args:
            steps: how many; None: as many as fit into the time of what the method must beat, see ``_steps``.

        Raises:
            MeasurementError: it failed as the user has it, without a method, on links that stayed what they were.
        """
        is_plain = method.label == self._request.plain
        attachment = Attachment(
            method=None if is_plain else method.name,
            params={} if is_plain else method.params,
            seed=seed,
            shifts_seeds=True,
            steps=steps or self._steps(method, job),
        )
        known = self._learnt(method, attachment)
        if known is None:
            return self._made(method, attachment, job)
        learnt, is_paced_here = known
        if is_paced_here:
            return learnt
        paced = self._made(method, attachment.model_copy(update={"steps": _steps_of_pace(method)}), job)
        if paced is None:
            return None
        if paced.losses != learnt.losses[: paced.steps]:
            return self._made(method, attachment, job)
        same = {name: getattr(learnt, name) for name in ("steps", "losses", "sent_bytes", "formula_bytes")}
        return paced.model_copy(update={**same, "learnt_in": learnt.record})

    def _learnt(self, method: MethodSpec, attachment: Attachment) -> tuple[Training, bool] | None:
        """The same training, as a longer one or one on another network has begun; and whether it was on this network.

        None: there is none, it has run itself, or it is as soon run as its pace is measured.
        """
        steps, folder = attachment.steps or 0, self._folder(method.label, attachment)
        if steps <= _steps_of_pace(method) or state_of(method).learns_by_the_links or _done(folder):
            return None
        of_training, _, _ = folder.name.rpartition("-")
        for other in sorted(folder.parent.glob(f"{glob.escape(of_training)}-*")):
            found = _done(other)
            if found and found.training and len(found.training.curve) >= steps:
                record = other.relative_to(self._request.out)
                is_here = found.network == self._request.network.model_dump(mode="json", by_alias=True)
                return training_of(method, attachment.seed or 0, cut(found, method, steps), record), is_here
        return None

    def _made(self, method: MethodSpec, attachment: Attachment, job: Job) -> Training | None:
        """A training as it runs, or has run, on the emulated network; see ``train``."""
        seed, steps = attachment.seed or 0, attachment.steps or 0
        is_plain, what = attachment.method is None, f"{method.label}, seed {seed}"
        folder = self._folder(method.label, attachment)
        needs_s, known = self._expected_s(method, job, steps), _done(folder)
        if known is None and needs_s > self._left_s:
            self._without_room.setdefault(method.label, []).append(seed)
            return None
        self._tell(f"training: {what}, {steps} steps, about {format_time(needs_s)}")
        found = known or self._run(folder, attachment)
        why = _why_not(found)
        if found.ending == "timed out":
            self._without_room.setdefault(method.label, []).append(seed)
            return None
        if why and is_plain and not found.drift:
            raise MeasurementError(f"the script fails on this network: {why}")
        self.links_changed = self.links_changed or bool(found.drift)
        if why:
            self._failed.append(f"{what}: {why}.")
            return None
        try:
            training = training_of(method, seed, found, folder.relative_to(self._request.out))
        except MeasurementError as error:
            if is_plain:
                raise
            self._failed.append(f"{error}.")
            return None
        self._overheads_s.append(max(0.0, NETWORK_S + training.wall_s - training.steps * training.pace_s))
        return training

    def _steps(self, method: MethodSpec, job: Job) -> int:
        """As many as fit into the time of what it must beat, and as dense makes at least; in whole periods.

        What the 16-bit all-reduce must beat is dense.
        """
        asked, period = self._request, state_of(method).agrees_every
        if method.label == asked.plain:
            return asked.steps
        known, rival = asked.forecast(job), asked.plain if method.label == asked.sixteen else asked.sixteen
        longer = known.pace_s(asked.method(rival)) / known.pace_s(method)
        steps = round(asked.steps * min(MOST_LONGER, max(1.0, longer)))
        return max(first_common(period), min(whole_periods(steps, period), self.most_steps // period * period))

    @property
    def most_steps(self) -> int:
        """Of any training but that of the 32-bit all-reduce."""
        return int(MOST_LONGER * self._request.steps)

    def is_in_budget(self, method: MethodSpec, job: Job) -> bool:
        """Whether a training would have room if nothing else were run."""
        budget_s = self._request.budget_s
        return budget_s is None or self._expected_s(method, job, self._steps(method, job)) <= budget_s

    def _expected_s(self, method: MethodSpec, job: Job, steps: int, beyond_s: float = 0.0) -> float:
        """What so many steps will take about: as predicted, and the rest as it was until now."""
        overhead_s = fmean(self._overheads_s) if self._overheads_s else job.overhead_s
        return overhead_s + steps * self._request.forecast(job, beyond_s).pace_s(method)

    def _run(self, folder: Path, attachment: Attachment, unshaped: Topology | None = None) -> Execution:
        """Run a command in a folder of its own; its record.

        Args:
            unshaped: a network with a rank behind each link; None: the one that is asked for.
        """
        request = self._request
        network, per_node = self._where(unshaped)
        _put_aside(folder)
        make_folder(folder)
        timeout_s = None if request.budget_s is None else max(1.0, self._left_s)
        job = CommandJob(request.command, request.folder, request.environment, per_node, timeout_s)
        cluster = registry.make_for_commands(request.on)

        def hear(said: Output) -> None:
            path = folder / "output.txt"
            with writing(path), path.open("a", encoding="utf-8") as output:
                output.writelines(f"{said.node} | {line}\n" for line in said.lines)

        found = execute_attached(cluster, network, job, attachment, hear, request.command_line, folder)
        found.save(folder)
        if found.ending == "interrupted":
            raise KeyboardInterrupt
        return found

    def _where(self, unshaped: Topology | None) -> tuple[Topology, int]:
        """A network, and the ranks behind each of its links."""
        return (unshaped, 1) if unshaped else (self._request.network, self._request.per_node)

    def _folder(self, label: str, attachment: Attachment, unshaped: Topology | None = None) -> Path:
        """Its name ends with what the training is, and with where it runs and how long."""
        request = self._request
        network, per_node = self._where(unshaped)
        of_training = _digest(
            provenance.trial_digest(),
            request.on,
            *(f"{name}={value}" for name, value in sorted(request.environment.items()) if not OF_SESSIONS.match(name)),
            *request.command,
            str(request.folder),
            *files_digest(request.command, request.folder),
            str(network.workers),
            str(per_node),
            attachment.model_dump_json(exclude={"steps"}),
        )
        of_place = _digest(network.model_dump_json(), str(attachment.steps))
        return request.out / "runs" / f"{as_name(label)[:60]}-{of_training}-{of_place}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:12]


def _steps_of_pace(method: MethodSpec) -> int:
    """How many tell it: the warm-up, and whole periods from one synchronisation to the next."""
    state = state_of(method)
    return first_steady_step(state) + whole_periods(STEPS_OF_PACE, state.agrees_every)


def files_digest(command: Sequence[str], folder: Path) -> list[str]:
    """Hashes of the files that a command names, plug-ins too: of a script that has changed nothing is known."""
    found = []
    for word in command:
        path = folder / (file_of(word) or word)
        with suppress(OSError):  # what we may not read, its ranks do not read either
            if len(word) < 4096 and os.path.isfile(path) and path.stat().st_size < 10_000_000:
                found.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def _done(folder: Path) -> Execution | None:
    """The record of a command that has run to its end there, with the code that is imported now."""
    if not is_file(folder / RECORD):
        return None
    try:
        found = Execution.load(folder)
        return None if _why_not(found) or _has_new_sources(folder) else found
    except (UsageError, MeasurementError):
        return None


def _has_new_sources(folder: Path) -> bool:
    """Whether any file that ranks imported is another by now. One that is not here was in a container's image."""
    sources = {path: digest for rank in attach.read(folder / FINDINGS) for path, digest in rank.sources.items()}
    return any(hash_of(path) not in (None, digest) for path, digest in sources.items())


def _put_aside(folder: Path) -> None:
    """Keep what was run there, which does not count: it failed, or its code was another."""
    if folder.exists():
        names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
        folder.rename(next(name for name in names if not name.exists()))


def _why_not(found: Execution) -> str | None:
    """Why a command's findings cannot be used; None: they can."""
    if found.ending != "finished":
        return f"{found.ending}, {found.reason}"
    if found.drift:
        return f"the links had changed after it: {'; '.join(found.drift)}"
    return found.training.shortfall if found.training else "nothing was observed"
