"""Time a model, for replays."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from harness.cli.console import say
from harness.cli.options import command, refuse_beside, write
from harness.errors import UsageError
from harness.plain import UTF_8, is_utf_8

if TYPE_CHECKING:
    from harness.workload.profile import Profile

TIMED_OR_DERIVED = (
    *("device", "workers", "steps", "repeat", "codecs", "dataset", "derive_for", "in_processor_time", "efficiency"),
    *("optimizer", "autocast"),
)
"""Parameters that say what is timed, or derived, and how."""

MOST_TIMES_FASTER = 1_000_000


def verb(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `pacbench list models`, or FILE.py:NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The profile, a .json file.")],
    device: Annotated[str, typer.Option(help="Where to time it: cpu or cuda.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 32,
    workers: Annotated[
        int, typer.Option(min=1, max=128, help="How many processes compute at once, sharing this machine.")
    ] = 1,
    steps: Annotated[int, typer.Option(min=1, help="How many are timed, after a warm-up.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, help="How often all is timed, each time in new processes.")] = 1,
    codecs: Annotated[
        list[str] | None,
        typer.Option(metavar="SCENARIO", help="Whose methods to time as well; may be given several times."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose samples to compute; default: random ones.")
    ] = None,
    derive_for: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Derive it from a device's published figures: a40, a100, ...")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="Its steps and codecs take as long as those of another model's profile."),
    ] = None,
    times_faster: Annotated[
        float | None, typer.Option("--faster", help="With --like: all of it is so many times faster.")
    ] = None,
    in_processor_time: Annotated[
        bool,
        typer.Option("--processor-time", help="Of one worker alone, the best of all steps, in the processor's time."),
    ] = False,
    efficiency: Annotated[float | None, typer.Option(help="The share of its peak that it reaches.")] = None,
    optimizer: Annotated[str, typer.Option(help="Whose step to time: sgd, nesterov or adamw.")] = "sgd",
    autocast: Annotated[str, typer.Option(help="none, or bf16: time forward passes under autocast.")] = "none",
) -> None:
    """Time a model's steps and the methods' codecs, or derive them for a published device: what replays wait by."""
    from harness.plugins import anchored
    from harness.scenario.load import load
    from harness.worker import derived, profiler
    from harness.worker.profile_request import ProfileRequest
    from harness.workload import profile as profiles

    model, dataset = anchored(model, Path()), anchored(dataset, Path())
    _check(model, device, dataset, derive_for, efficiency, out)
    _check_like(context, like, times_faster)
    if in_processor_time and (device != "cpu" or derive_for):
        raise UsageError.at("command line", "--processor-time", device, "on a CPU that is here")
    methods = tuple(method for scenario in codecs or () for method in load(scenario).methods)
    made_by = shlex.join(command())
    request = ProfileRequest(
        model, batch_size, device, workers, steps, methods, made_by, dataset, in_processor_time, repeats=repeat
    )
    request = replace(request, **_asked_of_steps(optimizer, autocast, derive_for))
    if like:
        made = derived.liken(request, profiles.read(like), times_faster or 1.0)
    elif derive_for:
        hardware = derived.HARDWARE[derive_for]
        made = derived.derive(request, hardware, efficiency or derived.EFFICIENCY)
    else:
        made = profiler.measure(request)
    write(out, made.as_json())
    _say_what_was_found(made, out)


def _check(
    model: str, device: str, dataset: str | None, derive_for: str | None, efficiency: float | None, out: Path
) -> None:
    """Refuse what there is not, or what does not go together."""
    from harness.files import check_writable
    from harness.plugins import short
    from harness.worker.derived import HARDWARE
    from harness.workload.data import DATASETS
    from harness.workload.models import MODELS, check_scores

    if not is_utf_8(short(model)):
        raise UsageError.at("command line", "MODEL", model, UTF_8)
    if model not in MODELS:
        raise UsageError.at("command line", "MODEL", model, MODELS.allowed)
    if MODELS.is_plugin(model):
        check_scores(model)
    if dataset is not None and (dataset not in DATASETS or not MODELS[model].fits(DATASETS[dataset])):
        fitting = [name for name, known in DATASETS.items() if MODELS[model].fits(known)]
        raise UsageError.at("command line", "--dataset", dataset, ", ".join(fitting) or f"none: none fits {model}")
    if device not in ("cpu", "cuda"):
        raise UsageError.at("command line", "--device", device, "cpu, cuda")
    if derive_for is not None and derive_for not in HARDWARE:
        raise UsageError.at("command line", "--derive-for", derive_for, ", ".join(HARDWARE))
    if dataset is not None and derive_for is not None:
        raise UsageError.at("command line", "--dataset", dataset, "none with --derive-for, which computes no samples")
    if efficiency is not None and not (derive_for and 0 < efficiency <= 1):
        raise UsageError.at("command line", "--efficiency", efficiency, "above 0, up to 1, with --derive-for")
    if out.suffix != ".json":
        raise UsageError.at("command line", "-o", str(out), "a file whose name ends in .json")
    check_writable(out)


def _check_like(context: typer.Context, like: str | None, times_faster: float | None) -> None:
    """Another model's profile says all that would be timed, or derived."""
    from harness.workload import profile as profiles

    if like is None and times_faster is not None:
        raise UsageError.at("command line", "--faster", times_faster, "nothing without --like")
    if like is not None:
        refuse_beside(context, "--like", TIMED_OR_DERIVED, "--batch-size and --faster")
        if like not in (known := profiles.available()) and not like.endswith(".json"):
            raise UsageError.at("command line", "--like", like, f"a profile's .json file, or {', '.join(known)}")
    least, most = 1 / MOST_TIMES_FASTER, MOST_TIMES_FASTER
    if times_faster is not None and not least <= times_faster <= most:
        raise UsageError.at("command line", "--faster", times_faster, f"from {least:g} to {most:,}")


def _asked_of_steps(optimizer: str, autocast: str, derive_for: str | None) -> dict[str, Any]:
    """How steps compute, checked."""
    from harness.scenario.optimisation import NONE, Optimizer

    known = get_args(Optimizer.model_fields["name"].annotation)
    if optimizer not in known:
        raise UsageError.at("command line", "--optimizer", optimizer, ", ".join(known))
    if autocast not in (NONE, "bf16"):
        raise UsageError.at("command line", "--autocast", autocast, f"{NONE}, bf16")
    if derive_for and (optimizer, autocast) != ("sgd", NONE):
        allowed = "sgd without autocast with --derive-for, which knows no other"
        raise UsageError.at("command line", "--optimizer", f"{optimizer}, autocast {autocast}", allowed)
    return {"optimizer": optimizer, "autocast": None if autocast == NONE else autocast}


def _say_what_was_found(made: Profile, out: Path) -> None:
    from harness.units import format_time

    phases = {"forward": made.forward_s, "backward": made.backward_s, "optimizer": made.optimizer_s}
    times = ", ".join(f"{name} {format_time(seconds)}" for name, seconds in phases.items())
    say(f"{out}: {made.model}, batch {made.batch_size}, {made.origin}: {times}")
    for codec in made.codecs:
        say(f"  {codec.method}: codec {format_time(codec.took_s)}, optimizer {format_time(codec.optimizer_s)}")
