"""What trainings do beside plain steps, each against a training in which the same is done by hand; on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from ranks import SHAPES, Given, Training, flat, gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainings import LR, SETTINGS, Facts, Method, agree, complaint_of, equal, resumed, saved

import baselines
from baselines._memory import BucketMemory, Drafts


def backward(training: Training, *micro_batches: list[torch.Tensor]) -> torch.Tensor:
    """The gradients after the micro-batches of a step, of which the last is synchronised: flat."""
    training.begin_step()
    for each in micro_batches[:-1]:
        with training.ddp.no_sync():
            training.ddp(each).backward()
    training.ddp(micro_batches[-1]).backward()
    return flat([weight.grad for weight in training.weights]).clone()


def accumulated(make: Method) -> Facts:
    one, by_hand = (Training(make(), settings=SETTINGS) for _ in range(2))
    same = True
    for step in range(5):
        batches = [gradients(2 * step + each, dist.get_rank()) for each in range(2)]
        result = backward(one, *batches)
        one.optimizer.step()
        same &= torch.equal(result, by_hand.step([sum(parts) for parts in zip(*batches, strict=True)]))
    return {"the sum is synchronised": same, "weights": torch.equal(flat(one.weights), flat(by_hand.weights))}


def clipped(make: Method) -> Facts:
    one, by_hand = (Training(make(), settings=SETTINGS) for _ in range(2))
    facts = {"what is synchronised": True, "norm": True}
    for step in range(5):
        given = gradients(step, dist.get_rank())
        result = backward(one, given)
        # 0/1 Adam learns of what was moved, and so of how clipping rounds.
        facts["what is synchronised"] &= torch.allclose(result, backward(by_hand, given), atol=1e-5)
        nn.utils.clip_grad_norm_(one.weights, max_norm=0.5)
        for weight in by_hand.weights:
            weight.grad *= min(1.0, 0.5 / float(result.norm()))
        facts["norm"] &= float(flat([weight.grad for weight in one.weights]).norm()) <= 0.5 + 1e-5
        one.optimizer.step()
        by_hand.optimizer.step()
    facts["weights"] = torch.allclose(flat(one.weights), flat(by_hand.weights), atol=1e-5)
    one.handle.flush()
    return {**facts, "ranks": agree(flat(one.weights))}


def clipped_under_a_scaler(make: Method) -> Facts:
    """The scale is a power of two, so that nothing is rounded otherwise than without one."""
    by_hand, one = (Training(make(), settings=SETTINGS) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        first, last = (gradients(2 * step + each, dist.get_rank()) for each in range(2))
        backward(by_hand, first, last)
        nn.utils.clip_grad_norm_(by_hand.weights, max_norm=0.5)
        by_hand.optimizer.step()
        one.begin_step()
        with one.ddp.no_sync():
            scaler.scale(one.ddp(first)).backward()
        scaler.scale(one.ddp(last)).backward()
        scaler.unscale_(one.optimizer)
        nn.utils.clip_grad_norm_(one.weights, max_norm=0.5)
        scaler.step(one.optimizer)
        scaler.update()
    return {"weights": torch.equal(flat(one.weights), flat(by_hand.weights))}


def beside_a_scaled_model(make: Method) -> Facts:
    """Another model of the process has a scaler, whose scale changes; that is nothing to this one, which has none."""
    one, by_hand = (Training(make(), settings=SETTINGS) for _ in range(2))
    other = Training(baselines.get("topk").State(), settings=SETTINGS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        given = gradients(step, dist.get_rank())
        one.begin_step()
        loss = one.ddp(given)
        other.begin_step()
        scaler.scale(other.ddp(given)).backward()
        scaler.step(other.optimizer)
        scaler.update(1024.0 if step < 2 else 16.0)
        loss.backward()
        one.optimizer.step()
        by_hand.step(given)
    scales = [each.handle.state.loss_scale.factor for each in (one, other)]
    return {
        "scales": scales[0] is None and float(scales[1]) == 16.0,
        "weights": torch.equal(flat(one.weights), flat(by_hand.weights)),
    }


FROZEN = (1, 4)


def frozen(make: Method) -> Facts:
    whole = Given(*SHAPES)
    moving = [place for place in range(len(SHAPES)) if place not in FROZEN]
    rest = Given(*(SHAPES[place] for place in moving))
    for place, weight in zip(moving, rest.weights, strict=True):
        weight.data.copy_(whole.weights[place])
    for place in FROZEN:
        whole.weights[place].requires_grad_(False)
    frozen_before = flat([whole.weights[place] for place in FROZEN]).clone()
    one, by_hand = (Training(make(), model=model, settings=SETTINGS) for model in (whole, rest))
    for step in range(5):
        given = gradients(step, dist.get_rank())
        one.step(given)
        by_hand.step([given[place] for place in moving])
    return {
        "frozen": torch.equal(frozen_before, flat([whole.weights[place] for place in FROZEN])),
        "others": torch.equal(flat([whole.weights[place] for place in moving]), flat(by_hand.weights)),
    }


def ignored(make: Method) -> Facts:
    """A weight that DDP is told to ignore is each rank's own, and of no concern to the others."""
    whole, rest = Given(*SHAPES), Given(*SHAPES[:-1])
    rest.load_state_dict({name: value for name, value in whole.state_dict().items() if name in rest.state_dict()})
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, [f"weights.{len(SHAPES) - 1}"])
    one, by_hand = (Training(make(), model=model, settings=LR) for model in (whole, rest))
    own = one.weights[-1].detach().clone()
    for step in range(5):
        given = gradients(step, dist.get_rank())
        one.step(given)
        by_hand.step(given[:-1])
        own.sub_(given[-1], alpha=LR["lr"])
    for each in (one, by_hand):
        each.handle.flush()
    return {
        "is its own": torch.allclose(one.weights[-1], own, atol=1e-6),
        "others": torch.equal(flat(one.weights[:-1]), flat(by_hand.weights)),
    }


