"""What a method's parameters bound its saving by, as its file declares it."""

from __future__ import annotations

import baselines
from harness.methods import declared
from harness.scenario.schema import MethodSpec


def saving_bound(method: MethodSpec) -> baselines.SavingBound | None:
    """The bound that a method declares for these parameters.

    A run may have been written by another version: parameters that are unknown now are passed over, and None is
    returned where a value is no longer allowed.
    """
    found = declared(method.name)
    if found is None:
        return None
    known = found.State().parameters
    try:
        state = found.State(**{name: value for name, value in method.params.items() if name in known})
    except ValueError:
        return None
    return state.saving_bound
