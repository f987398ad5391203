"""Trainings that take as long as a profile's device would: replays, which only wait, and paced ones, which learn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import baselines
from harness.plan.trial import Trial
from harness.worker.training import Training
from harness.workload import optimizers, replay
from harness.workload import profile as profiles
from harness.workload.pace import Pace, PacedStopwatch
from harness.workload.profile import Profile
from harness.workload.replay import Replayed


class Timed(Training):
    """One trial on one rank whose times are those of a profile, and of an undilated world."""

    stopwatch: PacedStopwatch

    def _prepare(self, trial: Trial) -> None:
        self.profile = profiles.read(str(self.settings.profile)).shrunk(self.settings.times_smaller)
        self.codec = self.profile.codec(trial.method, self.world_size)
        self.optimizer_s = self.codec.optimizer_s if self.codec else self.profile.optimizer_s
        self.pace = Pace(self.slowing.at(0))
        self._method_spec = trial.method
        self._codecs: dict[str, profiles.Codec | None] = {}

    def _codec_of(self, chosen: Mapping[str, Any]) -> profiles.Codec | None:
        """The cost of the codec that the method has chosen."""
        key = repr(chosen)
        if key not in self._codecs:
            params = {**self._method_spec.params, **chosen}
            method = self._method_spec.model_copy(update={"params": params})
            self._codecs[key] = self.profile.codec(method, self.world_size)
        return self._codecs[key]

    def _begin_step(self) -> Any:
        """The device goes on where the step before ended, however late this process has woken up since."""
        if self.last_mark is None:
            self.pace.begin()
        return self.last_mark or super()._begin_step()

    def _enter_phase(self, step: int) -> None:
        """Where the dilation changes with this step, change links and pace together, off the training clock."""
        if self.ask_for_links and (step == self.first_step or self.slowing.at(step) != self.pace.dilation):
            with self._paused():
                dist.barrier()  # until then the last step's bytes are on the links
                if self.rank == 0:
                    self.ask_for_links(self.slowing.at(step))
                self.pace.dilation = self.slowing.at(step)

    def _step(self, step: int) -> None:
        self._enter_phase(step)
        if chosen := self.method.steps_as:
            self.stopwatch.charge_as(self._codec_of(chosen))
        super()._step(step)
        self.recorder.note(step, "overrun_s", self.pace.take_overrun_s())


class Replay(Timed):
    """A model that waits instead of computing."""

    learns = False

    def _prepare(self, trial: Trial) -> None:
        super()._prepare(trial)
        settings = self.settings
        made = replay.materials(str(settings.replay), settings.gradient_density, settings.times_smaller)
        model = Replayed(self.profile, made, self.pace, self.rank, settings.gradient_overlap)
        # All ranks have the same weights already; to send them would take a copy of its own from each.
        self.ddp = DistributedDataParallel(model, **self._ddp_settings, init_sync=False)
        self.optimizer = optimizers.waiting(
            settings.optimizer, model.parameters(), self.pace, self.optimizer_s, self._optimizer_settings
        )
        self.method.stopwatch = self.stopwatch = PacedStopwatch(self.pace, self.codec, self.profile.numel)
        self.batches = itertools.repeat([])
        self._draw()
        baselines.register(self.ddp, self.method, optimizer=self.optimizer)

    def _loss(self, model: nn.Module) -> Tensor:
        loss: Tensor = model()
        return loss


class Paced(Timed):
    """A model that really computes and learns, and then waits until the profile's device would be as far."""

    def _prepare(self, trial: Trial) -> None:
        super()._prepare(trial)
        self.stopwatch = self.backward = BackwardStopwatch(self.pace, self.codec, self.profile)
        self.method.stopwatch = self.stopwatch
        Training._prepare(self, trial)
        self.backward.ready_s = _ready_s(self.ddp.module, self.profile)
        self.optimizer.register_step_pre_hook(lambda *_: self.pace.waited())
        # Hooks run in their order: what the method does at the end of a step comes before this, and is part of it.
        self.optimizer.register_step_post_hook(lambda *_: self.pace.work(self.optimizer_s))

    def _loss(self, model: nn.Module) -> Tensor:
        loss = super()._loss(model)
        self.pace.work(self.profile.forward_s)
        self.backward.backward_begins()
        return loss

    def _backward(self, loss: Tensor, synchronises: bool) -> None:
        super()._backward(loss, synchronises)
        if not synchronises:
            self.pace.work(self.profile.backward_s)


class BackwardStopwatch(PacedStopwatch):
    """Hands a bucket over when the device would have the last of its gradients ready."""

    def __init__(self, pace: Pace, codec: profiles.Codec | None, profile: Profile) -> None:
        super().__init__(pace, codec, profile.numel)
        self.ready_s: dict[Tensor, float] = {}
        """When each parameter's gradient is ready, in seconds from the start of the backward pass."""
        self._reached_s = 0.0

    def backward_begins(self) -> None:
        """A new backward pass begins."""
        self._reached_s = 0.0

    def bucket_ready(self, entries: int, members: Sequence[Tensor] = ()) -> None:
        """See ``Stopwatch.bucket_ready``."""
        ready_s = max((self.ready_s[member] for member in members), default=0.0)
        self._pace.work(max(0.0, ready_s - self._reached_s))
        self._reached_s = max(self._reached_s, ready_s)
        super().bucket_ready(entries, members)


def _ready_s(model: nn.Module, profile: Profile) -> dict[Tensor, float]:
    """Times by parameter. A profile knows parameters by their names."""
    times_s = {gradient.parameter: gradient.ready_s for gradient in profile.gradients}
    return {weight: times_s[name] for name, weight in model.named_parameters()}
