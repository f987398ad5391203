"""The parameters of a method's state: annotated fields, whose values are checked."""

from __future__ import annotations

import functools
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass
from typing_extensions import dataclass_transform

T = TypeVar("T")

MOST = 10**9
"""Above all that anybody would ask for, and below what torch and the wire can still say."""

Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Steps = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ParameterError(ValueError):
    """A parameter is unknown, or its value is not allowed: one line that names both."""

    def __init__(self, state_type: type, validation: ValidationError) -> None:
        first = validation.errors()[0]
        place = ".".join([state_type.__module__.rpartition(".")[2], *map(str, first["loc"])])
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(getattr(state_type, "__dataclass_fields__", {})) or "no parameters"
            super().__init__(f"{place}: unknown parameter; allowed: {known}")
        else:
            allowed = first["msg"].removeprefix("Value error, ")
            super().__init__(f"{place}: {first['input']!r}: {allowed}")
        self.validation = validation
        """What pydantic found."""


@dataclass_transform(kw_only_default=True)
def parameters(cls: type[T]) -> type[T]:
    """Make a state's annotated fields its checked, keyword-only parameters.

    An unknown name, a wrong type or a value out of range raises a ``ParameterError``, a ``ValueError``.
    """
    checked: Any = validated_dataclass(kw_only=True, config=ConfigDict(extra="forbid", strict=True))(cls)
    make = checked.__init__

    @functools.wraps(make)
    def make_or_say_why_not(self: Any, *args: Any, **given: Any) -> None:
        try:
            make(self, *args, **given)
        except ValidationError as error:
            raise ParameterError(type(self), error) from None

    checked.__init__ = make_or_say_why_not
    return cast(type[T], checked)
