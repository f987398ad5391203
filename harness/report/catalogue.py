"""What METHODS.md and ``pacbench list methods -v`` say of each method, read from its own file."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import get_args

import baselines
from baselines import Method, MethodState
from harness.plan.check import optimizer_like
from harness.report.markdown import UNKNOWN, table
from harness.scenario.optimisation import Optimizer
from harness.scenario.schema import Train
from harness.worker.derived import HARDWARE
from harness.workload.profile import Codec, Profile, available, read

HEAD = """\
# Methods

Every synchronisation method of pacbench: an overview first, then each method in the order of their names. A section
says what the method does, where it differs from its paper and why, its parameters with their defaults, and what a
worker sends. This page is made from the files in `baselines/` by `pacbench list methods -v > METHODS.md`; a test
holds it to them.

Bytes are payload that each worker sends in a steady step (the mean, where workers differ). They are for one matrix of
1000 x 1000 fp32 numbers and default parameters. `pacbench plan` tells them for any model of yours.
"""

OVERVIEW = """\
## Overview

* **All-reduce** says whether an all-reduce sums what workers send. Where it is "no", workers gather or exchange it,
  and what each sends may grow with the number of workers.
* **MB** is what each worker sends in a step, with so many workers.
* **Device cost** is the time that a step's encoding and decoding takes, over the time of a copy of the gradient in
  memory. Both were timed on a CPU core when the profiles in `scenarios/profiles/` were made, with the parameters that
  stand there. A range is over profiles and parameters. It is rough: from profile to profile the same codec differs by
  up to five times. "–" means that no profile which was modelled from a data sheet has this method;
  [convergence](results/reference/convergence/report.md) has all codecs in ms a step, paced by the profile
  `fashion-cnn-xeon`.
