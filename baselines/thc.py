"""THC: 4-bit codes up whose sums are codes themselves, 8 bits down, after a random rotation that evens entries out.

Li et al., NSDI 2024 (tensor homomorphic compression, arXiv 2302.08545). With a = g + e:

* A randomised Hadamard transform of a whole DDP bucket, the same on all ranks, makes entries look normal, whatever they
  were.
* All ranks agree on the range: 2.15 sigma of the largest norm (1/32 of normal entries lie beyond, and are clipped).
* Entries are rounded at random to 16 of the 31 points of a grid; the 16 are those of least expected error for normal
  entries. A code says which of the 16.
* The owner of a shard looks the grid points up, adds them, and returns the sums, one byte each: no decompression.

Error feedback makes up for the clipping. Not a ring, but a sharded parameter server, whose servers are the workers.

Where it differs: a bucket is not lengthened to a power of two, which could double what travels, but by 1.6 % at most.
Such zeros would also take a part of the error, up to half, which stays with the entries here. What is not a power of
two in its length, up to 127, a Hartley transform mixes, which is as even. Sums of more than 8
workers exceed a byte; they travel as two.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributions import Normal
from torch.futures import Future
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from baselines._calls import AllReduce, AllToAll, Call
from baselines._exchange import shard_sizes
from baselines._lane import LaneState, settled
from baselines._memory import BucketMemory, Draft
from baselines._parameters import Seed, parameters
from baselines._pieces import pieces
from baselines._quantise import Dice, by_byte, packed_fields
from baselines._state import Shapes, numel

LABEL = "THC"
COLOR = "#AA4499"
MARKER = "<"
SENDS = "a 4-bit code for every entry to its owner, and the sum of the codes back"
ALL_REDUCE = False
SOURCE = "Li et al., NSDI 2024 (arXiv 2302.08545)"
MOST_LOSS = 0.01
MOST_LOSS_AT_PLATEAU = 0.01

GRANULARITY = 30
"""The grid's highest point; its points are the whole numbers from 0."""

CLIPPED = 1 / 32


@parameters
class State(LaneState):
    """What THC keeps on one rank.

    Args:
        bits: of a code.
        error_feedback: whether what codes missed is added to the next gradient.
        seed: of the rotation, and, each rank adding its own number, of the rounding.
    """

    most_copies = 9.5

    bits: Literal[2, 4] = 4
    error_feedback: bool = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.residual = BucketMemory()

    @property
    def remembers(self) -> tuple[str, ...]:
        dice = "dice", "common_dice"
        return ("residual", *dice) if self.error_feedback else dice

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        up, down = self.bits / 8, sum_bytes(world_size)
        return (up + down) * numel(shapes) * (world_size - 1) / world_size

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        n = numel(shapes)
        return [AllReduce(4), AllToAll(n * self.bits / 8), AllToAll(n * sum_bytes(world_size))]

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().bind(ddp, optimizer)
        self.dice = Dice(self.device, self.seed + self.own_rank)
        self.common_dice = torch.Generator(self.device).manual_seed(self.seed)


def sum_bytes(world_size: int) -> int:
    """Bytes of a sum of one grid point of each worker."""
    return 1 if GRANULARITY * world_size <= 255 else 2


