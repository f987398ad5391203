"""What a choice is worth: hours and money."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from baselines._calls import AllGather, AllReduce, Call, ReduceScatter, Shift
from harness.analysis.pilot.forecast import UTILISATIONS, Forecast, upgrades
from harness.plan.expected import state_of
from harness.record.pilot import Outcome, Pilot

SECONDS_AN_HOUR = 3600.0
BYTES_A_GB = 1e9

CURRENCY_SIGN = "Sc"
"""Category of signs such as $ and € in Unicode."""

RATE_FACTORS = (1, 2, 4, 10, 25, 100)
"""Steps up of the links."""

INTEGRATION_HOURS = (4, 16, 40)
"""What putting a method into a training, and watching it, may take somebody."""


@dataclass(frozen=True)
class Price:
    """Money for a unit of something: ``2.49/h``, ``$0.09/GB``, ``2.49EUR/h``."""

    amount: float
    currency: str

    def __str__(self) -> str:
        return money(self.amount, self.currency)


def money(amount: float, currency: str) -> str:
    """``$1,234.50``, or ``1,234.50 EUR``; a sign goes before, a word behind."""
    digits = f"{amount:,.2f}"
    if not currency:
        return digits
    return f"{currency}{digits}" if len(currency) == 1 else f"{digits} {currency}"


def parse_price(text: str, unit: str) -> Price:
    """A price for a unit, in any currency.

    Raises:
        ValueError: it is none.
    """
    number = r"(?P<amount>\d+(?:\.\d+)?)"
    sign = r"[^\W\d_]{1,5}|[^\w\s]"
    found = re.fullmatch(rf"(?P<before>{sign})?\s*{number}\s*(?P<behind>{sign})?/{unit}", text.strip())
    currency = (found["before"] or "") + (found["behind"] or "") if found else ""
    is_known = not currency or currency.isalpha() or unicodedata.category(currency[0]) == CURRENCY_SIGN
    if found is None or not is_known or (found["before"] and found["behind"]):
        raise ValueError(f"an amount for a unit, such as 2.49/{unit} or $2.49/{unit}")
    return Price(float(found["amount"]), currency)


class Cost(NamedTuple):
    """What a whole training takes and costs with a method."""

    label: str
    hours: float | None
    """None: the method did not come to dense's loss."""
    worker_money: float | None
    egress_money: float | None

    @property
    def money(self) -> float | None:
        """Both; None without a price."""
        parts = [part for part in (self.worker_money, self.egress_money) if part is not None]
        return sum(parts) if parts else None


def cost(
    outcome: Outcome,
    pilot: Pilot,
    dense_steps: int,
    price: Price | None,
    egress: Price | None,
    pace_s: float | None = None,
) -> Cost:
    """What a training that takes dense so many steps takes with a method, if it goes on as in the pilot.

    Args:
        pace_s: from step to step; None: as in the pilot's trainings.
    """
    if outcome.steps_factor is None:
        return Cost(outcome.label, None, None, None)
    steps, workers = dense_steps * outcome.steps_factor, pilot.network.workers
    hours = steps * (pace_s or outcome.pace_s) / SECONDS_AN_HOUR
    sent_bytes = _sent_bytes(pilot, outcome)
    return Cost(
        outcome.label,
        hours,
        None if price is None else hours * workers * price.amount,
        None if egress is None or sent_bytes is None else steps * workers * sent_bytes / BYTES_A_GB * egress.amount,
    )


def _sent_bytes(pilot: Pilot, outcome: Outcome) -> float | None:
    """Payload that leaves over a link in a step, counted; by formula where nobody could count."""
    own = next((each for each in pilot.trainings if each.label == outcome.label), None)
    of_a_rank = None if own is None else own.sent_bytes or own.formula_bytes
    return None if of_a_rank is None else of_a_rank * _times_what_a_rank_sends(pilot, outcome)


def _times_what_a_rank_sends(pilot: Pilot, outcome: Outcome) -> float:
    """How many times that leaves over the link which its ranks share."""
    if pilot.per_node == 1:
        return 1.0
    ranks = pilot.network.workers * pilot.per_node
    calls = state_of(outcome.method).calls(pilot.job.profile.shapes, ranks)
    sent_bytes = sum(call.sent_bytes(ranks) for call in calls)
    leaving_bytes = sum(call.sent_bytes(ranks) * _times_leaving(call, ranks, pilot.per_node) for call in calls)
    return leaving_bytes / sent_bytes if sent_bytes else 1.0


