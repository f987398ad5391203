"""Making profiles: a model's steps, timed on this machine.

Timed are real steps: forward pass, backward pass and optimizer under DDP, in as many processes at once as a machine is
to carry workers. Nothing travels then, so that what is timed is the device's work alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import baselines
from baselines._lane import settled
from baselines._stopwatch import Clock
from harness.errors import UsageError
from harness.plugins import short
from harness.provenance import cpu_model
from harness.worker.codecs import measure_codecs
from harness.worker.layers import LayerWatch, owner_of
from harness.worker.local_ranks import in_new_processes
from harness.worker.profile_request import BUCKET_BYTES, WARM_UP_STEPS, ProfileRequest, Timed
from harness.workload.data import DATASETS
from harness.workload.models import MODELS, autocast, cross_entropy
from harness.workload.profile import SCHEMA, Profile


def measure(request: ProfileRequest) -> Profile:
    """Time a model, and methods' codecs, on this machine.

    Raises:
        UsageError: the device is not there.
        MeasurementError: a process failed.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UsageError.at("command line", "--device", request.device, "cpu: torch finds no GPU here")
    at_once = 1 if request.in_processor_time else request.workers
    timed = in_new_processes(_time_steps, at_once, request.repeats, request)
    profile = Profile.model_validate(
        {
            "schema": SCHEMA,
            "model": short(request.model),
            "batch_size": request.batch_size,
            "device": torch.cuda.get_device_name() if request.device == "cuda" else _cpu(request),
            "source": "measured",
            "made_by": request.made_by,
            "workers": request.workers,
            "optimizer": request.optimizer,
            "autocast": request.autocast,
            **_steps_together(timed, request.typical),
        }
    )
    return profile.model_copy(update={"codecs": measure_codecs(profile, request)})


def _cpu(request: ProfileRequest) -> str:
    return f"{cpu_model()}, 1 thread" + (", processor time" if request.in_processor_time else "")


def samples(request: ProfileRequest, network: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch: the data set's first, or N(0, 1) and any tokens. Not zeros: a processor foresees where those branch.

    Args:
        network: the request's model, on its device.
    """
    if request.dataset:
        data = DATASETS[request.dataset].load(Path(request.data_dir) if request.data_dir else None)
        batch = slice(request.batch_size)
        return data.train_inputs[batch].to(request.device), data.train_targets[batch].to(request.device)
    model = MODELS[request.model]
    with torch.device(request.device):
        example = model.example(request.batch_size)
    inputs = torch.randn_like(example) if example.is_floating_point() else torch.randint_like(example, model.classes)
    with torch.no_grad():
        return inputs, torch.zeros_like(network(inputs).argmax(-1))


def _time_steps(request: ProfileRequest) -> list[Timed]:
    """Real steps of the model, in which nothing is sent: a row of times for each, in seconds."""
    clock = request.clock
    torch.manual_seed(0)
    network = MODELS[request.model].build().to(request.device)
    inputs, targets = samples(request, network)
    watch = LayerWatch(network, clock.mark)
    ddp = DistributedDataParallel(network, bucket_cap_mb=BUCKET_BYTES / 2**20, gradient_as_bucket_view=True)
    optimizer = request.build_optimizer(network.parameters())
    state = baselines.get("dense").State()
    state.model = network
    ddp.register_comm_hook(state, _keep_to_oneself)
    ready: list[tuple[str, Any]] = []
    for name, weight in network.named_parameters():
        weight.register_hook(partial(_note_ready, ready, clock, name))

    rows = []
    for step in range(WARM_UP_STEPS + request.steps):
        dist.barrier()
        ready.clear()
        start = clock.restart()
        with autocast(request.autocast, request.device):
            loss = cross_entropy(ddp(inputs), targets)
        backward = clock.mark()
        loss.backward()
        synchronised = clock.mark()
        optimizer.step()
        optimizer.zero_grad()
        end = clock.mark()
        state.end_step()
        marks = [clock.seconds(mark) for mark in (start, backward, synchronised, end)]
        row = {
            "forward_s": marks[1] - marks[0],
            "backward_s": marks[2] - marks[1],
            "optimizer_s": marks[3] - marks[2],
            "ready_s": {name: clock.seconds(mark) - marks[1] for name, mark in ready},
            "layers": watch.take(start, clock.seconds),
            "shapes": {name: tuple(weight.shape) for name, weight in network.named_parameters()},
        }
        if step >= WARM_UP_STEPS:
            rows.append(row)
    return rows


def _note_ready(ready: list[tuple[str, Any]], clock: Clock, name: str, _: Tensor) -> None:
    ready.append((name, clock.mark()))


def _keep_to_oneself(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
    """What every method's hook does before its own work; the bucket stays as it is."""
    state.stopwatch.bucket_ready(bucket.buffer().numel())
    state.look_for_non_finite(bucket)
    return settled(bucket.buffer())


def _steps_together(of_ranks: Sequence[list[Timed]], typical: Callable[[Iterable[float]], float]) -> Timed:
    """A profile's timed fields, typical of all steps of all processes."""
    rows = [row for rank in of_ranks for row in rank]
    seconds = {name: typical(row[name] for row in rows) for name in ("forward_s", "backward_s", "optimizer_s")}
    ready_s = {name: typical(row["ready_s"][name] for row in rows) for name in rows[0]["ready_s"]}
    shapes = rows[0]["shapes"]
    gradients = [
        {"parameter": name, "shape": shapes[name], "ready_s": max(0.0, ready_s[name])}
        for name in sorted(ready_s, key=lambda each: ready_s[each])
    ]
    forward_s = {name: typical(row["layers"][name] for row in rows) for name in rows[0]["layers"]}
    return {
        **seconds,
        "backward_s": max(seconds["backward_s"], gradients[-1]["ready_s"]),
        "gradients": gradients,
        "layers": _with_backward(forward_s, gradients),
    }


def _with_backward(forward_s: Mapping[str, float], gradients: Sequence[Mapping[str, Any]]) -> list[Timed]:
    """Layers with the time from the gradients that were ready before to the last of their own."""
    backward_s, before_s = dict.fromkeys(forward_s, 0.0), 0.0
    for gradient in gradients:
        if (owner := owner_of(gradient["parameter"], forward_s)) in backward_s:
            backward_s[owner] += gradient["ready_s"] - before_s
        before_s = gradient["ready_s"]
    return [
        {"layer": name, "forward_s": max(0.0, own), "backward_s": backward_s[name]} for name, own in forward_s.items()
    ]
