"""Flows that share queues: what each gets when all are fair to each other, and when each has arrived.

Flows that are alike are one class, and so are queues: a matrix ``use`` (queues, classes) says how many bytes pass a
queue for each byte that every flow of a class sends. Rates are max-min fair, by progressive filling: all grow alike
until a queue is full, whose flows then stay as they are (Bertsekas and Gallager, Data Networks, section 6.5.2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FULL = 1e-9
"""Share of its capacity below which what is left of a queue is rounding."""


def fair(use: Floats, capacity: Floats, wanted: Floats) -> Floats:
    """What each flow of a class gets.

    Args:
        use: (queues, classes), see the module.
        capacity: (queues,), what passes each queue at most; infinite where nothing limits it.
        wanted: (classes,), what a flow wants at most; may be infinite.

    Returns:
        (classes,): infinite where a flow wants that, and no queue limits it.
    """
    got = np.zeros(len(wanted))
    growing = wanted > 0
    left = capacity.astype(float)
    while growing.any():
        load = use @ growing
        room = np.divide(left, load, out=np.full(len(left), np.inf), where=load > 0)
        step = min(room.min(initial=np.inf), (wanted - got)[growing].min())
        if math.isinf(step):
            got[growing] = np.inf
            return got
        got[growing] += step
        left = np.maximum(left - step * load, 0.0)
        is_full = (load > 0) & (room <= step * (1 + FULL))
        growing &= (wanted > got * (1 + FULL)) & ~(use[is_full] > 0).any(axis=0)
    return got


def arrivals_s(use: Floats, bytes_per_s: Floats, bucket_bytes: Floats, sizes_bytes: Floats) -> Floats:
    """Seconds after which the last byte of each flow has passed its queues, if all begin at once.

    Args:
        use: (queues, classes), see the module.
        bytes_per_s: (queues,), rates; infinite where nothing limits.
        bucket_bytes: (queues,), what passes at once, before the rate counts: what a token bucket has saved.
        sizes_bytes: (classes,), of a flow of each class.

    Returns:
        (classes,).
    """
    left = sizes_bytes - fair(use, np.where(np.isinf(bytes_per_s), np.inf, bucket_bytes), sizes_bytes)
    left[left <= FULL * sizes_bytes] = 0.0
    arrived_s, now_s = np.zeros(len(sizes_bytes)), 0.0
    while (flowing := left > 0).any():
        speed = fair(use, bytes_per_s, np.where(flowing, np.inf, 0.0))
        step_s = (left[flowing] / speed[flowing]).min()
        now_s += step_s
        left[flowing] -= step_s * np.where(np.isinf(speed), 0.0, speed)[flowing]
        left[flowing & (np.isinf(speed) | (left <= FULL * sizes_bytes))] = 0.0
        arrived_s[flowing & (left == 0)] = now_s
    return arrived_s
