"""Making profiles: a model's steps timed on this machine, or derived from what is published of another one.

Timed are real steps: forward pass, backward pass and optimizer under DDP, in as many processes at once as a machine is
to carry workers. Nothing travels then, so that what is timed is the device's work alone. Methods are timed apart, on
made-up gradients and real collectives over loopback.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import baselines
from baselines import MethodState
from baselines._state import Clock, Stopwatch, numel
from harness.errors import MeasurementError, UsageError
from harness.messages import GLOO
from harness.plan.expected import state_of
from harness.plan.trial import UNSETTLED_STEPS
from harness.provenance import cpu_model
from harness.scenario.schema import MethodSpec
from harness.worker.meter import CudaClock
from harness.worker.process import prepare_process
from harness.workload.data import DATASETS
from harness.workload.models import MODELS, Model, cross_entropy
from harness.workload.profile import SCHEMA, Codec, Profile
from harness.workload.replay import Materials, Pace, Replayed, make_materials

WARM_UP_STEPS = 3
"""DDP regroups its buckets, and memory is found."""

BUCKET_BYTES = 25_000_000
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class ProfileRequest:
    """What is to be measured."""

    model: str
    batch_size: int
    device: str
    """``cpu`` or ``cuda``."""
    workers: int
    steps: int
    methods: tuple[MethodSpec, ...]
    made_by: str
    dataset: str | None = None
    """Whose samples are computed; None for made-up ones."""


@dataclass(frozen=True)
class Hardware:
    """What a vendor publishes of a device."""

    name: str
    peak_flops_per_s: float
    """fp32, without sparsity or tensor cores."""
    memory_bytes_per_s: float


HARDWARE = {
    "a40": Hardware("NVIDIA A40", 37.4e12, 696e9),
    "a100": Hardware("NVIDIA A100 40 GB", 19.5e12, 1555e9),
    "v100": Hardware("NVIDIA V100 32 GB", 15.7e12, 900e9),
    "rtx3090": Hardware("NVIDIA RTX 3090", 35.6e12, 936e9),
}
"""From the vendor's data sheets."""

EFFICIENCY = 0.4
"""Of the peak, unless one is given."""


def measure(order: ProfileRequest) -> Profile:
    """Time a model, and methods' codecs, on this machine.

    Raises:
        UsageError: the device is not there.
        MeasurementError: a process failed.
    """
    if order.device == "cuda" and not torch.cuda.is_available():
        raise UsageError.at("command line", "--device", order.device, "cpu: torch finds no GPU here")
    timed = _in_processes(_time_steps, order.workers, order)
    profile = Profile.model_validate(
        {
            "schema": SCHEMA,
            "model": order.model,
            "batch_size": order.batch_size,
            "device": torch.cuda.get_device_name() if order.device == "cuda" else f"{cpu_model()}, 1 thread",
            "source": "measured",
            "made_by": order.made_by,
            "workers": order.workers,
            **_steps_together(timed),
        }
    )
    return profile.model_copy(update={"codecs": measure_codecs(profile, order)})


def derive(order: ProfileRequest, hardware: Hardware, efficiency: float) -> Profile:
    """What a model would take on a published device: its operations at a share of the peak, the rest by memory.

    A backward pass takes twice the forward pass's operations, a layer after the other; SGD with momentum reads and
    writes five numbers a parameter. Codecs are timed here, and scaled as a copy of memory would be.
    """
    model, here_bytes_per_s = MODELS[order.model], copy_bytes_per_s()
    forward_s = {
        layer: order.batch_size * flops / (hardware.peak_flops_per_s * efficiency)
        for layer, flops in flops_by_layer(model).items()
    }
    profile = Profile.model_validate(
        {
            "schema": SCHEMA,
            "model": order.model,
            "batch_size": order.batch_size,
            "device": hardware.name,
            "source": "modelled",
            "made_by": order.made_by,
            "assumptions": f"{efficiency:g} of {hardware.peak_flops_per_s / 1e12:g} Tflop/s (fp32); "
            f"backward 2 x forward; optimizer and codecs by {hardware.memory_bytes_per_s / 1e9:g} GB/s of memory, "
            f"codecs as timed on {cpu_model()} against its {here_bytes_per_s / 1e9:.3g} GB/s",
            **_modelled(model, forward_s, hardware),
        }
    )
    slowness = here_bytes_per_s / hardware.memory_bytes_per_s
    codecs = [
        codec.model_copy(
            update={name: getattr(codec, name) * slowness for name in ("encode_s", "beside_s", "decode_s")}
            | {"optimizer_s": profile.optimizer_s}
        )
        for codec in measure_codecs(profile, order)
    ]
    return profile.model_copy(update={"codecs": tuple(codecs)})


def measure_codecs(profile: Profile, order: ProfileRequest) -> tuple[Codec, ...]:
    """Time each of the methods, on gradients of the profile's shapes."""
    if not order.methods:
        return ()
    timed = _in_processes(_time_codecs, order.workers, profile, order)
    return tuple(
        Codec(method=method.name, params=method.params, workers=order.workers, **_codec_together(of_ranks))
        for method, of_ranks in zip(order.methods, zip(*timed, strict=True), strict=True)
    )