def _times_leaving(call: Call, ranks: int, per_node: int) -> float:
    """The same of one collective. A ring leaves each node once; what is for all others is for some on the node itself.

    A tree is taken to be like the latter: which of its messages leave a node hangs on ranks' numbers.
    """
    if isinstance(call, (AllReduce, AllGather, ReduceScatter)):
        return 1.0
    if isinstance(call, Shift):
        return min(per_node, call.distance % ranks, -call.distance % ranks)
    return per_node * (ranks - per_node) / (ranks - 1)


class FasterLink(NamedTuple):
    """What links of a rate would be worth."""

    rate_bps: float
    costs: list[Cost]


def faster_links(
    pilot: Pilot, outcomes: Sequence[Outcome], dense_steps: int, price: Price | None, egress: Price | None
) -> list[FasterLink]:
    """Hours and money with these methods on links of several times the rate.

    What a method's own steps took on the pilot's links beyond what was predicted, they take on faster ones too: it is
    none of the links'. Where they took less, predicted times are scaled. None are told of links that change: there it
    may be theirs.
    """
    if pilot.network.at_mean is not pilot.network:
        return []
    forecast = Forecast(pilot.job, pilot.network, pilot.per_node)

    def pace_s(outcome: Outcome, predicted_s: float) -> float:
        off_s = outcome.pace_s - outcome.predicted_pace_s
        return predicted_s + off_s if off_s > 0 else predicted_s * outcome.pace_s / outcome.predicted_pace_s

    return [
        FasterLink(
            step.rate_bps,
            [cost(each, pilot, dense_steps, price, egress, pace_s(each, step.pace_s[each.label])) for each in outcomes],
        )
        for step in upgrades(forecast, [each.method for each in outcomes], RATE_FACTORS)
    ]


class PayBack(NamedTuple):
    """Whether an integration of so many hours pays with one whole training."""

    hours: int
    most_an_hour: float
    """What an hour of integration may cost, that one training pays for it."""


def pay_back(saved: float | None) -> list[PayBack]:
    """For several lengths of integration; none where nothing is saved.

    Args:
        saved: money in one whole training.
    """
    return [PayBack(hours, saved / hours) for hours in INTEGRATION_HOURS] if saved and saved > 0 else []


class Needed(NamedTuple):
    """The rates of links at which devices compute for such shares of a step."""

    label: str
    rates_bps: tuple[float | None, ...]
    """In the order of ``UTILISATIONS``; None: at no rate."""


@dataclass(frozen=True)
class Worth:
    """All of it, of a whole training."""

    dense_steps: int
    """That it takes the all-reduce in 32 bits."""
    price: Price | None
    egress: Price | None
    costs: list[Cost]
    """By method, in the order of the outcomes."""
    faster: list[FasterLink]
    """Of the plain all-reduces and the recommended method."""
    needed: list[Needed]
    """Likewise."""
    saved: float | None
    """Money that the recommended method saves over the cheaper plain one; None where it cannot be told. Where one of
    these missed dense's loss with a seed, nobody knows which is the cheaper."""
    pay_back: list[PayBack]

    @property
    def currency(self) -> str:
        """Of all money."""
        given = self.price or self.egress
        return given.currency if given else ""


def worth(pilot: Pilot, dense_steps: int, price: Price | None, egress: Price | None) -> Worth:
    """What the pilot's methods cost in a whole training, and what else would be worth something."""
    labels = dict.fromkeys((pilot.plain_label, pilot.sixteen_label, pilot.verdict.label))
    chosen = [outcome for label in labels if (outcome := pilot.outcome(label))]
    costs = [cost(outcome, pilot, dense_steps, price, egress) for outcome in pilot.outcomes]
    forecast = Forecast(pilot.job, pilot.network, pilot.per_node, pilot.beyond_s)
    saved = _saved(costs, pilot)
    return Worth(
        dense_steps=dense_steps,
        price=price,
        egress=egress,
        costs=costs,
        faster=faster_links(pilot, chosen, dense_steps, price, egress),
        needed=[
            Needed(each.label, tuple(forecast.rate_for(each.method, share) for share in UTILISATIONS))
            for each in chosen
        ],
        saved=saved,
        pay_back=pay_back(saved),
    )


def _saved(costs: Sequence[Cost], pilot: Pilot) -> float | None:
    plain = [each.money for each in costs if each.label in (pilot.plain_label, pilot.sixteen_label)]
    own = next((each.money for each in costs if each.label == pilot.verdict.label), None)
    if own is None or None in plain:
        return None
    return min(each for each in plain if each is not None) - own
