"""Numbers as few bits: rounding at random, ternary codes with a scale for each parameter, packing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import accumulate

import numpy as np
import torch

from baselines._pieces import pieces

SIGMAS = 2.5
"""Where TernGrad clips a gradient, in deviations."""

DICE_BITS, OFFSETS = 16, 128
"""Random bits of an entry's own, and the number of offsets below them that entries drawn together share."""

SMALLEST_BYTE = 0x0101010101010101
"""A word whose eight bytes are 1."""

GENERATOR_BYTES = {len(torch.Generator().get_state()), 16}
"""The size of what a generator's ``get_state`` gives: a CPU's, and a GPU's."""


class Dice:
    """Uniform random numbers in [0, 1), for rounding: ``floor(x + u)`` is x on average.

    An entry has 16 random bits of its own; what lies below them is drawn once for all entries of a call. So each number
    is uniform to 23 bits, as torch's are, for a third of the time.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def state_dict(self, names: Mapping[torch.Tensor, str]) -> torch.Tensor:
        """Where in their sequence the numbers are."""
        return self._generator.get_state()

    def load_state_dict(self, saved: torch.Tensor, names: Mapping[torch.Tensor, str]) -> None:
        """Go on from there; see ``go_on_from``."""
        go_on_from(self._generator, saved)

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Numbers of the shape, dtype and device of (n,)."""
        n, device = tensor.numel(), tensor.device
        per_word = 64 // DICE_BITS
        words = torch.empty(-(-n // per_word), dtype=torch.int64, device=device)
        bits = words.random_(-(2**63), None, generator=self._generator).view(torch.int16)[:n]
        offset = torch.randint(OFFSETS, (), generator=self._generator, device=device) / OFFSETS
        return bits.to(tensor.dtype).add_(2 ** (DICE_BITS - 1) + offset).mul_(2.0**-DICE_BITS)


def go_on_from(generator: torch.Generator, saved: torch.Tensor) -> None:
    """Set the generator to what ``get_state`` gave. If that was on a GPU and this is a CPU, or the reverse, begin anew.

    Raises:
        RuntimeError: no generator gave that.
    """
    saved = saved.cpu()
    other_sizes = GENERATOR_BYTES - {len(generator.get_state())}
    if saved.dtype == torch.uint8 and saved.numel() in other_sizes:
        generator.manual_seed(generator.initial_seed())
    else:
        generator.set_state(saved)


def own_scales(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """This rank's scale of each part of ``values``, which has parts of ``counts`` entries: min(max, 2.5 sigma).

    Sigma is taken about zero, not about the mean, so that a part whose entries are all alike, or a single number, is
    not clipped to nothing. What is not finite gives an infinite scale: Gloo's MAX may lose a NaN, but no infinity, and
    it must show on all ranks.
    """
    sigmas = divided(norms(values, counts, 2), [math.sqrt(max(count, 1)) for count in counts])
    scales = torch.minimum(norms(values, counts, math.inf), sigmas.mul_(SIGMAS))
    return scales.nan_to_num_(nan=math.inf, posinf=math.inf).clamp_(min=torch.finfo(scales.dtype).tiny)


def norms(values: torch.Tensor, counts: list[int], order: float) -> torch.Tensor:
    """The norm of each part of ``values``, which has parts of ``counts`` entries; 0 of none."""
    parts = [part for part in values.split(counts) if part.numel()]
    found = iter(torch._foreach_norm(parts, order)) if parts else iter(())
    nothing = values.new_zeros(())
    return torch.stack([next(found) if count else nothing for count in counts]) if counts else values.new_zeros(0)


def ternarise(values: torch.Tensor, counts: list[int], scales: torch.Tensor, dice: Dice | None) -> torch.Tensor:
    """Codes -1, 0 or +1 (int8) of ``values / scale``; what lies beyond a scale saturates.

    Rounded at random, so that they are right on average, or, without dice, to the nearest.
    """
    codes = torch.empty_like(values, dtype=torch.int8)
    for scale, some, some_codes in with_scales(scales, counts, values, codes):
        ratios = some / scale
        rounded = ratios.round_() if dice is None else ratios.add_(dice.like(some)).floor_()
        some_codes.copy_(rounded.clamp_(-1, 1))
    return codes


def add_scaled(values: torch.Tensor, codes: torch.Tensor, counts: list[int], scales: torch.Tensor) -> torch.Tensor:
    """``values`` (n,) plus ``codes`` (n,), each times the scale of its part, in place."""
    for scale, some, some_codes in with_scales(scales, counts, values, codes):
        some.addcmul_(some_codes.to(values.dtype), scale)
    return values


def with_scales(scales: torch.Tensor, counts: list[int], *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of the tensors, which have parts of ``counts`` entries, cut alike, and before them the scale of each entry.

    On a CPU they are pieces of one part, and the scale is one number. A GPU, where the number of calls counts, gets
    them whole, with as many scales.
    """
    if scales.is_cuda:
        yield spread(scales, counts), *tensors
        return
    for scale, *parts in zip(scales, *(tensor.split(counts) for tensor in tensors), strict=True):
        for some in pieces(*parts):
            yield scale, *some


def spread(scales: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The scale (..., n) of each entry, where parts have ``counts`` entries and one scale each (..., parts).

    For a GPU, which is not waited for. Its ``repeat_interleave`` takes 25 ms for a part of 40 million entries.
    """
    ends = numbers(tuple(accumulate(counts)), scales.device, torch.int32)
    entries = torch.arange(sum(counts), device=scales.device, dtype=torch.int32)
    return scales.index_select(-1, torch.bucketize(entries, ends, out_int32=True, right=True))


def divided(totals: torch.Tensor, divisors: list[float]) -> torch.Tensor:
    """Each of (parts,) by a number of its own, that fp16 might not hold; of the dtype of ``totals``."""
    wide = torch.promote_types(totals.dtype, torch.float32)
    return (totals / numbers(tuple(divisors), totals.device, wide)).to(totals.dtype)


@lru_cache(maxsize=256)
def numbers(given: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Numbers that are the same in every step, there: copied once, as a GPU is waited for."""
    return torch.tensor(given, device=device, dtype=dtype)


def refuse_overflow(world_size: int) -> None:
    """Raises:
    ValueError: int8 cannot hold the sum of so many ternary codes.
    """
    if world_size > 127:
        raise ValueError(
            f"ternary codes of {world_size} workers can add up to {world_size}, and int8 ends at 127: "
            "use a method with fp32 values, or at most 127 workers"
        )


def packed_bits(flags: torch.Tensor) -> torch.Tensor:
    """Flags (n,), bool, n a multiple of 8, as n / 8 bytes (uint8), first flag first.

    Eight flags are the bytes of one word; the product moves the lowest bit of each into its top byte.
    """
    words = flags.view(torch.int64)
    return words.mul(0x0102040810204080).bitwise_right_shift_(56).to(torch.uint8)


def packed_size(count: int) -> int:
    """Bytes that so many bits take."""
    return -(-count // 8)


def packed_in_shards(flags: torch.Tensor, counts: list[int], sizes: list[int], messages: int) -> torch.Tensor:
    """Messages (messages, bytes) of the flags (n,), each with a shard of every part: at once, for a GPU."""
    padded = flags.new_zeros(messages * sum(sizes))
    padded.index_copy_(0, places_of_bits(counts, sizes, flags.device), flags)
    return packed_bits(padded).view(messages, -1)


def places_of_bits(counts: list[int], sizes: list[int], device: torch.device) -> torch.Tensor:
    """Where the sign (n,) of each part's entries is among all bits of the messages: a shard of each part a message.

    Args:
        sizes: of the shards, in bits.
    """

    def of_entries(numbers_of_parts: Iterable[int]) -> torch.Tensor:
        return spread(numbers(tuple(numbers_of_parts), device, torch.int64), counts)

    place = torch.arange(sum(counts), device=device).sub_(of_entries(accumulate(counts[:-1], initial=0)))
    size = of_entries(sizes)
    message = torch.div(place, size, rounding_mode="floor")
    return place.add_(of_entries(accumulate(sizes[:-1], initial=0))).add_(message.mul_(sum(sizes) - size))


def unpacked_bits(packed: torch.Tensor) -> torch.Tensor:
    """The flags (8 n,), bool, of n bytes that ``packed_bits`` made."""
    words = packed.to(torch.int64).mul_(SMALLEST_BYTE).bitwise_and_(BIT_OF_ITS_PLACE)
    return words.view(torch.uint8).ne(0)


def not_negative(values: torch.Tensor) -> torch.Tensor:
    """Which of (n,) are at least zero (bool). On a CPU numpy compares: in a third of the time that torch takes."""
    if values.is_cuda:
        return values.ge(0)
    flags = torch.empty_like(values, dtype=torch.bool)
    np.greater_equal(values.numpy(), 0, out=flags.numpy())
    return flags


BIT_OF_ITS_PLACE = int.from_bytes(bytes(1 << place for place in range(8)), "little", signed=True)
"""A word whose bytes have one bit each: the first the lowest, the last the highest."""


def packed_fields(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Fields (n,), uint8, below 2^bits, as n * bits / 8 bytes; n a multiple of 8 / bits, and bits 1, 2, 4 or 8."""
    if bits == 8:
        return fields
    packed, *others = fields.view(-1, 8 // bits).unbind(1)
    for place, field in enumerate(others, start=1):
        packed = packed | (field << (bits * place))
    return packed


def unpacked_fields(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The fields (n,), uint8, that ``packed_fields`` packed."""
    if bits == 8:
        return packed
    fields = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(fields, dim=1).view(-1)


def by_byte(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The values (2^bits,) of a byte's fields, for every byte: (256, 8 / bits).

    A row looked up takes a quarter of what unpacking its fields and looking each up does.
    """
    return values[fields_of_every_byte(values.device, bits)].view(256, 8 // bits)


@cache
def fields_of_every_byte(device: torch.device, bits: int) -> torch.Tensor:
    """The fields, int32, of the bytes from 0 to 255, one after the other."""
    return unpacked_fields(torch.arange(256, dtype=torch.uint8, device=device), bits).int()
