"""What METHODS.md and ``pacbench list methods -v`` say of each method, read from its own file."""

from __future__ import annotations

import inspect
import re
import textwrap

import baselines
from baselines import Method

HEAD = """\
# Methods

Every synchronisation method of pacbench, in the order of their names: what it does, where it differs from its paper and
why, its parameters with their defaults, and what a worker sends. All of it is read from the files in `baselines/` by
`pacbench list methods -v > METHODS.md`; a test holds this page to them.

Bytes are payload sent by each worker in a steady step (the mean, where workers differ), for one matrix of 1000 x 1000
fp32 numbers and default parameters. For any model of yours: `pacbench plan`.
"""

EXAMPLE_SHAPES = ((1000, 1000),)
EXAMPLE_WORLD_SIZES = (2, 4, 8)


def page() -> str:
    """All methods as Markdown."""
    return "\n".join([HEAD, *(section(baselines.get(name)) for name in baselines.names())])


def section(method: Method) -> str:
    """One method as Markdown."""
    parts = [
        f"## {method.name}",
        method.summary,
        method.details,
        parameters(method),
        accuracy(method),
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
    """What training by the method may cost in accuracy."""
    if method.most_loss is None:
        return ""
    return f"Final accuracy in `scenarios/convergence.toml`: at most {100 * method.most_loss:g} points below dense."


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
    head = " | ".join(f"{world_size} workers" for world_size in EXAMPLE_WORLD_SIZES)
    return f"| {head} |\n|{'--:|' * len(cells)}\n| {' | '.join(cells)} |"


def formula(method: Method) -> str:
    """The code of the method's byte formula."""
    return textwrap.dedent(inspect.getsource(method.State.wire_bytes)).rstrip()
