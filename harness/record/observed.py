"""What was seen inside a training script of somebody else's, as the record of a command holds it.

Means are over all ranks and over the steps from ``steady_from_step`` on. None: nobody looked, or there was no such
step.
"""

from __future__ import annotations

from typing import Any

from harness.scenario.section import Section


class Metric(Section):
    """A metric of the training at some moment."""

    name: str
    value: float | None
    """None: it was no finite number, of which JSON has none."""
    steps: int | None
    """Steps that were done by then; None: it was found in the output, which does not tell."""


class ObservedStep(Section):
    """A step of the optimizer; means over ranks."""

    step: int
    """From 0."""
    time_s: float
    """When it ended, since the first one began."""
    step_s: float
    """From the beginning of its first forward pass to its end."""
    loss: float | None
    """As the script scaled it."""
    sent_bytes: float | None
    """Payload that left a rank's link since the step before ended. None of the first; and where a link has several
    ranks."""
    formula_bytes: float | None
    """What a rank sends in it by the formula of ``Training.formula``."""


class Training(Section):
    """See the module."""

    method: str | None
    """What synchronised gradients, a plug-in without its folder; None: DDP, as the script has it."""
    method_code: str | None = None
    """Hash of the code of a plug-in."""
    params: dict[str, Any]
    """Those of the method that were given."""
    seed: int | None
    """What its randomness began with; None: the script's own."""
    steps_asked: int | None
    """After how many it was to end; None: by itself."""
    steps: int
    """Steps of the optimizer that every rank has made."""
    shortfall: str | None
    """Why this is no training on all ranks, in one line; None: it is."""
    world_size: int | None = None
    """Ranks of DDP's process group."""
    device: str | None = None
    optimizer: str | None = None
    """Its class."""
    parameters: int | None = None
    """Entries of the model that are synchronised."""
    buckets_bytes: tuple[int, ...] = ()
    """Sizes of DDP's buckets, in the order in which they travel."""
    steady_from_step: int | None = None
    """When DDP has grouped its buckets, and the method has warmed up."""
    step_s: float | None = None
    forward_s: float | None = None
    exposed_s: float | None = None
    """From the last gradient to the return of ``backward``: communication, and decoding, that hid behind nothing."""
    encode_s: float | None = None
    decode_s: float | None = None
    first_loss: float | None = None
    """Of the first step."""
    last_loss: float | None = None
    """Of the last one."""
    formula: str | None = None
    """Method whose formula gives the bytes: dense, where DDP was left alone."""
    sent_bytes: float | None = None
    """Payload a step, by the counters of a rank's link."""
    formula_bytes: float | None = None
    """Payload a step, by the formula."""
    curve: tuple[ObservedStep, ...] = ()
    """All steps; of very many every second one, every fourth, and so on."""
