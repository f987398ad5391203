"""Save and resume: what a method remembers, keyed by the names of parameters, so that buckets are free to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch

from baselines._memory import BucketMemory
from baselines._quantise import Dice, go_on_from

VERSION = 4

PARTS: dict[str, type] = {
    "version": int,
    "method": str,
    "parameters": Mapping,
    "model": Mapping,
    "rank": int,
    "world_size": int,
    "step": int,
    "remembered": Mapping,
}
"""What a checkpoint has, and of which kind it is."""


class Checkpointed:
    """The part of a method's state that saves and resumes."""

    adjustable: ClassVar[tuple[str, ...]]
    names: dict[torch.Tensor, str]
    is_bound: bool
    step: int
    own_rank: int
    world_size: int
    rounds = 0
    """Backward passes whose gradients were synchronised, those of skipped steps included."""
    was_resumed = False
    """Whether what was loaded has been used in no step yet."""
    _loaded: Mapping[str, Any] | None = None

    @property
    def remembers(self) -> tuple[str, ...]:
        """Names of the attributes that hold what is remembered from step to step, beside ``step``: what a checkpoint
        holds. Each is a ``BucketMemory``, ``Drafts``, a random generator, or has ``state_dict`` and
        ``load_state_dict``. Most states name them once for all; some by their parameters."""
        return ()

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with their values, as a scenario would give them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The method's name."""
        return type(self).__module__.rpartition(".")[2]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs of the method, beside model and optimizer; every rank must save its own.

        It holds tensors, numbers, texts, lists and dicts only, so that ``torch.load`` with ``weights_only`` reads it.

        Raises:
            ValueError: the state belongs to no training.
        """
        if not self.is_bound:
            raise ValueError(f"this state of {self.name} belongs to no training yet and remembers nothing: register it")
        return {
            "version": VERSION,
            "method": self.name,
            "parameters": self.parameters,
            "model": {name: list(weight.shape) for weight, name in self.names.items()},
            "rank": self.own_rank,
            "world_size": self.world_size,
            "step": self.step,
            "rounds": self.rounds,
            "remembered": {name: saved_of(getattr(self, name), self.names) for name in self.remembers},
        }

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and ``torch.save``, of a state that remembers nothing yet.

        Raises:
            TypeError: it belongs to a training, whose process group and optimizer cannot be saved.
        """
        if vars(self).get("is_bound"):
            raise TypeError(f"this state of {self.name} belongs to a training: save what its state_dict() gives")
        return vars(self)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave on this rank. Load it before ``register``, or model and optimizer after.

        When DDP is made it sends rank 0's weights to all: where ranks train alone, load each one's model after that.
        DDP's buckets may be others. On another kind of device, GPU or CPU, random numbers begin anew. The number of
        workers may be another one only where a rank has no residuals of its own, because those of a rank that is gone
        would be lost.

        Parameters that may change in training get the values that they had when it was saved, whatever the state was
        made with. Where they are to be others from now on, assign them after this.

        Raises:
            ValueError: it is of another method, version or model, other parameters, another rank or number of workers.
        """
        refuse_foreign(saved, self.name, self.parameters, self.adjustable)
        adjusted = self._adjusted(saved["parameters"])
        if lacking := [name for name in self.remembers if name not in saved["remembered"]]:
            raise ValueError(f"the checkpoint is damaged: nothing is remembered as {lacking[0]}")
        self._loaded = saved
        if self.is_bound:
            self.take_what_was_loaded()
        for name, value in adjusted.items():
            setattr(self, name, value)

    def _adjusted(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Of the parameters that were saved, those that may change in training."""
        adjusted = {name: value for name, value in saved.items() if name in self.adjustable}
        try:
            made = type(self)(**{**self.parameters, **adjusted})
        except ValueError as error:
            raise ValueError(f"the checkpoint is damaged: {error}") from error
        return {name: getattr(made, name) for name in adjusted}

    def take_what_was_loaded(self) -> None:
        """Put what was loaded in its place; the state is bound."""
        saved, self._loaded = self._loaded, None
        if saved is None:
            return
        self._refuse_other_place(saved)
        self.step = saved["step"]
        self.rounds = saved.get("rounds", self.step)  # which older checkpoints do not have
        self.was_resumed = self.rounds > 0
        same_place = (saved["rank"], saved["world_size"]) == (self.own_rank, self.world_size)
        for name in self.remembers:
            if same_place or not isinstance(getattr(self, name), Dice):  # elsewhere a worker keeps dice of its own
                self._take(name, saved["remembered"][name])

    def _take(self, name: str, saved: Any) -> None:
        """Put what was saved of something that is remembered in its place."""
        try:
            setattr(self, name, loaded_into(getattr(self, name), saved, self.names))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the checkpoint is damaged: {name} cannot be taken: {reason}") from error

    @property
    def has_residuals(self) -> bool:
        """Whether each rank remembers of its own gradients what nobody else does."""
        return any(isinstance(getattr(self, name), BucketMemory) for name in self.remembers if hasattr(self, name))

    @property
    def was_loaded(self) -> bool:
        """Whether a checkpoint waits for ``register``."""
        return self._loaded is not None

    def _refuse_other_place(self, saved: Mapping[str, Any]) -> None:
        own = {name: list(weight.shape) for weight, name in self.names.items()}
        for name in {**own, **saved["model"]}:
            there, here = (model.get(name, "no such parameter") for model in (saved["model"], own))
            if there != here:
                raise ValueError(f"the checkpoint is of another model: {name}: {there} there, {here} here")
        rank, workers = saved["rank"], saved["world_size"]
        if self.has_residuals and (rank, workers) != (self.own_rank, self.world_size):
            raise ValueError(
                f"the checkpoint was saved by rank {rank} of {workers}, and this is rank {self.own_rank} of "
                f"{self.world_size}: {self.name} remembers residuals of each rank's own; load this rank's, with as "
                "many workers"
            )


def refuse_foreign(
    saved: Mapping[str, Any], method: str, parameters: Mapping[str, Any], adjustable: tuple[str, ...]
) -> None:
    """Raises:
    ValueError: what was saved is not of this method with these parameters, or not by this version.
    """
    if not isinstance(saved, Mapping) or not {"version", "method"} <= set(saved):
        raise ValueError(f"this is no checkpoint of {method}: it takes what state_dict() of its state gave")
    if saved["version"] != VERSION:
        raise ValueError(f"the checkpoint has version {saved['version']!r}; this pacbench reads version {VERSION}")
    if saved["method"] != method:
        raise ValueError(f"the checkpoint is of {saved['method']}; load it into that method's state, not {method}'s")
    for part, kind in PARTS.items():
        if not isinstance(found := saved.get(part), kind):
            raise ValueError(f"the checkpoint is damaged: {part} is {type(found).__name__}, not {kind.__name__}")
    for name, value in parameters.items():
        if name not in adjustable and saved["parameters"].get(name, value) != value:
            there = saved["parameters"][name]
            raise ValueError(f"the checkpoint is of {method} with {name}={there!r}, and this state has {value!r}")


def saved_of(thing: Any, names: Mapping[torch.Tensor, str]) -> Any:
    """What a checkpoint holds of something that is remembered."""
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    return thing.state_dict(names) if hasattr(thing, "state_dict") else thing


def loaded_into(thing: Any, saved: Any, names: Mapping[torch.Tensor, str]) -> Any:
    """The thing with what was saved of it; a number is replaced by it."""
    if isinstance(thing, torch.Generator):
        go_on_from(thing, saved)
    elif hasattr(thing, "load_state_dict"):
        thing.load_state_dict(saved, names)
    else:
        return saved
    return thing
