"""Profiles: what a training step of a model takes on a device, as a file that replays wait by and predictions add up.

A profile is measured (``profiler.measure``) or modelled from published figures (``derived.derive``), and says which.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator
from typing_extensions import Self

from harness.errors import UsageError, in_one_line
from harness.files import is_file, read_given
from harness.methods import method_named
from harness.plugins import short
from harness.scenario.schema import MethodSpec
from harness.scenario.section import Section, checked_section

SCHEMA = 1

MOST_S = 86_400.0
"""That a part of a step may take: a day."""

MOST_NUMEL = 10**13
"""Numbers that a model may have, some times as many as the largest has."""

Seconds = Annotated[float, Field(ge=0, le=MOST_S)]


class Gradient(Section):
    """A parameter, and when its gradient is ready: seconds from the start of the backward pass."""

    parameter: str
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
    ready_s: Seconds

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Layer(Section):
    """Seconds that a layer with parameters takes in each direction, what follows it up to the next one included."""

    layer: str
    forward_s: Seconds
    backward_s: Seconds


class Codec(Section):
    """What a method costs in a step, beside waiting for the wire: of the whole model, with so many workers.

    Of a method that synchronises once in several steps, encoding and decoding are those of a step in which it does.
    """

    method: str
    params: dict[str, Any]
    workers: int = Field(ge=1)
    encode_s: Seconds
    """Encoding that holds up the backward pass."""
    beside_s: Seconds
    """Encoding on another thread than the backward pass."""
    decode_s: Seconds
    optimizer_s: Seconds
    """The optimizer's step with what the method does before and after it."""

    @property
    def took_s(self) -> float:
        """All encoding and decoding."""
        return self.encode_s + self.beside_s + self.decode_s