* **Accuracy cost** is what final accuracy may lose against dense in `scenarios/convergence.toml`, a short training on
  images, with the parameters that stand there; **at the plateau** is the same in `scenarios/plateau.toml`, a small
  training that goes on until nothing improves; **perplexity cost** is by how much final perplexity may be above that of
  dense in `scenarios/language.toml`, a short training of a language model. A test holds the means of the
  [stored runs](results/README.md#what-each-method-costs-in-accuracy) to all three.
"""

EXAMPLE_SHAPES = ((1000, 1000),)
EXAMPLE_WORLD_SIZES = (2, 4, 8)
OVERVIEW_WORLD_SIZES = (2, 8, 32)


def page() -> str:
    """All methods as Markdown."""
    methods = [baselines.get(name) for name in baselines.names()]
    return "\n".join([HEAD, overview(methods), supported(methods), *(section(method) for method in methods)])


def overview(methods: Iterable[Method]) -> str:
    """A table of the methods: a row each."""
    profiles = shipped_profiles()
    head = ["method", "what a worker sends", "all-reduce"]
    head += [f"MB, {world_size} workers" for world_size in OVERVIEW_WORLD_SIZES]
    head += ["device cost", "accuracy cost", "at the plateau", "perplexity cost", "source"]
    rows = [_overview_row(method, profiles) for method in methods]
    return OVERVIEW + "\n" + table(head, rows, right_from=3, right_to=5) + "\n"


def _overview_row(method: Method, profiles: Iterable[Profile]) -> list[str]:
    state = method.State()
    return [
        f"[{method.name}](#{method.name})",
        method.sends or UNKNOWN,
        UNKNOWN if method.all_reduce is None else "yes" if method.all_reduce else "no",
        *(f"{state.wire_bytes(EXAMPLE_SHAPES, world_size) / 1e6:.3g}" for world_size in OVERVIEW_WORLD_SIZES),
        device_cost(method, profiles),
        cost(method.most_loss, points),
        cost(method.most_loss_at_plateau, points),
        cost(method.most_perplexity, percent),
        method.source or UNKNOWN,
    ]


SUPPORT = """\
## What each method supports

Every method trains in fp32, fp64, bf16 and fp16; under a `torch.amp.GradScaler`, where a step that overflows on one
rank is skipped by all and leaves no trace in what a method remembers; with `no_sync()`, clipping, groups of parameters,
frozen and unused parameters, a static graph and `torch.compile`; for parameters of any shape and any number of workers;
and it saves and resumes (`state.state_dict()`), to the last bit on the same kind of device, but for the times that
PacTrain's `adaptive` has measured. What was saved on a GPU is resumed on a CPU, and the reverse, with random numbers
that begin anew. What is refused is refused in one line; so are FSDP and bare modules.

* **micro-batches synchronised one by one**, without `no_sync()`: right, or refused because the method would compress
  again what is synchronised already.
* **ddp.join()**, uneven inputs: taken, or refused because a rank that has joined makes no
  step: what the method remembers, or when it averages, would get out of step.
* **sparse embeddings**: trained, without compression of their gradients, which travel as torch sends them; or refused.
* **other number of workers on resume**: taken, or refused because each rank has residuals of its own.
* **waits for a GPU**: how often its hook makes the host wait for the device in a bucket, where what is sent has lengths
  that depend on the gradients' values. Every method waits once more at the end of a step, to tell what is not finite.
  So does PacTrain where it prunes, and where its `adaptive` chooses anew, and every one in the first step after a
  resumption, which learns in which order rank 0 has its gradients.
* **may change in training**: parameters that may be assigned after the start. A checkpoint holds the values that they
  had, and a resumed training goes on with these; what is to be otherwise is assigned after `load_state_dict`.
"""


def supported(methods: Iterable[Method]) -> str:
    """A table of what each method supports with its default parameters."""
    head = ["method", "micro-batches synchronised one by one", "ddp.join()", "sparse embeddings"]
    rows = [_support_row(method.State()) for method in methods]
    head += ["other number of workers on resume", "waits for a GPU", "may change in training"]
    return SUPPORT + "\n" + table(head, rows, right_from=7, right_to=7) + "\n"


def _support_row(state: MethodState) -> list[str]:
    taken = [state.accumulates, state.may_join, state.takes_sparse_embeddings, not state.has_residuals]
    waits = f"{state.host_synchronisations_a_bucket} a bucket" if state.host_synchronisations_a_bucket else "no"
    changing = ", ".join(f"`{name}`" for name in state.adjustable) or "nothing"
    return [f"[{state.name}](#{state.name})", *("yes" if each else "refused" for each in taken), waits, changing]


def cost(most: float | None, shown: Callable[[float], str]) -> str:
    """By how much a method's model may be worse than that of dense in the end."""
    if most is None:
        return UNKNOWN
    return f"at most {shown(most)}" if most else "none"


def points(share: float) -> str:
    """A difference of accuracies: ``0.01`` -> ``"1 point"``."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def percent(share: float) -> str:
    """A share: ``0.95`` -> ``"95 %"``."""
    return f"{100 * share:g} %"


def device_cost(method: Method, profiles: Iterable[Profile]) -> str:
    """What the method's codec takes on a device, in copies of the gradient."""
    found = [copies(profile, codec) for profile in profiles for codec in profile.codecs if codec.method == method.name]
    if not found:
        return UNKNOWN
    least, most = f"{min(found):.2g}", f"{max(found):.2g}"
    if least == most:
        return "none" if most == "0" else f"{most} copies"
    return f"{least} to {most} copies"


def copies(profile: Profile, codec: Codec) -> float:
    """A codec's time over the time in which the profile's device copies the gradient: reads and writes fp32."""
    device = next(hardware for hardware in HARDWARE.values() if hardware.name == profile.device)
    copy_s = 2 * 4 * profile.numel / device.memory_bytes_per_s
    return codec.took_s / copy_s


def shipped_profiles() -> list[Profile]:
    """The profiles that come with pacbench, of devices whose memory's speed is published."""
    published = {hardware.name for hardware in HARDWARE.values()}
    return [profile for profile in map(read, available()) if profile.device in published]


def section(method: Method) -> str:
    """One method as Markdown."""
    parts = [
        f"## {method.name}",
        method.summary,
        method.details,
        parameters(method),
        accuracy(method),
        refused_optimizers(method),
        bytes_table(method),
        "The formula:\n\n```python\n" + formula(method) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def parameters(method: Method) -> str:
    """The parameters, each with its default and what its State's docstring says of it."""
    state = method.State()
    described = arguments(inspect.getdoc(method.State) or "")
    if not state.parameters:
        return "It has no parameters."
    lines = [f"* `{name} = {value!r}`: {described.get(name, '')}" for name, value in state.parameters.items()]
    return "Parameters:\n\n" + "\n".join(lines)


def accuracy(method: Method) -> str:
    """What training by the method may cost in accuracy: here, and as its paper has it."""
    lines = []
    if method.most_loss is not None:
        lines.append(f"Final accuracy in `scenarios/convergence.toml`: at most {points(method.most_loss)} below dense.")
    if method.most_loss_at_plateau is not None:
        most = points(method.most_loss_at_plateau)
        lines.append(f"In `scenarios/plateau.toml`, at the end of its training: at most {most} below dense.")
    if method.most_perplexity is not None:
        most = percent(method.most_perplexity)
        lines.append(f"Final perplexity in `scenarios/language.toml`: at most {most} above dense.")
    if method.paper_says:
        lines.append(f"Loss of accuracy in the paper: {method.paper_says}.")
    return textwrap.fill(" ".join(lines), 120, break_on_hyphens=False, break_long_words=False)


def refused_optimizers(method: Method) -> str:
    """The optimizers that the method cannot work with, if there are any."""
    refused = []
    for name in get_args(Optimizer.model_fields["name"].annotation):
        try:
            method.State().check_optimizer(optimizer_like(Train.model_validate({"optimizer": name})))
        except ValueError:
            refused.append(f"`{name}`")
    return f"It refuses the optimizers {' and '.join(refused)}." if refused else ""


def arguments(docstring: str) -> dict[str, str]:
    """The Args section of a docstring: names and what is said of them."""
    _, _, section_text = docstring.partition("Args:\n")
    found = re.findall(r"^(\w+): (.*(?:\n .*)*)", textwrap.dedent(section_text), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def bytes_table(method: Method) -> str:
    """What a worker sends at several world sizes, in MB and against dense."""
    dense = baselines.get("dense").State()
    cells = []
    for world_size in EXAMPLE_WORLD_SIZES:
        sent = method.State().wire_bytes(EXAMPLE_SHAPES, world_size)
        share = sent / dense.wire_bytes(EXAMPLE_SHAPES, world_size)
        cells.append(f"{sent / 1e6:.3f} MB ({share:.3f} of dense)")
    head = [f"{world_size} workers" for world_size in EXAMPLE_WORLD_SIZES]
    return table(head, [cells], right_from=0, right_to=len(cells))


def formula(method: Method) -> str:
    """The code of the method's byte formula."""
    return textwrap.dedent(inspect.getsource(method.State.wire_bytes)).rstrip()