def thc_hook(state: State, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Replace the bucket by the mean of all ranks' codes."""
    gradient = bucket.buffer()
    residual = state.residual.draft(bucket) if state.error_feedback else None
    return state.lane.submit(lambda: homomorphic_all_reduce(state, gradient, residual))


def homomorphic_all_reduce(state: State, gradient: torch.Tensor, residual: Draft | None) -> Future[torch.Tensor]:
    """The mean of ``gradient`` (n,), in place, but for the ``residual`` (n,), if there is one. Runs in the lane."""
    n, p, group = gradient.numel(), state.world_size, state.lane.process_group
    with state.stopwatch("encode"):
        a = gradient if residual is None else residual.plus(gradient)
        signs = random_signs(n, state.common_dice, a.dtype)
        rotated = rotate(a, signs)
        # Gloo's MAX may lose a NaN, but no infinity: what is not finite on one rank must show on all.
        norm = torch.linalg.vector_norm(a).nan_to_num_(nan=torch.inf, posinf=torch.inf)
    dist.all_reduce(norm, op=dist.ReduceOp.MAX, group=group)
    with state.stopwatch("encode"):
        table = table_on(a.device, state.bits)
        sigma = norm.clamp(min=torch.finfo(a.dtype).tiny) / len(rotated) ** 0.5
        step = 2 * reach() * sigma / GRANULARITY
        packed = packed_fields(quantise(rotated, step, table, state.dice), state.bits)
        if residual is not None:
            own = by_byte((table.to(a.dtype) - GRANULARITY / 2) * step, state.bits)
            for some, some_packed in pieces(rotated.view(-1, own.shape[1]), packed):
                torch.index_select(own, 0, some_packed.int(), out=some)
            a.sub_(unrotate(rotated, signs)[:n]).nan_to_num_(nan=0, posinf=0, neginf=0)
        shards = shard_sizes(len(packed), p)
    size = shards[state.own_rank]
    arrived = packed.new_empty(p * size)
    dist.all_to_all_single(arrived, packed, [size] * p, shards, group=group)
    with state.stopwatch("encode"):
        sums = torch.zeros(size * 8 // state.bits, dtype=torch.int32, device=a.device)
        points = by_byte(table, state.bits)
        for theirs in arrived.split(size) if size else ():
            for some_sums, some in pieces(sums.view(-1, points.shape[1]), theirs):
                some_sums.add_(points.index_select(0, some.int()))
        answer = to_bytes(sums, p).repeat(p)
    per_shard = [shard * 8 // state.bits * sum_bytes(p) for shard in shards]
    answers = answer.new_empty(sum(per_shard))
    dist.all_to_all_single(answers, answer, per_shard, [per_shard[state.own_rank]] * p, group=group)
    with state.stopwatch("decode"):
        means = from_bytes(answers, p).to(a.dtype).div_(p).sub_(GRANULARITY / 2).mul_(step)
        return settled(gradient.copy_(unrotate(means, signs)[:n]))


def sides(n: int) -> list[int]:
    """The sides of a box that holds n >= 1 entries and little more: powers of two, and an odd number below 128.

    Its volume is a multiple of 4, so that codes fill whole bytes.
    """
    side = 1 << max(2, n.bit_length() - 7)
    odd = -(-n // side)
    while odd % 2 == 0:
        side, odd = 2 * side, odd // 2
    sixteens, rest = divmod(side.bit_length() - 1, 4)
    return [each for each in (odd, 1 << rest, *[16] * sixteens) if each > 1]


def random_signs(n: int, dice: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """-1 or 1 (m,), where m is n lengthened to a volume by ``sides``."""
    m = math.prod(sides(n))
    words = torch.empty(-(-m // 64), dtype=torch.int64, device=dice.device)
    bits = words.random_(-(2**63), None, generator=dice).view(torch.uint8)
    rows = by_byte(torch.arange(-1, 2, 2, dtype=dtype, device=dice.device), bits=1)
    return rows.index_select(0, bits.int()).view(-1)[:m]


@cache
def hartley(points: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The Hartley matrix (points, points): symmetric and orthogonal, so its own inverse."""
    place = torch.arange(points, dtype=torch.float64)
    angle = torch.outer(place, place).remainder_(points).mul_(2 * math.pi / points)
    return ((angle.cos() + angle.sin()) / math.sqrt(points)).to(device, dtype)


@cache
def hadamard(points: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The Hadamard matrix (points, points) of a power of two: symmetric and orthogonal, so its own inverse."""
    matrix, two = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(matrix) < points:
        matrix = torch.kron(matrix, two / math.sqrt(2))
    return matrix.to(device, dtype)


def mix(values: torch.Tensor) -> torch.Tensor:
    """The Hadamard transform, or nearly, of all of (m,), a volume by ``sides``: its own inverse."""
    for side in sides(len(values)):
        matrix = (hartley if side % 2 else hadamard)(side, values.dtype, values.device)
        # The first side is mixed and becomes the last, so that after all of them the order is the old one.
        values = (values.view(side, -1).t() @ matrix).view(-1)
    return values


def rotate(values: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """(n,), lengthened by zeros to (m,), with random signs, mixed."""
    return mix(pad(values, (0, len(signs) - len(values))).mul(signs))


def unrotate(rotated: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """The inverse of ``rotate``: (m,)."""
    return mix(rotated).mul_(signs)


@cache
def reach() -> float:
    """How many sigma the grid reaches from zero."""
    return float(Normal(0.0, 1.0).icdf(torch.tensor(1 - CLIPPED / 2, dtype=torch.float64)))


@cache
def best_table(bits: int) -> torch.Tensor:
    """The grid points (2^bits,), int32, of least expected error of rounding at random a clipped normal number.

    Between neighbours l and h, x is off by (h - x)(x - l) in the mean square. Points lie symmetrically, ends included.
    """
    grid = torch.arange(GRANULARITY + 1)
    fine = torch.linspace(0, GRANULARITY, 50 * GRANULARITY + 1, dtype=torch.float64)
    weight = torch.exp(-((fine / GRANULARITY * 2 - 1) * reach()).square() / 2)
    cell = torch.zeros(GRANULARITY + 1, GRANULARITY + 1, dtype=torch.float64)
    for low, high in combinations(range(GRANULARITY + 1), 2):
        inside = slice(50 * low, 50 * high)
        cell[low, high] = ((high - fine[inside]) * (fine[inside] - low) * weight[inside]).sum()
    inner = torch.tensor(list(combinations(range(1, GRANULARITY // 2), 2**bits // 2 - 1)))
    lower = torch.cat((torch.zeros(len(inner), 1, dtype=torch.int64), inner), dim=1)
    tables = torch.cat((lower, GRANULARITY - lower.flip(1)), dim=1)
    error = cell[tables[:, :-1], tables[:, 1:]].sum(1)
    return grid[tables[error.argmin()]].to(torch.int32)


@cache
def table_on(device: torch.device, bits: int) -> torch.Tensor:
    """``best_table`` there: copied once, as a GPU is waited for."""
    return best_table(bits).to(device)


def quantise(values: torch.Tensor, step: torch.Tensor, table: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Codes (uint8) of ``values`` (m,) on a grid of that step about zero, rounded at random, so right on average."""
    point = torch.arange(GRANULARITY + 1, device=table.device)
    lower_code = (torch.searchsorted(table, point.int(), right=True) - 1).clamp_(max=len(table) - 2)
    low, high = table[lower_code].to(values.dtype), table[lower_code + 1].to(values.dtype)
    slope = 1 / (high - low)
    offset = lower_code - low * slope
    codes = torch.empty_like(values, dtype=torch.uint8)
    for some, some_codes in pieces(values, codes):
        x = (some / step).add_(GRANULARITY / 2).nan_to_num_(nan=0.0).clamp_(0, GRANULARITY)
        cell = x.int()
        code = x.mul_(slope.index_select(0, cell)).add_(offset.index_select(0, cell))
        some_codes.copy_(code.add_(dice.like(some)).clamp_(max=len(table) - 1))  # copied to whole numbers: cut off
    return codes


def to_bytes(sums: torch.Tensor, world_size: int) -> torch.Tensor:
    """Sums (int32) of one grid point of each worker as bytes."""
    narrow = sums.to(torch.uint8 if sum_bytes(world_size) == 1 else torch.int16)
    return narrow.view(torch.uint8)


def from_bytes(packed: torch.Tensor, world_size: int) -> torch.Tensor:
    """The inverse of ``to_bytes``."""
    return packed if sum_bytes(world_size) == 1 else packed.view(torch.int16)
