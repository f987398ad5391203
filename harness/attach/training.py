"""A script's training, attached to: its model under DDP, its optimizer, a method between them, and its end."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.attach.findings import Buckets, Ended, Findings, Model, Note, Refused, Sources, own_findings
from harness.attach.optimizers import holds_parameters_of, optimizers_of
from harness.attach.orders import Orders
from harness.attach.sources import own_sources
from harness.attach.watch import Codec, CudaClock, HostClock, StepWatch
from harness.errors import MeasurementError, PacbenchError
from harness.plain import visible
from harness.plugins import short
from harness.start import OwnPackages

if TYPE_CHECKING:
    from baselines import MethodState
    from harness.attach.look import Look

REGROUPED_BY_STEP = 4
"""Steps after which DDP has grouped its gradients anew, if it does: it does so once, early, and tells a step later."""

SHARDED = ("FullyShardedDataParallel", "FSDPModule")
"""Classes of models that FSDP, the first and the second, has sharded."""


def attach(orders: Orders) -> None:
    """Watch for what is to be attached to. Torch has been imported."""
    findings = own_findings()
    assert findings is not None
    training = Training(orders, findings)
    if orders.needs_model:
        _wrap_forward(training)
        _wrap_backward(training)
    register_optimizer_step_post_hook(training.after_step)
    atexit.register(training.end)  # of all that torch's users register, the last to run


def _wrap_forward(training: Training) -> None:
    plain_forward = DistributedDataParallel.forward

    @functools.wraps(plain_forward)
    def forward(ddp: DistributedDataParallel, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():  # an evaluation
            return plain_forward(ddp, *inputs, **options)
        training.begin_forward(ddp, inputs or tuple(options.values()))
        output = plain_forward(ddp, *inputs, **options)
        training.end_forward()
        return output

    DistributedDataParallel.forward = forward  # type: ignore[method-assign, assignment]


def _wrap_backward(training: Training) -> None:
    """``Tensor.backward`` calls this, too."""
    plain_backward = torch.autograd.backward

    @functools.wraps(plain_backward)
    def backward(tensors: Any, *arguments: Any, **options: Any) -> None:
        end = training.begin_backward(tensors)
        try:
            plain_backward(tensors, *arguments, **options)
        finally:  # a script may go on without it, such as after a batch that did not fit
            if end is not None:
                end()

    torch.autograd.backward = backward


class Training:
    """What is known of the script's training so far."""

    def __init__(self, orders: Orders, findings: Findings) -> None:
        self._orders = orders
        self._findings = findings
        self._began_s = time.time()
        self._ddp: DistributedDataParallel | None = None
        self._optimizer: ReferenceType[Optimizer] | None = None
        """The one whose steps count; None where those of any that trains the model do."""
        self._trains_the_model: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()
        self._state: MethodState | None = None
        self._watch: StepWatch | None = None
        self._look: Look | None = None
        self._is_looking = False
        """Whether what goes forward and backward now is no part of the script."""
        self._in_backward = False
        self._told_buckets = False
        self._is_over = False

    def begin_forward(self, ddp: DistributedDataParallel, inputs: Sequence[Any]) -> None:
        """DDP begins a forward pass that a backward pass may follow."""
        if self._is_looking:
            return
        if self._ddp is None:
            self._adopt(ddp)
        elif self._ddp is not ddp:
            self._refuse(
                "a second model trains under DistributedDataParallel; only scripts with one can be attached to"
            )
        if self._orders.method is not None and self._state is None:
            self._register(ddp)
        if self._look is not None:
            self._look.begin_forward(inputs)
        if self._watch is not None:
            self._watch.begin_forward()

    def end_forward(self) -> None:
        """It has returned."""
        if self._watch is not None:
            self._watch.end_forward()

    def begin_backward(self, tensors: Any) -> Callable[[], None] | None:
        """``backward`` is called; what is to be called when it has returned, if anything."""
        if (
            self._in_backward or self._ddp is None or self._is_looking
        ):  # checkpointed activations go backward within a backward pass
            return None
        if self._orders.method is not None and self._state is None:
            self._refuse(
                f"no optimizer holds parameters of the model ({type(self._ddp.module).__name__}), "
                "and a method needs one before the first backward pass"
            )
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        root = next((tensor for tensor in roots if isinstance(tensor, Tensor) and tensor.requires_grad), None)
        if root is None or self._watch is None or not self._watch.is_in_step:
            return None
        end_watched = self._watch.begin_backward(root)
        if self._look is not None:
            self._look.begin_backward()
        self._in_backward = True

        def end() -> None:
            self._in_backward = False
            end_watched()

        return end

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Some optimizer has made a step, and the method, if it was this one's, has ended it."""
        if self._is_looking:
            return
        if self._is_over:
            self._leave()
        if not self._counts(optimizer):
            return
        self._findings.steps += 1
        if self._watch is not None:
            self._watch.end_step(self._codec())
            self._tell_model(optimizer)
            self._tell_notes()
        if self._look is not None:
            self._look.end_step()
        if self._findings.steps == self._orders.steps:
            self._is_over = True
            if self._look is not None:
                self._look_closer(self._look, optimizer)
            self._leave()

    def end(self) -> None:
        """The process ends."""
        if self._watch is not None:
            self._tell_buckets()
            self._watch.close()
        if self._findings.steps:
            self._findings.write(Sources(own_sources(self._began_s)), Ended(self._findings.steps))
        if self._is_over:
            if dist.is_initialized():
                dist.destroy_process_group()
            if not hasattr(sys, "last_value"):  # which an exception leaves that nobody caught
                _end_now()

    def _adopt(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp
        if self._orders.observe:
            clock = CudaClock if next(ddp.parameters()).is_cuda else HostClock
            self._watch = StepWatch(clock, self._findings.write, self._orders.interface)
            if self._orders.look is not None:
                _own_baselines()
                from harness.attach.look import Look

                self._look = Look(ddp, clock, _synchronised(ddp))

    def _look_closer(self, look: Look, optimizer: Optimizer) -> None:
        """Tell what was seen, and what methods make of it."""
        from harness.attach.look import distribution, look_at_methods

        assert self._ddp is not None
        self._is_looking = True
        self._findings.write(look.take())
        copies = look.copies()
        self._findings.write(distribution(copies))
        weights = list(_synchronised(self._ddp).values())
        for found in look_at_methods(self._ddp, optimizer, look.clock, self._orders, copies, weights):
            self._findings.write(found)
        self._is_looking = False

    def _register(self, ddp: DistributedDataParallel) -> None:
        """Put the method between model and optimizer, unless the script makes its optimizer later."""
        assert self._orders.method is not None
        found = optimizers_of(ddp.module)
        if not found:
            return
        if len(found) > 1:
            names = ", ".join(sorted(type(optimizer).__name__ for optimizer in found))
            self._refuse(f"{len(found)} optimizers hold parameters of the model ({names}); a method works with one")
        if dist.get_world_size(ddp.process_group) == 1:
            self._refuse("the process group has one rank only, so that there is nothing to synchronise")
        try:
            self._state = _registered(ddp, found[0], self._orders)
        except (ImportError, PacbenchError, RuntimeError, ValueError) as error:
            self._refuse(f"{short(self._orders.method)}: {error}")
        self._optimizer = ref(found[0])

    def _counts(self, optimizer: Optimizer) -> bool:
        """Whether its step is one of those that are counted."""
        if not self._orders.needs_model:
            if self._optimizer is None or self._optimizer() is None:
                self._optimizer = ref(optimizer)
            return self._optimizer() is optimizer
        if not self._is_of_the_model(optimizer):
            return False
        if self._optimizer is None:  # a method has none yet, or is not asked for
            return self._watch is not None and self._watch.is_in_step
        if self._optimizer() is not optimizer:
            self._refuse(f"another optimizer ({type(optimizer).__name__}) makes steps; a method stays with one")
        return True

    def _is_of_the_model(self, optimizer: Optimizer) -> bool:
        if self._ddp is None:
            self._refuse(f"{_how_else_it_trains()}; only a model under DistributedDataParallel can be attached to")
        known = self._trains_the_model.get(optimizer)
        if known is None:
            known = self._trains_the_model[optimizer] = holds_parameters_of(optimizer, self._ddp.module)
        return known

    def _codec(self) -> Codec | None:
        """On a GPU the host's clock does not tell what a codec takes."""
        if self._state is None or self._ddp is None or next(self._ddp.parameters()).is_cuda:
            return None
        lap = self._state.stopwatch.lap()
        return Codec(lap.encode_s, lap.decode_s)

    def _tell_model(self, optimizer: Optimizer) -> None:
        assert self._ddp is not None
        if self._findings.steps == 1:
            device = next(self._ddp.parameters()).device.type
            shapes = [(name, list(weight.shape)) for name, weight in _synchronised(self._ddp).items()]
            world_size = dist.get_world_size(self._ddp.process_group)
            self._findings.write(Model(world_size, device, type(optimizer).__name__, shapes))
        if self._findings.steps == REGROUPED_BY_STEP:
            self._tell_buckets()

    def _tell_buckets(self) -> None:
        if self._ddp is not None and self._findings.steps and not self._told_buckets:
            self._told_buckets = True
            self._findings.write(_buckets(self._ddp))

    def _tell_notes(self) -> None:
        notes = self._state.take_notes() if self._state is not None else []
        if notes:
            self._findings.write(*(Note(self._findings.steps - 1, name, float(value)) for name, value in notes))

    def _leave(self) -> NoReturn:
        """End the script as its own ``sys.exit()`` would: by an exception, so that its clean-up runs."""
        raise SystemExit(0)

    def _refuse(self, reason: str) -> NoReturn:
        line = visible(" ".join(reason.split()))
        self._findings.write(Refused(line))
        print(f"pacbench: {line}", file=sys.stderr, flush=True)
        raise SystemExit(MeasurementError.exit_code)


def _end_now() -> NoReturn:
    """End this process, whose clean-up has run, without taking the interpreter apart.

    A thread of Gloo may still be letting go of the last step's Python objects. While the interpreter ends it cannot,
    and the process would be aborted: "terminate called without an active exception" (pytorch/pytorch, issue 190489).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # the script may have closed it, or nobody reads it
            stream.flush()
    os._exit(0)


def _registered(ddp: DistributedDataParallel, optimizer: Optimizer, orders: Orders) -> MethodState:
    """The state of a method that synchronises this model from now on.

    Raises:
        ValueError: the method cannot run so.
        PacbenchError: it is a plug-in that this Python cannot import, or whose code is not what was checked.
        RuntimeError: the script has a communication hook of its own.
    """
    baselines = _own_baselines()
    from harness import methods  # needs pydantic and ours

    assert orders.method is not None
    if methods.digest(orders.method) != orders.method_code:
        raise MeasurementError("its code here is not that which was checked when the command was given")
    with methods.blamed(orders.method):
        state: MethodState = methods.method_named(orders.method).State(**orders.params)
    baselines.register(ddp, state, optimizer=optimizer)
    return state


def _own_baselines() -> ModuleType:
    """Ours, also where the script could import something else by that name, unless it has done so.

    Raises:
        MeasurementError: it has.
    """
    sys.meta_path.insert(0, OwnPackages)
    try:
        import baselines
    finally:
        sys.meta_path.remove(OwnPackages)
    ours = Path(__file__).parents[2] / "baselines" / "__init__.py"
    if Path(baselines.__file__ or "").resolve() != ours.resolve():
        raise MeasurementError(f"the script has a package named baselines of its own ({baselines.__path__[0]})")
    return baselines


def _synchronised(ddp: DistributedDataParallel) -> dict[str, Tensor]:
    """The parameters that DDP synchronises, in the order in which it numbers them."""
    ignored = ddp.parameters_to_ignore
    return {
        name: weight for name, weight in ddp.module.named_parameters() if weight.requires_grad and name not in ignored
    }


def _buckets(ddp: DistributedDataParallel) -> Buckets:
    """As DDP's own statistics tell (torch/csrc/distributed/c10d/logger.cpp): lists of numbers, as text."""
    told = ddp._get_ddp_logging_data()
    sizes = told.get("rebuilt_bucket_sizes") or told.get("bucket_sizes", "")
    names = list(_synchronised(ddp))
    members = told.get("rebuilt_per_bucket_param_indices")
    return Buckets(
        sizes_bytes=[int(size) for size in sizes.split(",")],
        parameters=[[names[int(place)] for place in bucket.split()] for bucket in members.split(",")]
        if members
        else None,
    )


def _how_else_it_trains() -> str:
    """What a script does that makes steps, but none of a model under DDP."""
    for thing in gc.get_objects():
        with suppress(ReferenceError):
            if any(base.__name__ in SHARDED for base in type(thing).__mro__):
                return "the script trains with FSDP"
    return "the script trains a model that is not under DistributedDataParallel"
