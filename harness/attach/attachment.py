"""What is put into a script: a method or none, what is observed, where its randomness begins, when it ends."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness import methods
from harness.attach.orders import SEEDS, VARIABLE, Orders
from harness.errors import UsageError
from harness.plugins import short

ROOT = Path(__file__).parents[2]

CODE = (ROOT / "baselines", ROOT / "harness")
"""What a node must have, by the same names, for its scripts to be attached to."""

SITE_FOLDER = Path(__file__).with_name("site")


class Attachment(BaseModel):
    """See the module."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, str_min_length=0)

    method: str | None = None
    """Method that synchronises gradients, of ``baselines`` or a plug-in with an absolute path; None: DDP stays as the
    script has it."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the method's ``State``."""
    observe: bool = True
    """Whether the phases of each step and the loss are recorded. Without it, and without a method, DDP is not touched
    at all: only steps are counted, whoever makes them."""
    seed: Annotated[int, Field(ge=0, le=SEEDS - 1)] | None = None
    """Seed of torch, numpy and random on every rank alike, before the script's first line; and of Python's hashes."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of the optimizer after which the script ends in good order; None: it ends by itself."""
    metric: str | None = None
    """Regular expression that finds a metric in a line of output, see ``metrics_in``."""
    interface: str | None = None
    """Network interface that is a rank's own: what has left it is counted at the end of each step that is observed."""
    shifts_seeds: bool = False
    """Whether the seeds that the script itself gives to torch, numpy and random are raised by ``seed``: a script that
    seeds itself is the same for every ``seed`` otherwise."""
    look: tuple[tuple[str, dict[str, Any]], ...] | None = None
    """Methods, with their parameters, that are tried on copies of the script's gradients when ``LOOK_STEPS`` are done
    (``attach/look.py``); the script ends there. None: no gradient is looked at."""

    @property
    def enters_scripts(self) -> bool:
        """Whether anything of it happens within scripts; a metric is found in what they print."""
        return self.method is not None or self.observe or self.seed is not None or self.steps is not None

    @field_validator("metric")
    @classmethod
    def _has_a_group(cls, metric: str | None) -> str | None:
        if metric is not None and _compiled(metric).groups == 0:
            raise ValueError("a regular expression with a group that holds the number, such as 'acc: ([0-9.]+)'")
        return metric


def environment(attachment: Attachment, folder: Path, users: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that a command's environment must have beside, or in place of, its user's.

    Args:
        folder: where each rank writes what it finds. It must exist, and be empty, on every node.
        users: what the environment would be; its PYTHONPATH comes behind ours.

    Raises:
        UsageError: there is no such method, it is a broken plug-in, or its parameters are not what it takes.
    """
    code = None
    if attachment.method is not None:
        _check_method(attachment.method, attachment.params)
        code = methods.digest(attachment.method)
    viewed = None
    if attachment.look is not None:
        viewed = [(name, params, methods.digest(name)) for name, params in attachment.look]
    plain = attachment.model_dump(exclude={"metric", "look"})
    orders = Orders(folder=str(folder.resolve()), method_code=code, look=viewed, **plain)
    path = os.pathsep.join([str(SITE_FOLDER), *([given] if (given := users.get("PYTHONPATH")) else [])])
    variables = {"PYTHONPATH": path, VARIABLE: orders.to_json()}
    return variables if attachment.seed is None else {**variables, "PYTHONHASHSEED": str(attachment.seed)}


def metrics_in(line: str, pattern: str) -> dict[str, float]:
    """The metrics that a line of output tells, by name; none where the pattern is not found, or finds no number.

    Args:
        pattern: a regular expression. A named group gives the metric its name; without one it is ``metric``, and the
            first group holds it.
    """
    expression = _compiled(pattern)
    found = expression.search(line)
    if found is None:
        return {}
    texts = found.groupdict() if expression.groupindex else {"metric": found[1]}
    return {name: number for name, text in texts.items() if (number := _number(text)) is not None}


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _check_method(name: str, params: dict[str, Any]) -> None:
    if not methods.is_known(name):  # brings torch, which takes a second
        raise UsageError(f"no method named {name!r}; there are {methods.allowed()}")
    try:
        with methods.blamed(name):
            methods.method_named(name).State(**params)
    except ValidationError as error:
        first = error.errors()[0]
        parameter, allowed = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            allowed = ", ".join(methods.method_named(name).State().parameters) or "none, as it has none"
        raise UsageError.at(short(name), parameter, first["input"], allowed) from None
