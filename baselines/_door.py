"""The door between a training and a method: who may enter, what a hook is handed, when a step counts, the way out.

Whatever the gradients' dtype and the loss scale are, a hook is handed the gradient itself, in fp32 or fp64, unless its
state asks for what DDP has (``as_given``). A bucket in which this rank's gradient is not finite is handed over as NaN
all through: so it shows on every rank, whatever the method selects, and all ranks' scalers skip the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from baselines._lane import settled
from baselines._loss_scale import unwrapped
from baselines._names import plain_name, sparse_embeddings
from baselines._regroup import Bucket, Regrouping, rounds_of_one_bucket, will_regroup
from baselines._state import UNBOUND, MethodState

Hook = Callable[[Any, Any], Future[torch.Tensor]]


class Place:
    """Where a DDP's hook looks for what to do: DDP takes one hook for good, but methods come and go."""

    def __init__(self) -> None:
        self.handle: Handle | None = None


_places: WeakKeyDictionary[DistributedDataParallel, Place] = WeakKeyDictionary()


class Handle:
    """A method at work in a training. As a context it flushes, unless something was raised, and removes the method."""

    def __init__(
        self,
        ddp: DistributedDataParallel,
        state: MethodState,
        hook: Hook,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], torch.Tensor] | None,
    ) -> None:
        self.state = state
        self._ddp, self._method_hook, self._optimizer = ddp, hook, optimizer
        self._is_open = False
        """Whether gradients were synchronised since the last step."""
        self._watches: list[Any] = []
        self._something_is_left: bool | None = None
        """Whether gradients since the last round were added to others; None where none have come yet."""
        self._synchronises_next = True
        self._regrouping: Regrouping | None = None
        self._is_due = False
        """Whether a forward pass has come whose gradients have not."""
        self._rounds_to_cut = 0
        """Backward passes to come in which DDP's bucket may not be regrouped yet, though the resumed training's was."""
        state.loss = loss
        state.bind(ddp, optimizer)
        try:
            state.take_what_was_loaded()
        except ValueError:
            state.leave()
            raise
        self._synchronised = {*state.trained}
        """The parameters whose gradients DDP synchronises; those that were frozen since it was made, once it has."""
        state.loss_scale.listen(ddp.module.parameters(), optimizer, state.agree)
        self._removable = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            # Not as a decorator, which would import the compiler with this module: seconds, where no worker is made.
            ddp.register_forward_pre_hook(torch.compiler.disable(self._before_forward)),
        ]
        self._place = _places.get(ddp) or _take_place(ddp)
        self._place.handle = self

    def remove(self) -> None:
        """Let the method go: gradients are all-reduced as DDP does it by itself, and another method may come."""
        if self._place.handle is not self:
            return
        self._place.handle = None
        self.state.loss_scale.ignore()
        for each in (*self._removable, *self._watches):
            each.remove()
        self.state.leave()

    def flush(self) -> None:
        """Bring all ranks to the same parameters now; collective. Only local methods let them drift apart."""
        self.state.flush()

    def common(self) -> AbstractContextManager[None]:
        """For an evaluation: within it the model is what all ranks hold in common. Call it on every rank."""
        return self.state.common()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.flush()
        self.remove()

    def synchronise(self, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        """What the method makes of a bucket."""
        state = self.state
        if bucket.index() == 0 or self._is_due:  # DDP may leave out buckets that are unused on all ranks
            self._begin_round()
        members = bucket.parameters()
        if self._ddp.find_unused_parameters:
            self._synchronised.update(members)
        state.stopwatch.bucket_ready(bucket.buffer().numel(), members)
        if (regrouping := self._regrouping) is None:
            return self._synchronise_bucket(bucket)
        if bucket.is_last():
            self._regrouping = None
        return regrouping.synchronise(bucket, self._synchronise_bucket)

    def _synchronise_bucket(self, bucket: Any) -> Future[torch.Tensor]:
        """The same of one that may be a part of DDP's."""
        state = self.state
        if not bucket.buffer().numel():
            return settled(bucket.buffer())
        if bucket.buffer().is_sparse:
            return settled(bucket.buffer()) if state.trains_alone else plain_mean(state.process_group, bucket)
        not_finite = state.look_for_non_finite(bucket)
        if state.as_given:
            return self._method_hook(state, bucket)
        with state.stopwatch("encode"):
            work = self._unscaled(bucket.buffer())
            if not state.shows_non_finite and (work.is_cuda or not_finite):  # a GPU is not waited for
                work.masked_fill_(not_finite, math.nan)
        if work is bucket.buffer() and state.loss_scale.factor is None:
            return self._method_hook(state, bucket)
        return self._give_back(self._method_hook(state, Bucket(work, bucket.parameters(), bucket.is_last())), bucket)

    def _unscaled(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient itself, in at least fp32: in place where it is so wide."""
        work = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        scale = self.state.loss_scale.factor
        return work if scale is None else work.div_(scale.to(work.device))

    def _give_back(self, done: Future[torch.Tensor], bucket: dist.GradBucket) -> Future[torch.Tensor]:
        """The method's result by DDP's scale and dtype, in the bucket."""
        gradient: torch.Tensor = bucket.buffer()
        scale = self.state.loss_scale.factor

        def decode(done: Future[torch.Tensor]) -> torch.Tensor:
            mean = done.value()
            with self.state.stopwatch("decode"):
                return gradient.copy_(mean if scale is None else mean.mul_(scale.to(mean.device)))

        return done.then(decode)

    def _begin_round(self) -> None:
        """A backward pass hands over its first bucket."""
        if self._ddp._join_config.enable and not self.state.may_join:
            raise RuntimeError(
                f"{self.state.name} cannot train on uneven inputs: a rank that has joined makes no step, "
                "but has to; end all ranks' epochs at the same step instead of ddp.join()"
            )
        self._is_due = False
        if self._is_open:  # the optimizer skipped the step before
            self.state.discard()
            self._stop_watching()
        self._is_open = True
        self.state.rounds += 1
        self._rounds_to_cut = max(0, self._rounds_to_cut - 1)

    def _before_step(self, *_: object) -> None:
        self.state.begin_step()

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if (found := getattr(optimizer, "found_inf", None)) is not None and found.item():
            return  # a fused optimizer, which a scaler lets skip the step by itself
        with self.state.stopwatch("end_step"):
            self.state.commit(self._left_alone())
            self.state.end_step()
        self._stop_watching()
        self._is_open = False

    def _left_alone(self) -> set[torch.Tensor]:
        """The parameters that no rank's loss led to. DDP synchronises zeros of them, and gives nobody the result."""
        ddp = self._ddp
        if not ddp.find_unused_parameters:
            return set()
        alone = {weight for weight in self.state.names if weight.grad is None}
        if not (ddp.static_graph or ddp.gradient_as_bucket_view):  # gradients that are there already may be so still
            used: torch.Tensor = ddp.reducer._get_local_used_map()  # by as many ranks, from the backward pass on
            in_order = [weight for weight in self.state.names if weight in self._synchronised]
            if len(used) == len(in_order):
                is_alone = self.state.read(used.eq(0))
                alone |= {weight for weight, unused in zip(in_order, is_alone, strict=True) if unused}
        return alone

    def _before_forward(self, *_: object) -> None:
        """Watch the coming backward pass where something is to be found out in it.

        After a resume: in what order gradients get ready. If the last ones have led to no step: whether that step was
        skipped or is still to come.
        """
        self._is_due = True
        self.state.loss_scale.factor = None  # until a loss that is scaled is led back
        of_one_bucket = rounds_of_one_bucket(self._ddp)
        if self.state.was_resumed:
            self.state.was_resumed = False
            self._rounds_to_cut = of_one_bucket
        was_cut = self.state.rounds >= of_one_bucket
        if self._rounds_to_cut and self._regrouping is None and was_cut and will_regroup(self._ddp):
            self._regrouping = Regrouping(self._ddp)
        if self._is_open and not self.state.accumulates:
            self._watch_what_is_left()

    def _watch_what_is_left(self) -> None:
        """Refuse to add to gradients that are synchronised already.

        Of a step that was skipped none are left: the first gradients after it meet zeros. Later micro-batches of the
        same step add to their own, under ``no_sync()``.
        """
        if self._something_is_left is False:
            self._remove_watches()
            return
        self._synchronises_next = self._ddp.require_backward_grad_sync
        if not self._watches:
            weights = [weight for weight in self._ddp.module.parameters() if weight.requires_grad]
            self._watches = [weight.register_hook(self._look_at(weight)) for weight in weights]

    def _stop_watching(self) -> None:
        self._something_is_left = None
        self._remove_watches()

    def _remove_watches(self) -> None:
        for watch in self._watches:
            watch.remove()
        self._watches.clear()

    def _look_at(self, weight: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def look(_: torch.Tensor) -> None:
            is_left = weight.grad is not None and has_entries(weight.grad)
            if is_left and self._synchronises_next:
                raise RuntimeError(
                    f"{self.state.name} would compress gradients again that are synchronised already: run all "
                    "micro-batches of a step but the last under ddp.no_sync(), or call zero_grad() after a skipped step"
                )
            self._something_is_left = is_left or bool(self._something_is_left)

        return look


def _take_place(ddp: DistributedDataParallel) -> Place:
    """Make DDP's hook look into a place."""
    place, group = Place(), ddp.process_group
    _places[ddp] = place

    def hook(place, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
        # Of DDP it holds the group alone: DDP holds the hook where no garbage collector looks.
        return plain_mean(group, bucket) if place.handle is None else place.handle.synchronise(bucket)

    ddp.register_comm_hook(place, hook)
    return place


def has_entries(gradient: torch.Tensor) -> bool:
    """Whether anything in it is not zero; also of a sparse one."""
    values = gradient._values() if gradient.is_sparse else gradient
    return bool((values != 0).any())


def plain_mean(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """The mean of all ranks' gradients, as DDP takes it by itself; also of sparse ones."""
    gradient = bucket.buffer().div_(dist.get_world_size(group))
    work = dist.all_reduce(gradient, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def checked(
    ddp: Any, optimizer: Any, state: Any, loss: Callable[[], torch.Tensor] | None
) -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    """What is behind a compiled model and a wrapped optimizer. Changes nothing.

    Raises:
        TypeError: this is no DDP, no optimizer, or no state.
        ValueError: they cannot be used together, or not again.
    """
    if not isinstance(state, MethodState):
        raise TypeError(f"register needs a method's State, such as baselines.get('topk').State(), not {kind(state)}")
    ddp = getattr(ddp, "_orig_mod", ddp)  # of torch.compile
    if not isinstance(ddp, DistributedDataParallel):
        raise TypeError(_instead_of_ddp(ddp))
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: register needs the model's torch.optim.Optimizer, not {kind(optimizer)}")
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if held.isdisjoint(map(id, ddp.module.parameters())):
        raise ValueError("optimizer: it holds none of the model's parameters; make it from ddp.parameters()")
    if state.remembers and (others := _trained_by_others(ddp, held)):
        raise ValueError(
            f"optimizer: it lacks {len(others)} of the model's trained parameters, such as {others[0]}; {state.name} "
            "must know when all have made their step: put them into a group of it, or freeze them before DDP is made"
        )
    if state.is_bound:
        raise ValueError(
            f"this state of {state.name} belongs to another training, with what it remembers of it; make a new one: "
            "type(state)(**state.parameters)"
        )
    place = _places.get(ddp)
    if place is not None and place.handle is not None:
        raise ValueError(f"{place.handle.state.name} synchronises this model already; call its handle's remove() first")
    if ddp.mixed_precision is not None:
        raise ValueError(
            "this DDP has a mixed_precision of its own, which synchronises gradients itself; make it without, and "
            "compute under torch.autocast"
        )
    if place is None and ddp._comm_hooks:
        raise ValueError("this DDP has a communication hook already, and takes one only; wrap the model in a new DDP")
    state.check(ddp, optimizer, loss)
    return ddp, optimizer


def _trained_by_others(ddp: DistributedDataParallel, held: set[int]) -> list[str]:
    """Names of the parameters that hooks are handed gradients of, and that are not among those held, by their ids."""
    sparse = sparse_embeddings(ddp.module)
    return [
        plain_name(name)
        for name, weight in ddp.module.named_parameters()
        if weight.requires_grad
        and id(weight) not in held
        and weight not in sparse
        and name not in ddp.parameters_to_ignore
    ]


def of_a_training(hook: Hook) -> Hook:
    """The hook, which refuses states that were never registered: DDP takes any, and some hooks would not miss it."""

    def checking(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
        if not state.is_bound:
            raise ValueError(f"this state of {state.name} is not registered{UNBOUND}")
        return hook(state, bucket)

    return checking


def kind(thing: object) -> str:
    """What a thing is, for a message."""
    return type(thing).__name__


def _instead_of_ddp(model: object) -> str:
    shards = any("fsdp" in each.__module__ for each in type(model).__mro__)
    if shards:
        return f"{kind(model)} shards its parameters, which no method here does; wrap the model in DDP instead of FSDP"
    return f"register needs a model in DDP, not {kind(model)}; wrap it: DistributedDataParallel(model)"