def frozen_later(make: Method) -> Facts:
    training = Training(make(), settings=LR, find_unused_parameters=True)
    training.step(gradients(0, dist.get_rank()))
    training.handle.flush()
    weight = training.weights[4].requires_grad_(False)
    weight.grad, before = None, weight.detach().clone()
    for step in range(1, 5):
        training.step(gradients(step, dist.get_rank()))
    training.handle.flush()
    return {"stays": torch.equal(weight[weight != 0], before[weight != 0]), "ranks": agree(flat(training.weights))}


def frozen_between_meetings(make: Method) -> Facts:
    """What each rank has made of a weight by itself is averaged once more."""
    ddp_options = {"find_unused_parameters": True}
    one, flushed = (Training(make(), settings=SETTINGS, **ddp_options) for _ in range(2))
    for step in range(5):
        for each in (one, flushed):
            each.step(gradients(step, dist.get_rank()))
    for each in (one, flushed):
        each.weights[4].requires_grad_(False).grad = None
    flushed.handle.flush()
    other = resumed(saved(one), make(), **ddp_options)
    other.weights[4].requires_grad_(False)
    for step in range(5, 9):
        for each in (one, other):
            each.step(gradients(step, dist.get_rank()))
    facts = {"after a flush": agree(flat(flushed.weights)), "after a meeting": agree(flat([one.weights[4]]))}
    if not one.handle.state.parameters.get("adaptive"):  # resumed, it explores anew
        facts["resumed"] = torch.equal(flat(one.weights), flat(other.weights))
    return facts


