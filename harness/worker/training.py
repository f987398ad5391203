"""A rank's training: data, model, DDP with a method's hook, the loop, and what is measured of each step."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic, perf_counter
from typing import IO, Any

import torch
import torch._dynamo  # DDP imports it when it is made, which would cost every worker over a second
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler, DistributedSampler

import baselines
from harness.errors import UsageError
from harness.messages import Send, Trained
from harness.network.link_requests import LinkRequests
from harness.network.queues import watched_queues
from harness.plan.expected import state_of
from harness.plan.status import first_steady_step
from harness.plan.trial import Trial
from harness.worker import meter, saving
from harness.worker.meter import Recorder, WireBytes
from harness.workload import optimizers
from harness.workload.augment import crop_and_flip
from harness.workload.data import DATASETS, Data
from harness.workload.datasets import EVALUATION_BATCH
from harness.workload.models import MODELS, autocast, cross_entropy

VERSION = 1
"""Of what a rank saves."""

LARGEST_LOSS = 700.0
"""Whose exponential is still a number."""

BUFFERS_OF_RANK_0 = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # the new name, and that of torch before 2.13
    if name in inspect.signature(DistributedDataParallel).parameters
)
"""DDP's argument that says whether every forward pass begins by sending them to all ranks."""


@cache
def data_of(dataset: str, data_dir: str | None) -> Data:
    """A data set by name, on the CPU.

    Raises:
        UsageError: it is not in the folder, or cannot be downloaded.
    """
    return DATASETS[dataset].load(Path(data_dir) if data_dir else None)


@dataclass(frozen=True)
class Scores:
    """What an evaluation of the whole test set found, the same on every rank."""

    accuracy: float
    loss: float


