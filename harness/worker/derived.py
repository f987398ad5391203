"""Profiles derived from what is published of a device that is not here, or from the profile of a larger model."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines._state import numel
from harness.plugins import short
from harness.provenance import cpu_model
from harness.worker.codecs import measure_codecs
from harness.worker.layers import LayerWatch, owner_of
from harness.worker.profile_request import ProfileRequest
from harness.workload.models import MODELS, Model
from harness.workload.profile import SCHEMA, Gradient, Profile


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
    "p100": Hardware("NVIDIA P100 PCIe 16 GB", 9.3e12, 732e9),
    "rtx3090": Hardware("NVIDIA RTX 3090", 35.6e12, 936e9),
}
"""From the vendor's data sheets."""

COPIED_BYTES, COPIES = 1 << 26, 9
"""How much is copied to time memory: more than most caches hold. And how often: one late copy moves no median."""

EFFICIENCY = 0.4
"""Share of its peak that a device reaches, unless one is given."""


def derive(request: ProfileRequest, hardware: Hardware, efficiency: float) -> Profile:
    """What a model would take on a published device: its operations at a share of the peak, the rest by memory.

    A backward pass takes twice the forward pass's operations, a layer after the other; SGD with momentum reads and
    writes five numbers a parameter. Codecs are timed here, and scaled as a copy of memory would be.
    """
    model, here_bytes_per_s = MODELS[request.model], copy_bytes_per_s()
    forward_s = {
        layer: request.batch_size * flops / (hardware.peak_flops_per_s * efficiency)
        for layer, flops in flops_by_layer(model).items()
    }
    profile = Profile.model_validate(
        {
            "schema": SCHEMA,
            "model": short(request.model),
            "batch_size": request.batch_size,
            "device": hardware.name,
            "source": "modelled",
            "made_by": request.made_by,
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
        for codec in measure_codecs(profile, request)
    ]
    return profile.model_copy(update={"codecs": tuple(codecs)})


def liken(request: ProfileRequest, other: Profile, times_faster: float) -> Profile:
    """A step that takes as long as another model's, each part of it and each codec, but all so many times faster.

    So a small model that really learns has the other's ratio of communication to computation, where a link's rate is
    less by as much as the model is smaller, and so many times more. A gradient is ready when the same part of the other
    model's numbers is.
    """
    made = other.at(100 * times_faster)
    return made.model_copy(
        update={
            "model": short(request.model),
            "batch_size": request.batch_size,
            "device": f"{other.device}, {times_faster:g} times as fast",
            "source": "modelled",
            "made_by": request.made_by,
            "assumptions": f"each part takes as long as one of {other.model}, batch {other.batch_size}; there: "
            f"{other.assumptions or other.origin}",
            "gradients": tuple(_ready_in_proportion(MODELS[request.model], made)),
            "layers": (),
        }
    )


def _ready_in_proportion(model: Model, other: Profile) -> Iterator[Gradient]:
    """Gradients of a model, the last parameter's first, at the times of another one's."""
    shapes = model.shapes_by_name()
    whole, entries = numel(list(shapes.values())), 0
    ready_by = [*itertools.accumulate(gradient.numel for gradient in other.gradients)]
    for name, shape in reversed(shapes.items()):
        entries += math.prod(shape)
        place = bisect.bisect_left(ready_by, entries * other.numel / whole)
        yield Gradient(parameter=name, shape=shape, ready_s=other.gradients[place].ready_s)


def flops_by_layer(model: Model) -> dict[str, int]:
    """Floating point operations of a forward pass on one sample, by layer in the order in which layers begin.

    What happens between layers (attention's products, say) counts for the one that ends next. Nothing is computed.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network, example = model.build(), model.example(1)
        watch = LayerWatch(network, counter.get_total_flops)
        with torch.no_grad():
            network(example)
    return {layer: int(flops) for layer, flops in watch.take().items()}


def copy_bytes_per_s() -> float:
    """How fast one thread of this machine copies memory: bytes read and written, a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * COPIED_BYTES / statistics.median(seconds)


def _modelled(model: Model, forward_s: dict[str, float], hardware: Hardware) -> dict[str, Any]:
    """The timed fields of a profile, of layers that follow one another."""
    shapes, ready_s, now_s = model.shapes_by_name(), {}, 0.0
    for layer in reversed(forward_s):
        now_s += 2 * forward_s[layer]
        ready_s[layer] = now_s
    gradients = [
        {"parameter": name, "shape": shape, "ready_s": ready_s.get(owner_of(name, forward_s), now_s)}
        for name, shape in reversed(shapes.items())
    ]
    return {
        "forward_s": sum(forward_s.values()),
        "backward_s": now_s,
        "optimizer_s": 5 * 4 * numel(list(shapes.values())) / hardware.memory_bytes_per_s,
        "gradients": sorted(gradients, key=lambda each: each["ready_s"]),
        "layers": [{"layer": name, "forward_s": own, "backward_s": 2 * own} for name, own in forward_s.items()],
    }
