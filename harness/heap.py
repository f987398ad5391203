"""Memory that a training frees is kept, so that each step finds it again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of <malloc.h>."""

KEPT = {M_TRIM_THRESHOLD: 1 << 30, M_TOP_PAD: 1 << 26, M_MMAP_THRESHOLD: 1 << 26}
"""In bytes: what may lie free before any goes back, by how much the heap grows, what is too large to lie in it."""


def keep_what_is_freed() -> None:
    """Have malloc keep this process's memory (mallopt(3)); where the C library has no such thing, change nothing.

    By itself, glibc gives a step's activations back to the kernel or not as chance has laid out the heap. Of the small
    CNN, two processes then took 3,500 page faults a step or 1,500, and 15 ms instead of 10.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, size in KEPT.items():
            mallopt(parameter, size)