class Profile(Section):
    """A training step of a model on a device, without a network."""

    version: int = Field(alias="schema")
    model: str
    batch_size: int = Field(ge=1)
    device: str
    source: Literal["measured", "modelled"]
    made_by: str
    """The command that made it."""
    assumptions: str = ""
    """What a modelled one takes for granted."""
    workers: int = Field(1, ge=1)
    """How many computed at once on the device when it was measured."""
    forward_s: float = Field(gt=0, le=MOST_S)
    backward_s: float = Field(gt=0, le=MOST_S)
    """Time of the whole backward pass, with DDP's copies into its buckets."""
    optimizer_s: Seconds
    """Time of a step of the optimizer."""
    optimizer: str = "sgd"
    """The optimizer that was timed, by its name in scenarios."""
    autocast: str | None = None
    """``bf16`` where forward passes were timed under autocast."""
    gradients: Annotated[tuple[Gradient, ...], Field(min_length=1, strict=False)]
    """In the order in which they are ready."""
    layers: Annotated[tuple[Layer, ...], Field(strict=False)] = ()
    codecs: Annotated[tuple[Codec, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        ready_s = [gradient.ready_s for gradient in self.gradients]
        if ready_s != sorted(ready_s):
            raise ValueError("gradients: found times that do not grow; allowed: gradients in the order of ready_s")
        if self.backward_s < ready_s[-1]:
            raise ValueError(f"backward_s: found {self.backward_s}; allowed: at least {ready_s[-1]}, the last gradient")
        if self.numel > MOST_NUMEL:
            raise ValueError(f"gradients: found {self.numel} numbers in all; allowed: up to {MOST_NUMEL}")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in the order in which their gradients are ready."""
        return [gradient.shape for gradient in self.gradients]

    @property
    def numel(self) -> int:
        """How many numbers all parameters hold."""
        return sum(gradient.numel for gradient in self.gradients)

    @property
    def origin(self) -> str:
        """In words: ``measured on`` or ``modelled for`` which device."""
        return f"{self.source} {'on' if self.source == 'measured' else 'for'} {self.device}"

    def at(self, percent: float) -> Profile:
        """The same step for who has so many percent of the device: everything takes as many times longer."""
        longer = 100 / percent
        return self.model_copy(
            update={
                "device": f"{percent:g} % of {self.device}",
                "forward_s": longer * self.forward_s,
                "backward_s": longer * self.backward_s,
                "optimizer_s": longer * self.optimizer_s,
                "gradients": tuple(_longer(each, longer) for each in self.gradients),
                "layers": tuple(_longer(each, longer) for each in self.layers),
                "codecs": tuple(_longer(each, longer) for each in self.codecs),
            }
        )

    def shrunk(self, times: int) -> Profile:
        """The same step with about so many times fewer numbers in each tensor, which is shorter where it is longest."""
        if times == 1:
            return self
        gradients = (each.model_copy(update={"shape": _shrunk(each.shape, times)}) for each in self.gradients)
        return self.model_copy(update={"gradients": tuple(gradients)})

    def codec(self, method: MethodSpec, workers: int) -> Codec | None:
        """The costs of a method in the steady state, of the number of workers that comes closest.

        Its parameters must be just these, but for those of the warm-up. A method that chooses costs what the choice
        does that its byte formula is of.
        """
        chosen = method_named(method.name).State(**method.params).steps_as
        wanted = _steady_params(method.name, {**method.params, **chosen})
        siblings = [each for each in self.codecs if each.method == short(method.name)]
        known = [each for each in siblings if _steady_params(method.name, each.params) == wanted]
        return min(known, key=lambda each: abs(math.log(each.workers / workers)), default=None)

    def as_json(self) -> str:
        """A gradient a line."""
        content = json.loads(self.model_dump_json(by_alias=True))
        lines = []
        for key, value in content.items():
            if isinstance(value, list):
                rows = ",\n  ".join(json.dumps(row) for row in value)
                lines.append(f" {json.dumps(key)}: [\n  {rows}\n ]" if value else f" {json.dumps(key)}: []")
            else:
                lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _shrunk(shape: tuple[int, ...], times: int) -> tuple[int, ...]:
    longest = max(range(len(shape)), key=shape.__getitem__, default=None)
    return tuple(max(1, round(size / times)) if place == longest else size for place, size in enumerate(shape))


PartT = TypeVar("PartT", bound=Section)


def _longer(part: PartT, longer: float) -> PartT:
    """A part of a profile, all of whose times are so many times longer."""
    times = {name: longer * getattr(part, name) for name in type(part).model_fields if name.endswith("_s")}
    return part.model_copy(update=times)


def unlike(methods: Iterable[MethodSpec]) -> tuple[MethodSpec, ...]:
    """The methods that need a codec of their own: of those that differ in the warm-up alone, the first."""
    kept: list[MethodSpec] = []
    seen: list[tuple[str, dict[str, Any]]] = []
    for method in methods:
        steady = (method.name, _steady_params(method.name, method.params))
        if steady not in seen:
            seen.append(steady)
            kept.append(method)
    return tuple(kept)


def _steady_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that shape the steady state of a method; one that came after a profile has its default there."""
    state = method_named(name).State
    every = {**state().parameters, **params}
    return {key: value for key, value in every.items() if key not in state.warmup_parameters}


def available() -> dict[str, Path]:
    """The profiles that come with pacbench, by name."""
    folder = Path(str(files("scenarios"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


@cache
def split(name_or_path: str) -> tuple[str, int]:
    """A profile's name or file, and how many percent of its device are meant: ``"resnet152-a40@50%"``, or all."""
    found = re.fullmatch(r"(.+)@([1-9][0-9]?|100)%", name_or_path)
    return (found[1], int(found[2])) if found else (name_or_path, 100)


def find(name_or_path: str, field: str = "train.replay") -> Path:
    """The file of a profile: of one that comes with pacbench, or at a path that ends in ``.json``.

    Args:
        field: where it is named.

    Raises:
        UsageError: there is none.
    """
    name, _ = split(name_or_path)
    path = Path(name) if name.endswith(".json") else available().get(name)
    if path is None or not is_file(path):
        known = ", ".join(available()) or "none come with pacbench"
        raise UsageError.at("scenario", field, name_or_path, f"a profile's .json file, or a name ({known})")
    return path


@cache
def read(name_or_path: str) -> Profile:
    """A profile, by its name or file; with ``@50%`` behind it, for who has half of its device.

    Raises:
        UsageError: there is none, or it is not one of this version's.
    """
    path, (_, percent) = find(name_or_path), split(name_or_path)
    try:
        content = json.loads(read_given(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a profile: {in_one_line(error)}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else content
        raise UsageError.at(path, "schema", found, f"{SCHEMA}, the profiles of this version of pacbench")
    whole = checked_section(Profile, content, str(path))
    return whole if percent == 100 else whole.at(percent)


def digest(name_or_path: str) -> str:
    """Digest of a profile's content, which may change under the same name."""
    return hashlib.sha256(find(name_or_path).read_bytes()).hexdigest()
