"""What the states of all methods share: step count, notes, per-parameter memory, byte formulas."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import Self

from baselines._calls import AllGather, AllReduce, Call
from baselines._checkpoint import Checkpointed
from baselines._loss_scale import LossScale
from baselines._memory import BucketMemory, Drafts
from baselines._names import plain_name
from baselines._stopwatch import MOST_KEPT, Stopwatch

UNBOUND = ": it belongs to no training yet; hand it to baselines.register(ddp, state, optimizer=optimizer)"

Shapes = Sequence[Sequence[int]]


class SavingBound(NamedTuple):
    """The most that a method can save in bytes, and why."""

    most: float
    """How many times fewer bytes than an all-reduce in fp32."""
    why: str
    """What sets the bound, as words that follow the method's label: ``sends a share of 0.1 of the entries``."""


class MethodState(Checkpointed):
    """Base of every method's ``State``.

    Until ``bind`` it holds parameters only and can tell a plan what it will cost. After it, it lives on one rank of
    one training, and ``step`` counts the optimizer's steps from 0.
    """

    most_copies: float = 4.0
    """Tensors of the model's size that a rank has at most: DDP's buckets, what the method holds, what it computes with;
    parameters only where the method gives each rank its own. An estimate, for whoever must know before the start."""

    swept: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that say which share of the entries is kept. Of a scenario that has several values of one, a
    figure shows the final accuracy against them, and down to which of them it holds."""

    warmup_parameters: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that shape the warm-up alone; each is a number of steps. States that differ in nothing else
    are alike in the steady state, so that the throughput of one may be put beside the steps to the target of the other.
    """

    goodput_note: ClassVar[str | None] = None
    """Kind of the note in which rank 0 tells the goodput that it made a choice for, in bit/s. The figure of changing
    links marks each. None where the method chooses nothing."""

    at_once: ClassVar[int] = 2
    """How many of its collectives may be under way together: a process group of Gloo has two threads."""

    host_synchronisations_a_bucket: ClassVar[int] = 0
    """How often its hook waits for the device in a bucket of the steady state, because how many bytes are sent depends
    on the gradients' values: once for each exchange whose lengths do. While the host waits it can queue no more work.
    Only what happens once in many steps may come on top."""

    syncs_in_end_step: bool = False
    """Whether its collectives are those of ``end_step``, of the whole model, and not of buckets."""

    is_streaming: ClassVar[bool] = False
    """Whether its collectives are called one by one, at moments that lie evenly apart in ``agrees_every`` steps, and
    waited for ``hidden_steps`` later."""

    is_sixteen_bit: ClassVar[bool] = False
    """Whether it is a plain all-reduce in 16 bits: what anyone has for one line of code, and so what others must
    beat."""

    as_given: ClassVar[bool] = False
    """Whether its hook is handed what DDP has: by the loss scale, and in the gradients' own dtype."""

    shows_non_finite: ClassVar[bool] = False
    """Whether what is not finite on one rank shows on all by itself, in the parameter where it is; where entries are
    selected, it may wait."""

    takes_sparse_embeddings: ClassVar[bool] = True
    """Whether it trains with sparse embeddings, whose gradients are never handed to its hook."""

    adjustable: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that may be assigned in training, and act from the next step on; alike on all ranks."""

    def __post_init__(self) -> None:
        self.step = 0
        self.is_bound = False
        self.stopwatch = Stopwatch()
        self._notes: deque[tuple[str, float]] = deque(maxlen=MOST_KEPT)
        self._suspects: list[tuple[list[torch.Tensor], torch.Tensor]] = []
        self.loss: Callable[[], torch.Tensor] | None = None
        self.loss_scale = LossScale()
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in getattr(type(self), "__dataclass_fields__", {}) and vars(self).get("_is_made"):
            value = self._checked(name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        hint = "" if name.startswith("_") or vars(self).get("is_bound") else UNBOUND
        raise AttributeError(f"{type(self).__module__}.State has no {name!r}{hint}")

    def without_warmup(self) -> Self:
        """An unbound state whose steady state begins at once; this one where the method needs its warm-up."""
        try:
            return type(self)(**{**self.parameters, **dict.fromkeys(self.warmup_parameters, 0)})
        except ValueError:
            return self

    def _checked(self, name: str, value: Any) -> Any:
        """The value as a parameter has it.

        Raises:
            ValueError: it is not allowed, or not any more.
        """
        if self.is_bound and name not in self.adjustable:
            may = f"only {', '.join(self.adjustable)} may change then" if self.adjustable else "nothing may change then"
            raise ValueError(f"{self.name}.{name}: {value!r} comes too late, training has begun; {may}")
        return getattr(type(self)(**{**self.parameters, name: value}), name)

    @property
    def accumulates(self) -> bool:
        """Whether gradients that were synchronised already may be so again, with more added: each micro-batch."""
        return False

    @property
    def steady_from_step(self) -> int:
        """The first step that runs as all later ones do: after warm-up, pruning or a ramp of the sparsity."""
        return 0

    @property
    def agrees_every(self) -> int:
        """Steps from one point where all ranks hold the same parameters to the next; 1 for all that send gradients."""
        return 1

    @property
    def trains_alone(self) -> bool:
        """Whether each rank makes this step by its own gradients."""
        return self.agrees_every > 1

    @property
    def hidden_steps(self) -> int:
        """Steps that are made while one of its exchanges is under way, before any rank waits for it."""
        return 0

    @property
    def learns_by_the_links(self) -> bool:
        """Whether what the links are decides what is learnt, so that accuracies on other links say nothing of these."""
        return False

    @property
    def steps_as(self) -> Mapping[str, Any]:
        """Other values of parameters: those of a state that would make the present step just so. Empty but where the
        method chooses; before ``bind``, of the choice that its byte formula is of."""
        return {}

    @property
    def saving_bound(self) -> SavingBound | None:
        """What the parameters alone bound the saving by. Reports hold what was measured against it. None: nothing."""
        return None

    def wire_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """Payload bytes that a worker sends in a step, by the method's formula; the mean where workers differ.

        Where they depend on the gradients' values this is an expectation, and the method notes what its formula gives
        for the values it met, as ``formula_bytes``, in each step.

        Args:
            shapes: shapes of the model's parameters (fp32).
            step: which step; None for the steady state's mean.
        """
        raise NotImplementedError(f"{type(self).__module__} states no byte formula")

    def busiest_bytes(self, shapes: Shapes, world_size: int, step: int | None = None) -> float:
        """Payload bytes that cross the busiest direction of any worker's link in a step."""
        return self.wire_bytes(shapes, world_size, step)

    def calls(self, shapes: Shapes, world_size: int) -> list[Call]:
        """The collectives of a bucket of parameters of these shapes in the steady state: what ``wire_bytes`` adds up.

        Of a method that synchronises once in several steps, those of a step in which it does.
        """
        payload_bytes = self.wire_bytes(shapes, world_size) / AllReduce(1.0).sent_bytes(world_size)
        return [AllReduce(payload_bytes * self.agrees_every)]

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Look whether the method can work with this optimizer, before anything starts. It is left as it is.

        Raises:
            ValueError: it cannot.
        """

    def check_workers(self, world_size: int) -> None:
        """Look whether so many workers can use the method, before anything starts.

        Raises:
            ValueError: they cannot.
        """

    @property
    def may_join(self) -> bool:
        """Whether uneven inputs will do, ``ddp.join()``: a rank that has joined sends zeros, but makes no step."""
        return all("dice" in name for name in self.remembers)  # hooks throw dice whether a step is made or not

    def check(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        """Look whether the method can run so; changes nothing.

        Raises:
            ValueError: it cannot.
        """
        self.check_optimizer(optimizer)
        self.check_workers(dist.get_world_size(ddp.process_group))

    def bind(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        """Take a place on this rank, after ``check``; collective where a method needs it to be."""
        self.is_bound = True
        self.model = ddp.module
        self.optimizer = optimizer
        self.process_group: dist.ProcessGroup = ddp.process_group
        self.world_size = dist.get_world_size(ddp.process_group)
        self.own_rank = dist.get_rank(ddp.process_group)
        self.names = {weight: plain_name(name) for name, weight in self.model.named_parameters()}
        self.ignored = {w for name, w in self.model.named_parameters() if name in ddp.parameters_to_ignore}
        """What DDP was told to leave to each rank."""

    @property
    def trained(self) -> list[torch.Tensor]:
        """The parameters that are not frozen now, and whose gradients DDP synchronises; in its order."""
        return [weight for weight in self.names if weight.requires_grad and weight not in self.ignored]

    @property
    def moving(self) -> list[torch.Tensor]:
        """The parameters that a step of the optimizer moves: ``trained``, and frozen ones whose gradients are left."""
        return [weight for weight in self.names if is_moving(weight) and weight not in self.ignored]

    @property
    def device(self) -> torch.device:
        """The model's."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def leave(self) -> None:
        """Give back what ``bind`` took; the training goes on without the method."""

    def flush(self) -> None:
        """Bring all ranks to the same parameters; collective. See ``agrees_every``."""

    @contextmanager
    def common(self) -> Iterator[None]:
        """Put what all ranks hold in common in the model's place, for an evaluation: what it is there for anyway."""
        yield

    def commit(self, without: Set[torch.Tensor]) -> None:
        """The optimizer has made its step: what hooks wrote of it is remembered.

        Args:
            without: parameters that it left as they were. What was sent of them was applied nowhere.
        """
        names = {self.names[weight] for weight in without}
        for memory in self._memories():
            if isinstance(memory, Drafts):
                memory.commit(names)
            else:
                memory.commit(without)

    def discard(self) -> None:
        """The optimizer skipped its step: what hooks wrote of it is forgotten."""
        self._name_suspects()
        for memory in self._memories():
            memory.discard()

    def _memories(self) -> list[BucketMemory | Drafts[Any]]:
        kept = (getattr(self, name) for name in self.remembers)
        return [memory for memory in kept if isinstance(memory, (BucketMemory, Drafts))]

    def agree(self, found: torch.Tensor) -> None:
        """Make a scaler's finding, 0 if all gradients are finite, the same on all ranks; reduced gradients are so."""

    def begin_step(self) -> None:
        """Called on every rank before each step that the optimizer makes, and before its closure, if it has one."""

    def end_step(self) -> None:
        """Called on every rank after each step that the optimizer made."""
        self._name_suspects()
        self.step += 1

    def look_for_non_finite(self, bucket: dist.GradBucket) -> torch.Tensor:
        """Note ``non_finite_gradient``, with the parameter's place in the model, for each of this rank's own.

        It raises nothing: with loss scaling an overflow is an everyday event. One sum tells whether to look closer. A
        GPU is not waited for: what it finds is noted at the end of the step.

        Returns:
            A scalar (bool) on the bucket's device: whether anything in it is not finite.
        """
        gradient = bucket.buffer()
        found = ~wide_sum(gradient).isfinite()
        if gradient.is_cuda:
            self._suspects.append((bucket.parameters(), are_finite(bucket.gradients())))
        elif found and (found := ~gradient.isfinite().all()):
            self._suspects.append((bucket.parameters(), are_finite(bucket.gradients())))
            self._name_suspects()
        return found

    def _name_suspects(self) -> None:
        if self._suspects:
            self.read(self._suspects[0][1][:0])

    def read(self, flags: torch.Tensor) -> list[bool]:
        """What flags (n,), bool, on the model's device are. A GPU is waited for once a step: suspects are named too."""
        members = [id(weight) for of_bucket, _ in self._suspects for weight in of_bucket]
        known: list[bool] = torch.cat([flags, *(of_bucket for _, of_bucket in self._suspects)]).tolist()
        self._suspects.clear()
        asked, finite = known[: len(flags)], known[len(flags) :]
        if not all(finite):
            places = {id(weight): place for place, weight in enumerate(self.model.parameters())}
            for member, is_finite in zip(members, finite, strict=True):
                if not is_finite:
                    self.note("non_finite_gradient", places[member])
        return asked

    def note(self, kind: str, value: float) -> None:
        """Tell whoever watches the training of something that happened in this step, such as a decision."""
        self._notes.append((kind, value))

    def take_notes(self) -> list[tuple[str, float]]:
        """What was noted since this was last asked."""
        notes, self._notes = list(self._notes), deque(maxlen=MOST_KEPT)
        return notes

    def held_bytes(self) -> int:
        """Memory that the method holds between steps on this rank, beyond model and optimizer: residuals, masks."""
        weights = {weight.data_ptr() for weight in self.model.parameters()}
        held = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in tensors_within(
                {k: v for k, v in vars(self).items() if k not in ("model", "optimizer", "names", "ignored")},
                seen={id(self)},
                module=type(self).__module__,
            )
            if tensor.data_ptr() not in weights
        }
        return sum(held.values())