def flops_by_layer(model: Model) -> dict[str, int]:
    """Floating point operations of a forward pass on one sample, by layer in the order in which layers begin.

    What happens between layers (attention's products, say) counts for the one that ends next. Nothing is computed.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network, example = model.build(), model.example(1)
        watch = _LayerWatch(network, counter.get_total_flops)
        with torch.no_grad():
            network(example)
    return {layer: int(flops) for layer, flops in watch.take().items()}


def copy_bytes_per_s(size: int = 1 << 26, repetitions: int = 9) -> float:
    """How fast one thread of this machine copies memory: bytes read and written, a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = torch.zeros(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * size / statistics.median(seconds)


class _LayerWatch:
    """Tells how far a meter moves during the forward pass, layer by layer: modules that hold parameters themselves."""

    def __init__(self, network: nn.Module, meter: Callable[[], Any]) -> None:
        self._meter = meter
        self._marks: list[tuple[str, Any]] = []
        self._begun: list[str] = []
        for name, module in network.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(partial(self._begin, name))
                module.register_forward_hook(partial(self._end, name))

    def _begin(self, name: str, *_: object) -> None:
        self._begun.append(name)

    def _end(self, name: str, *_: object) -> None:
        self._marks.append((name, self._meter()))

    def take(self, start: Any = 0, number: Callable[[Any], float] = float) -> dict[str, float]:
        """By layer, in the order in which they begin; then forget.

        Args:
            start: what the meter showed before the pass.
            number: how to read the meter's marks.
        """
        found = dict.fromkeys(self._begun, 0.0)
        before = number(start)
        for name, mark in self._marks:
            found[name] += number(mark) - before
            before = number(mark)
        self._marks, self._begun = [], []
        return found


def _owner(parameter: str, layers: Iterable[str]) -> str:
    """The layer that a parameter belongs to: the module that holds it, or the nearest around that which is a layer."""
    known = set(layers)
    owner = parameter.rpartition(".")[0]
    while owner not in known and owner:
        owner = owner.rpartition(".")[0]
    return owner


def _modelled(model: Model, forward_s: dict[str, float], hardware: Hardware) -> dict[str, Any]:
    """The timed fields of a profile, of layers that follow one another."""
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in model.build().named_parameters()}
    ready_s, now_s = {}, 0.0
    for layer in reversed(forward_s):
        now_s += 2 * forward_s[layer]
        ready_s[layer] = now_s
    gradients = [
        {"parameter": name, "shape": shape, "ready_s": ready_s.get(_owner(name, forward_s), now_s)}
        for name, shape in reversed(shapes.items())
    ]
    return {
        "forward_s": sum(forward_s.values()),
        "backward_s": now_s,
        "optimizer_s": 5 * 4 * numel(list(shapes.values())) / hardware.memory_bytes_per_s,
        "gradients": sorted(gradients, key=lambda each: each["ready_s"]),
        "layers": [{"layer": name, "forward_s": own, "backward_s": 2 * own} for name, own in forward_s.items()],
    }


T = TypeVar("T")
Timed = dict[str, Any]
"""Seconds by the profile's fields."""


def _in_processes(job: Callable[..., T], workers: int, *arguments: Any) -> list[T]:
    """What ``job(*arguments)`` returns in each of so many processes at once, which form a process group on loopback.

    Raises:
        MeasurementError: one of them failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # which DDP and optimizers import
    with tempfile.TemporaryDirectory(prefix="pacbench-profile-") as folder:
        meeting = str(Path(folder) / "store")
        # The server of forks is started by `python -c`, which looks for everything in the current folder first. Its
        # forks go back to where this process is.
        with _working_in(Path(folder)):
            forkserver.ensure_running()
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            jobs = [pool.submit(_on_rank, rank, workers, meeting, job, arguments) for rank in range(workers)]
            try:
                return [each.result() for each in jobs]
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise MeasurementError(f"the profile cannot be made: {reason}") from None


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _on_rank(rank: int, workers: int, meeting: str, job: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    prepare_process()  # as workers do
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(GLOO, init_method=f"file://{meeting}", rank=rank, world_size=workers)
    try:
        return job(*arguments)
    finally:
        dist.destroy_process_group()


def samples(order: ProfileRequest, network: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch: the data set's first, or N(0, 1) and any tokens. Not zeros: a processor foresees where those branch.

    Args:
        network: the order's model, on its device.
    """
    if order.dataset:
        data = DATASETS[order.dataset].load(None)
        batch = slice(order.batch_size)
        return data.train_inputs[batch].to(order.device), data.train_targets[batch].to(order.device)
    model = MODELS[order.model]
    with torch.device(order.device):
        example = model.example(order.batch_size)
    inputs = torch.randn_like(example) if example.is_floating_point() else torch.randint_like(example, model.classes)
    with torch.no_grad():
        return inputs, torch.zeros_like(network(inputs).argmax(-1))