class Training:
    """One trial on one rank. Ranks decide alike: by step number, or by numbers that were all-reduced."""

    learns = True
    """Whether there is a loss, and an accuracy."""

    def __init__(self, trial: Trial, rank: int, world_size: int, recorder: Recorder, send: Send) -> None:
        self.settings = trial.train
        self.seed = trial.seed
        self.evaluates = self.learns and not trial.is_probe
        self.slowing = trial.slowing
        self.rank, self.world_size = rank, world_size
        self.recorder, self.send = recorder, send
        self.device = torch.device(trial.case.cluster.device)
        self.method = state_of(trial.method)
        self._prepare(trial)
        self.schedule = LambdaLR(self.optimizer, lambda step: self.settings.schedule.factor(step, self.settings.steps))
        self.whose = {"version": VERSION, "trial": trial.id, "rank": rank, "workers": world_size}
        """What a checkpoint must say that it is of."""
        self.first_step = 0
        """Where it goes on, of a training that was interrupted."""
        self.sent = WireBytes(0, 0)
        """In the steady state, until then."""
        self.steady_from_step = first_steady_step(self.method)
        self.paused_s = 0.0
        self.passes = 0
        """Forward passes that were begun, by which augmentation is drawn."""
        self.last_mark: Any = None
        """The end of the step before; None where the training clock stood still since then."""
        self.first_non_finite: tuple[int, str] | None = None
        self.interface = ""
        """The shaped one, whose bytes are counted."""
        self.start_file: Path | None = None
        """Made when training begins, for whoever changes the links from then on."""
        self.ask_for_links: LinkRequests | None = None
        """Through which rank 0 has the links slowed; None where they stay as they are."""

    def _prepare(self, trial: Trial) -> None:
        """Model, data, optimizer, and the method between them."""
        self.data = data_of(self.settings.dataset, self.settings.data_dir).on(self.device)
        torch.manual_seed(trial.seed)
        known, checkpoint = MODELS[self.settings.model], self.settings.checkpoint
        model = known.build_from(Path(checkpoint)) if checkpoint else known.build()
        model.to(self.device)
        # Weights that are the same already need not travel: on slow links that takes longer than many a step.
        smallest, largest = hash_range(model, self.device)
        self.ddp = DistributedDataParallel(model, **self._ddp_settings, init_sync=smallest != largest)
        self.optimizer = optimizers.build(self.settings.optimizer, model.parameters(), self._optimizer_settings)
        if self.device.type == "cuda":
            self.method.stopwatch.clock = meter.CudaClock()
        self.batches = self._batches(0)
        self._draw()
        baselines.register(self.ddp, self.method, optimizer=self.optimizer, loss=lambda: self._loss(model))

    @property
    def _ddp_settings(self) -> dict[str, Any]:
        return {
            "bucket_cap_mb": self.settings.sent_bucket_bytes / 2**20,
            "gradient_as_bucket_view": True,
            BUFFERS_OF_RANK_0: False,  # statistics of batches serve evaluations alone, and are sent before each one
        }

    @property
    def _optimizer_settings(self) -> dict[str, Any]:
        train = self.settings
        return optimizers.settings_of(train.optimizer, train.lr, train.momentum, train.weight_decay)

    def _draw(self) -> None:
        """The batches of the next step, of which the first is the one of the moment."""
        self.step_batches = [next(self.batches) for _ in range(self.settings.accumulate)]
        self.batch = self.step_batches[0]

    def run(self) -> None:
        """Train to the last step, and send what was found, ``Trained``."""
        yardstick_s = meter.yardstick_s()
        with watched_queues() as queues:
            steps, test_loss = self._train()
            sent, transport = meter.wire_bytes(self.interface) - self.at_steady, meter.transport()
        both_s = [taken_s for taken_s in (yardstick_s, meter.yardstick_s()) if taken_s is not None]
        with self.method.common():
            smallest, largest = hash_range(self.ddp.module, self.device)
        self.recorder.flush()
        self.send(
            Trained(
                steps=steps,
                steady_from_step=self.steady_from_step,
                first_non_finite=self.first_non_finite,
                diverged=steps < self.settings.steps or not test_loss < float("inf"),
                payload_bytes=self.settings.times_smaller * sent.payload,
                header_bytes=self.settings.times_smaller * sent.headers,
                **vars(transport.undilated(self.slowing.steady)),
                queues=queues.uses,
                train_time_s=self.recorder.clock_s,
                evaluation_time_s=self.paused_s,
                yardstick_s=statistics.mean(both_s) if both_s else None,
                peak_memory_bytes=meter.peak_memory_bytes(),
                peak_gpu_memory_bytes=meter.peak_gpu_memory_bytes(),
                own_memory_bytes=meter.own_memory_bytes(),
                held_memory_bytes=self.method.held_bytes(),
                parameter_hash=f"{smallest:016x}",
                parameters_identical=smallest == largest,
            )
        )

    def _train(self) -> tuple[int, float]:
        """All steps, or those until the test loss is not finite; how many, and the last test loss, 0 for a replay's."""
        steps, test_loss = self.first_step, 0.0
        if self.evaluates and not steps:
            self._note_evaluation(0)  # where every curve begins, so that a line leads to whatever the next one found
        self.at_steady = meter.wire_bytes(self.interface) - self.sent
        dist.barrier()
        if self.start_file:
            self.start_file.touch()
        for step in range(self.first_step, self.settings.steps):
            if step == self.steady_from_step:
                with self._paused():
                    self.at_steady = meter.wire_bytes(self.interface)
            self._step(step)
            self.schedule.step()
            self._draw()
            steps = step + 1
            if self.evaluates and (steps % self.settings.eval_every == 0 or steps == self.settings.steps):
                test_loss = self._note_evaluation(steps)
                if not test_loss < float("inf"):  # NaN too
                    break
            if self._is_to_save(steps):
                self._save(steps)
        return steps, test_loss

    def _is_to_save(self, steps: int) -> bool:
        """Whether a checkpoint is made after so many steps: none of a short trial, and none at the end."""
        every = self.settings.save_every
        return bool(every and self.evaluates and steps % every == 0 and steps < self.settings.steps)

    @property
    def _parts(self) -> dict[str, Any]:
        """What remembers something from step to step."""
        return {
            "model": self.ddp.module,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "method": self.method,
        }

    def _save(self, steps: int) -> None:
        """Have the harness keep what this rank needs to go on from here, off the training clock."""
        with self._paused():
            self.recorder.flush()
            sent = meter.wire_bytes(self.interface) - self.at_steady
            content = {
                **self.whose,
                **{name: part.state_dict() for name, part in self._parts.items()},
                "random": saving.random_states(self.device),
                "steps": steps,
                "passes": self.passes,
                "clock_s": self.recorder.clock_s,
                "paused_s": self.paused_s,
                "sent": (sent.payload, sent.headers),
                "first_non_finite": self.first_non_finite,
            }
            saving.save(self.send, steps, content)
            self.at_steady = meter.wire_bytes(self.interface) - sent  # on hosts, it has left by the very interface

    def resume(self, file: IO[bytes]) -> None:
        """Go on from what this rank has saved, to the last bit; before ``run``.

        Raises:
            MeasurementError: it is of another rank or trial, or damaged.
        """
        saved = saving.load(file, self.whose)
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.first_step, self.passes, self.paused_s = saved["steps"], saved["passes"], saved["paused_s"]
        self.sent, self.first_non_finite = WireBytes(*saved["sent"]), saved["first_non_finite"]
        self.recorder.clock_s = saved["clock_s"]
        self.batches = self._batches(self.passes)
        self._draw()
        saving.restore_random_states(saved["random"], self.device)

    def _note_evaluation(self, steps: int) -> float:
        """Look at the test set after so many steps, off the training clock; its loss."""
        with self._paused(), self.method.common():
            found = self._evaluate()
        if self.rank == 0:
            self.recorder.note(steps, "accuracy", found.accuracy)
            self.recorder.note(steps, "test_loss", found.loss)
            if self.data.test_targets.ndim > 1:  # tokens
                self.recorder.note(steps, "perplexity", math.exp(min(found.loss, LARGEST_LOSS)))
        return found.loss

    def _accumulate(self) -> Tensor:
        """All forward and backward passes of a step; the mean loss. Gradients travel in the last one alone."""
        parts = []
        for place, batch in enumerate(self.step_batches, start=1):
            self.batch, is_last = batch, place == len(self.step_batches)
            self.passes += 1
            with nullcontext() if is_last else self.ddp.no_sync():
                parts.append(self._loss(self.ddp) / len(self.step_batches))
                self._backward(parts[-1], is_last)
        return torch.stack([part.detach() for part in parts]).sum()

    def _backward(self, loss: Tensor, synchronises: bool) -> None:
        loss.backward()

    def _loss(self, model: nn.Module) -> Tensor:
        """The mean loss on the batch of the moment."""
        inputs = self.data.train_inputs[self.batch]
        if self.settings.augment:
            inputs = crop_and_flip(inputs, (self.seed, self.rank, self.passes))
        with self._precision():
            return cross_entropy(model(inputs), self.data.train_targets[self.batch])

    def _precision(self) -> AbstractContextManager[object]:
        """In which forward passes compute."""
        return autocast(self.settings.autocast, self.device.type)

    def _begin_step(self) -> Any:
        """The moment at which a step begins."""
        return self.method.stopwatch.clock.restart()

    def _step(self, step: int) -> None:
        clock = self.method.stopwatch.clock
        start_mark = self._begin_step()
        loss = self._accumulate()
        synchronised_mark = clock.mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end_mark = self.last_mark = clock.mark()

        start, synchronised, end = map(clock.seconds, (start_mark, synchronised_mark, end_mark))
        codec = self.method.stopwatch.lap()
        compute_s = (codec.buckets_ready_at - start - codec.before_ready_s) + (end - synchronised - codec.end_step_s)
        seconds = {
            "step_s": end - start,
            "compute_s": compute_s,
            "encode_s": codec.encode_s,
            "decode_s": codec.decode_s,
            "comm_s": max(0.0, end - start - compute_s - codec.encode_s - codec.decode_s),
        }
        self.recorder.advance(step, seconds)
        for kind, value in self.method.take_notes():
            self.recorder.note(step, kind, self.settings.times_smaller * value if kind == "formula_bytes" else value)
            if kind == "non_finite_gradient" and self.first_non_finite is None:
                name, _ = list(self.ddp.module.named_parameters())[int(value)]
                self.first_non_finite = (step, name)
        if self.rank == 0 and self.learns:
            self.recorder.note(step, "loss", loss.item())
        if self.start_file:
            self.recorder.note(step, "monotonic_s", monotonic())

    def _batches(self, used: int) -> Iterator[list[int]]:
        """Indices of this rank's samples, batch by batch: each epoch in a new order, each sample on one rank.

        Args:
            used: how many batches of them are passed over.
        """
        sampler: DistributedSampler[int] = DistributedSampler(
            range(len(self.data.train_targets)),  # type: ignore[arg-type]
            self.world_size,
            self.rank,
            shuffle=True,
            seed=self.seed,
            drop_last=True,
        )
        batches = BatchSampler(sampler, self.settings.batch_size, drop_last=True)
        if not len(batches):
            found = f"{len(self.data.train_targets)} samples in {self.settings.dataset}"
            raise UsageError.at("scenario", "train.batch_size", self.settings.batch_size, f"fewer: there are {found}")
        first_epoch, used_of_it = divmod(used, len(batches))
        for epoch in itertools.count(first_epoch):
            sampler.set_epoch(epoch)
            yield from itertools.islice(batches, used_of_it, None)
            used_of_it = 0

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Do something off the training clock; the ranks go on together."""
        start = perf_counter()
        yield
        dist.barrier()
        self.paused_s += perf_counter() - start
        self.last_mark = None

    @torch.no_grad()
    def _evaluate(self) -> Scores:
        """Each rank looks at its share of the test set, by rank 0's statistics of batches; the sums are all-reduced."""
        for buffer in self.ddp.module.buffers():
            dist.broadcast(buffer, 0)
        self.ddp.eval()
        inputs, targets = (
            self.data.test_inputs[self.rank :: self.world_size],
            self.data.test_targets[self.rank :: self.world_size],
        )
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for some_inputs, some_targets in zip(
            inputs.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True
        ):
            with self._precision():
                scores = self.ddp.module(some_inputs).float()
            sums[0] += (scores.argmax(-1) == some_targets).sum()
            sums[1] += cross_entropy(scores, some_targets, reduction="sum").double()
        self.ddp.train()
        dist.all_reduce(sums)
        correct, loss = (sums / self.data.test_targets.numel()).tolist()
        return Scores(correct, loss)


def hash_range(model: nn.Module, device: torch.device) -> tuple[int, int]:
    """The least and the greatest of all ranks' hashes: equal when every rank holds the same bits."""
    own = parameter_hash(model)
    extremes = torch.tensor([own, -own], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    largest, negated_smallest = extremes.tolist()
    return -negated_smallest, largest


def parameter_hash(model: nn.Module) -> int:
    """63 bits of SHA-256 over all parameters and buffers, in their order."""
    digest = hashlib.sha256()
    tensors: Iterator[Tensor] = itertools.chain(model.parameters(), model.buffers())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1