def tensors_within(thing: Any, seen: set[int] | None = None, module: str = __name__) -> Iterator[torch.Tensor]:
    """All tensors that are reached from a thing by containers, and by objects of this package or of a method's module.

    Args:
        seen: ids of the objects that were looked into already; they may hold each other.
        module: name of the method's module, which may be a plug-in's.
    """
    seen = set() if seen is None else seen
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for pair in thing.items():
            yield from tensors_within(pair, seen, module)
    elif isinstance(thing, (list, tuple, set)):
        for item in thing:
            yield from tensors_within(item, seen, module)
    elif _is_of(module, thing) and hasattr(thing, "__dict__") and id(thing) not in seen:
        seen.add(id(thing))
        yield from tensors_within(vars(thing), seen, module)


def _is_of(module: str, thing: Any) -> bool:
    """Whether a thing's class is of that module or of this package."""
    return type(thing).__module__ == module or type(thing).__module__.startswith(f"{__package__}.")


def is_moving(weight: torch.Tensor) -> bool:
    """Whether an optimizer that holds the weight moves it."""
    return weight.requires_grad or weight.grad is not None


def wide_sum(gradient: torch.Tensor) -> torch.Tensor:
    """The sum of all entries, a scalar in at least fp32: in fp16 it would overflow where no entry does."""
    return gradient.sum(dtype=torch.promote_types(gradient.dtype, torch.float32))


def are_finite(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each gradient, whether it is finite (m,), bool."""
    return torch.stack([wide_sum(gradient) for gradient in gradients]).isfinite()


def numel(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes)


def ring_all_reduce_bytes(payload_bytes: float, world_size: int) -> float:
    """Bytes each rank sends when a ring all-reduces ``payload_bytes``."""
    return AllReduce(payload_bytes).sent_bytes(world_size)


def all_gather_bytes(payload_bytes: float, world_size: int) -> float:
    """Bytes each rank sends when ``payload_bytes`` of each rank reach all others."""
    return AllGather(payload_bytes).sent_bytes(world_size)