def _time_steps(order: ProfileRequest) -> list[Timed]:
    """Real steps of the model, in which nothing is sent: a row of times for each, in seconds."""
    clock = CudaClock() if order.device == "cuda" else Clock()
    torch.manual_seed(0)
    network = MODELS[order.model].build().to(order.device)
    inputs, targets = samples(order, network)
    watch = _LayerWatch(network, clock.mark)
    ddp = DistributedDataParallel(network, bucket_cap_mb=BUCKET_BYTES / 2**20, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(network.parameters(), **SGD)
    state = MethodState()
    state.stopwatch, state.model = Stopwatch(), network
    ddp.register_comm_hook(state, _keep_to_oneself)
    ready: list[tuple[str, Any]] = []
    for name, weight in network.named_parameters():
        weight.register_hook(partial(_note_ready, ready, clock, name))

    rows = []
    for step in range(WARM_UP_STEPS + order.steps):
        dist.barrier()
        ready.clear()
        start = clock.restart()
        loss = cross_entropy(ddp(inputs), targets)
        backward = clock.mark()
        loss.backward()
        synchronised = clock.mark()
        optimizer.step()
        optimizer.zero_grad()
        end = clock.mark()
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
    kept: Future[Any] = Future(devices=[bucket.buffer().device] if bucket.buffer().is_cuda else None)
    kept.set_result(bucket.buffer())
    return kept


def _steps_together(of_ranks: Sequence[list[Timed]]) -> Timed:
    """A profile's timed fields: medians over all steps of all processes."""
    rows = [row for rank in of_ranks for row in rank]
    seconds = {name: _median(row[name] for row in rows) for name in ("forward_s", "backward_s", "optimizer_s")}
    ready_s = {name: _median(row["ready_s"][name] for row in rows) for name in rows[0]["ready_s"]}
    shapes = rows[0]["shapes"]
    gradients = [
        {"parameter": name, "shape": shapes[name], "ready_s": max(0.0, ready_s[name])}
        for name in sorted(ready_s, key=lambda each: ready_s[each])
    ]
    forward_s = {name: _median(row["layers"][name] for row in rows) for name in rows[0]["layers"]}
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
        if (owner := _owner(gradient["parameter"], forward_s)) in backward_s:
            backward_s[owner] += gradient["ready_s"] - before_s
        before_s = gradient["ready_s"]
    return [
        {"layer": name, "forward_s": max(0.0, own), "backward_s": backward_s[name]} for name, own in forward_s.items()
    ]


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


class _ThreadStopwatch(Stopwatch):
    """Tells apart what holds up the backward pass."""

    def by_thread(self) -> dict[str, float]:
        """Seconds since the last lap."""
        seconds = {"encode_s": 0.0, "beside_s": 0.0, "decode_s": 0.0}
        backward_thread = self._bucket_ready[1] if self._bucket_ready else None
        for phase, start, end, thread in self._spans:
            if phase == "encode" and thread != backward_thread:
                phase = "beside"
            if phase != "end_step":
                seconds[f"{phase}_s"] += self.clock.seconds(end) - self.clock.seconds(start)
        self.lap()
        return seconds


def _time_codecs(profile: Profile, order: ProfileRequest) -> list[list[Timed]]:
    made = make_materials(profile).on(torch.device(order.device))
    return [_time_codec(profile, made, method, order) for method in order.methods]


def _time_codec(profile: Profile, made: Materials, method: MethodSpec, order: ProfileRequest) -> list[Timed]:
    """Real steps of a method on made-up gradients, in which only the codec and the optimizer take time."""
    model = Replayed(profile, made, Pace(0.0), dist.get_rank())
    ddp = DistributedDataParallel(
        model, bucket_cap_mb=BUCKET_BYTES / 2**20, gradient_as_bucket_view=True, init_sync=False
    )
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    state, stopwatch = state_of(method), _ThreadStopwatch()
    stopwatch.clock = CudaClock() if order.device == "cuda" else Clock()
    state.stopwatch = stopwatch
    baselines.register(ddp, state, optimizer=optimizer)
    steady_from_step = max(state.steady_from_step, UNSETTLED_STEPS)
    rows = []
    for step in range(steady_from_step + order.steps):
        dist.barrier()
        stopwatch.clock.restart()
        ddp().backward()
        synchronised = stopwatch.clock.mark()
        optimizer.step()
        optimizer.zero_grad()
        end = stopwatch.clock.mark()
        row = {"optimizer_s": stopwatch.clock.seconds(end) - stopwatch.clock.seconds(synchronised)}
        row |= stopwatch.by_thread()
        if step >= steady_from_step:
            rows.append(row)
    return rows


def _codec_together(of_ranks: Sequence[list[Timed]]) -> Timed:
    """Medians over all steps of all processes."""
    rows = [row for rank in of_ranks for row in rank]
    return {name: _median(row[name] for row in rows) for name in rows[0]}