def freezes(*places: int) -> Callable[..., torch.optim.Optimizer]:
    """Makes an optimizer, and freezes weights by that: after DDP is made, before the method comes."""

    def freezing(weights: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
        for place in places:
            weights[place].requires_grad_(False)
        return torch.optim.SGD(weights, **settings)

    return freezing


def unfrozen_later(make: Method) -> Facts:
    """A weight was frozen when the method came, but not when DDP was made."""
    ddp_options = {"find_unused_parameters": True}
    one = Training(make(), optimizer=freezes(4), settings=SETTINGS, **ddp_options)
    one.step(gradients(0, dist.get_rank()))
    before = one.weights[4].requires_grad_(True).detach().clone()
    for step in range(1, 4):
        one.step(gradients(step, dist.get_rank()))
    other = resumed(saved(one), make(), **ddp_options)
    for step in range(4, 7):
        for each in (one, other):
            each.step(gradients(step, dist.get_rank()))
    facts = {"moves": not torch.equal(one.weights[4], before)}
    if not one.handle.state.parameters.get("adaptive"):
        facts["resumed"] = torch.equal(flat(one.weights), flat(other.weights))
    one.handle.flush()
    return {**facts, "ranks": agree(flat(one.weights))}


def in_groups(make: Method) -> Facts:
    def alike(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": weights[:2]}, {"params": weights[2:]}]

    def the_first_stays(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": weights[:2], "lr": 0.0}, {"params": weights[2:]}]

    one, of_groups, half = (Training(make(), settings=SETTINGS, groups=g) for g in (None, alike, the_first_stays))
    before = flat(half.weights[:2]).clone()
    for step in range(5):
        for each in (one, of_groups, half):
            each.step(gradients(step, dist.get_rank()))
    half.handle.flush()
    after = flat(half.weights[:2])
    # A code of INT8 may stand for no change and a small one together.
    off = 0.01 if half.handle.state.parameters.get("values") == "int8" else 0.0
    return {
        "alike": torch.equal(flat(one.weights), flat(of_groups.weights)),
        "a rate of 0": torch.allclose(after[after != 0], before[after != 0], rtol=0, atol=off),  # pruning sets to 0
        "ranks": agree(flat(half.weights)),
    }


class Unused(Given):
    """Makes no use of one of its weights."""

    def forward(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        pairs = [pair for place, pair in enumerate(zip(self.weights, gradients, strict=True)) if place != 3]
        return sum((weight * gradient).sum() for weight, gradient in pairs)


def unused(make: Method) -> Facts:
    models = (Unused(*SHAPES), Given(*SHAPES))
    one, by_hand = (Training(make(), model=model, settings=LR, find_unused_parameters=True) for model in models)
    for step in range(5):
        given = gradients(step, dist.get_rank())
        given[3].zero_()
        one.step(given)
        backward(by_hand, given)
        by_hand.weights[3].grad = None  # a rotated zero, say, comes back as a small number
        by_hand.optimizer.step()
    return {"none": one.weights[3].grad is None, "weights": torch.equal(flat(one.weights), flat(by_hand.weights))}


def by_a_closure(make: Method) -> Facts:
    """The optimizer's step makes the gradients."""
    one, named, by_hand = (Training(make(), settings=SETTINGS) for _ in range(3))
    for step in range(5):
        given = gradients(step, dist.get_rank())
        by_hand.step(given)
        one.optimizer.step(lambda given=given: backward(one, given).sum())
        named.optimizer.step(closure=lambda given=given: backward(named, given).sum())
    expected = flat(by_hand.weights)
    return {f"weights {place}": torch.equal(flat(each.weights), expected) for place, each in enumerate((one, named))}


class Sometimes(Given):
    """Makes no use of the weights whose gradient is None."""

    def forward(self, gradients: list[torch.Tensor | None]) -> torch.Tensor:
        pairs = zip(self.weights, gradients, strict=True)
        return sum((weight * gradient).sum() for weight, gradient in pairs if gradient is not None)


LEFT_OUT = (2, 3)


def unused_for_once(make: Method, *frozen: int) -> Facts:
    """What waits of a weight, to be added to its next gradient, is still there after a step that has none of it."""
    facts: Facts = {}
    options = {"optimizer": freezes(*frozen), "settings": LR, "find_unused_parameters": True}
    for to_none in (True, False):
        one = Training(make(), model=Sometimes(*SHAPES), **options)
        for step in range(4):
            one.step(gradients(step, dist.get_rank()))
        before, given = waiting(one), list[Any](gradients(4, dist.get_rank()))
        for place in LEFT_OUT:
            given[place] = None
        synchronise(one, given, to_none)
        one.optimizer.step()
        facts[f"set to none {to_none}: the same waits"] = equal(waiting(one), before)
        given = list[Any](gradients(5, dist.get_rank()))
        for place in LEFT_OUT if dist.get_rank() == 0 else ():
            given[place] = None
        synchronise(one, given, to_none)
        are_there = [one.weights[place].grad is not None for place in LEFT_OUT]
        facts[f"set to none {to_none}: all ranks make a step by one's gradient"] = all(are_there)
        one.optimizer.step()
        one.handle.flush()
        facts[f"set to none {to_none}: ranks"] = agree(flat(one.weights))
    return facts


def unused_for_once_beside_a_frozen_one(make: Method) -> Facts:
    return unused_for_once(make, 0)


def unused_in_the_first_bucket(make: Method) -> Facts:
    """DDP leaves a bucket out that no rank uses; a step that is skipped then leaves no trace either."""
    options = {"find_unused_parameters": True, "skip_all_reduce_unused_params": True, "bucket_cap_mb": 1 / 2**20}
    one = Training(make(), model=Sometimes(*SHAPES), settings=LR, **options)
    given = list[Any](gradients(0, dist.get_rank()))
    one.step(given)
    (first,) = one.layouts[0][0]
    given[first] = None
    rounds, before = one.handle.state.rounds, one.handle.state.step
    for _ in range(2):
        synchronise(one, given, True)
    one.optimizer.step()
    return {
        "it is left out": (first,) not in one.layouts[-1] and bool(one.layouts[-1]),
        "rounds": one.handle.state.rounds == rounds + 2,
        "steps": one.handle.state.step == before + 1,
    }


def synchronise(training: Training, given: list[Any], to_none: bool) -> None:
    training.begin_step(to_none)
    training.ddp(given).backward()


def waiting(training: Training) -> dict[str, Any]:
    """What is remembered of the weights that are left out, from one step to the next."""
    state, left_out = training.handle.state, [f"weights.{place}" for place in LEFT_OUT]
    parts = {name: getattr(state, name) for name in state.remembers}
    return {
        f"{name} of {weight}": value.clone()
        for name, part in parts.items()
        if isinstance(part, (BucketMemory, Drafts))
        for weight, value in part.state_dict(state.names).items()
        if weight in left_out
    }


def in_a_static_graph(make: Method) -> Facts:
    """DDP regroups after two backward passes, not after one."""
    one = Training(make(), settings=SETTINGS, static_graph=True)
    by_hand = Training(make(), settings=SETTINGS, find_unused_parameters=True, bucket_cap_mb=25)  # never regrouped
    results: list[bool] = []
    for step in range(5):
        if step == 2:
            by_hand = resumed(saved(by_hand), make())  # regrouped at once
        given = gradients(step, dist.get_rank())
        results.append(torch.equal(one.step(given), by_hand.step(given)))
    facts = {"regrouped": [len(layout) for layout in one.layouts] == [1, 1, 3, 3, 3]}
    if not one.handle.state.parameters.get("adaptive"):  # resumed, it explores anew
        facts |= {"results": all(results), "weights": torch.equal(flat(one.weights), flat(by_hand.weights))}
    one.handle.flush()
    return {**facts, "ranks": agree(flat(one.weights))}


AT_LEAST_FOR_THE_COMPILER_MB = 1.0
"""torch.compile refuses DDPs with smaller buckets."""


def compiled(where: str, methods: dict[str, Method]) -> Facts:
    """Trains a compiled DDP, or a DDP of a compiled model, by one method after the other: compiling takes seconds."""

    def ddp_of(model: nn.Module) -> DistributedDataParallel:
        # Compiled gradients get ready in another order, by which DDP would regroup them. It does not where it looks
        # for unused parameters.
        cap_mb = AT_LEAST_FOR_THE_COMPILER_MB
        return DistributedDataParallel(model, bucket_cap_mb=cap_mb, find_unused_parameters=True)

    def compile_(module: Any) -> Any:
        return torch.compile(module, backend="aot_eager")

    plain, model = Given(*SHAPES), Given(*SHAPES)
    by_hand, one = ddp_of(plain), compile_(ddp_of(model)) if where == "outside" else ddp_of(compile_(model))
    start = {name: weight.clone() for name, weight in plain.state_dict().items()}
    facts: Facts = {}
    for name, make in methods.items():
        for weights, ddp in ((plain, by_hand), (model, one)):
            weights.load_state_dict(start)
            optimizer, state = torch.optim.SGD(ddp.parameters(), **SETTINGS), make()
            with baselines.register(ddp, state, optimizer=optimizer):
                for step in range(3):
                    optimizer.zero_grad()
                    ddp(gradients(step, dist.get_rank())).backward()
                    optimizer.step()
                facts[f"{name}: names"] = list(state.state_dict()["model"]) == list(start)
        facts[f"{name}: weights"] = torch.equal(flat(list(plain.parameters())), flat(list(model.parameters())))
    return facts


class Words(nn.Module):
    """Rows of a sparse embedding, and a layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rows, self.layer = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.layer(self.rows(words)).square().sum()


def of_sparse_rows(make: Method) -> Facts:
    state, ddp = make(), DistributedDataParallel(Words())
    model, optimizer = ddp.module, torch.optim.SGD(ddp.parameters(), **LR)
    if not state.takes_sparse_embeddings:
        answer = complaint_of(lambda: baselines.register(ddp, state, optimizer=optimizer))
        return {
            f"refused in one line, not: {answer}": "sparse embedding (rows.weight)" in answer and "\n" not in answer
        }
    baselines.register(ddp, state, optimizer=optimizer)
    start, as_expected = flat(list(model.layer.parameters())).clone(), True
    for step in range(4):
        words = torch.tensor([step, 5, 6 + dist.get_rank()])
        (own,) = torch.autograd.grad(model(words), [model.rows.weight])
        expected = own.to_dense()
        is_dense = state.name == "local_sgd" and step < state.warmup_steps
        if state.agrees_every == 1 or is_dense:
            dist.all_reduce(expected)
            expected /= dist.get_world_size()
        before = model.rows.weight.detach().clone()
        optimizer.zero_grad()
        ddp(words).backward()
        as_expected &= torch.allclose(model.rows.weight.grad.to_dense(), expected, atol=1e-6)
        optimizer.step()
        moved = torch.allclose(model.rows.weight, before - LR["lr"] * expected, atol=1e-6)
        is_together = state.is_streaming or (step + 1) % state.agrees_every == 0 < state.agrees_every - 1
        as_expected &= moved or is_together
    state.flush()
    return {
        "rows": as_expected,
        "the layer moves": not torch.equal(start, flat(list(model.layer.parameters()))),
        "ranks": agree(flat(list(model.parameters()))),
    }


def of_sparse_rows_beside_a_frozen_weight(make: Method) -> Facts:
    """It is frozen when the method comes, but was not when DDP was made, which looks for what is not used."""
    state, ddp = make(), DistributedDataParallel(Words(), find_unused_parameters=True)
    if not state.takes_sparse_embeddings:
        return {}
    frozen = ddp.module.layer.bias.requires_grad_(False)
    optimizer, before = torch.optim.SGD(ddp.parameters(), **LR), frozen.clone()
    baselines.register(ddp, state, optimizer=optimizer)
    for _ in range(3):
        ddp(torch.tensor([1, 5, 6 + dist.get_rank()])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    state.flush()
    return {"stays": torch.equal(frozen, before), "ranks": agree(flat(list(ddp.module.parameters())))}


def of_sparse_rows_after_a_skipped_step(make: Method) -> Facts:
    """Its gradients are set to zero, not to none."""
    state, ddp = make(), DistributedDataParallel(Words())
    if not state.takes_sparse_embeddings:
        return {}
    optimizer = torch.optim.SGD(ddp.parameters(), **LR)
    baselines.register(ddp, state, optimizer=optimizer)
    words = torch.tensor([1, 5, 6 + dist.get_rank()])
    ddp(words).backward()
    optimizer.zero_grad(set_to_none=False)
    answer = complaint_of(lambda: ddp(words).backward())
    optimizer.step()
    state.flush()
    return {answer: answer == "taken", "ranks": agree(flat(list(ddp.module.parameters())))}
