"""Orders and what is told of them, for the tests of the brokerage's rules."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st

from services.broker.domain.instruments import Instrument, instrument
from services.broker.domain.lifecycle import Step, apply
from services.broker.domain.orders import (
    OURS,
    VENUES,
    Cumulative,
    Execution,
    Fact,
    Leg,
    Order,
    Report,
    Side,
    Terms,
)

T0 = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
ACCOUNT = UUID(int=7)
UNHURRIED = settings(deadline=None)  # a loaded machine is no finding
AAPL = instrument("AAPL")
CALL = instrument("AAPL261218C00200000")


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def terms(quantity: Any = 100, side: Side = "buy", of: Instrument = AAPL, **changes: Any) -> Terms:
    given: dict[str, Any] = {
        "legs": (Leg(of, side),),
        "type": "limit",
        "time_in_force": "day",
        "quantity": None if quantity is None else Decimal(quantity),
        "limit": Decimal(10),
    }
    return Terms(**{**given, **changes})


def order(quantity: Any = 100, side: Side = "buy", **changes: Any) -> Order:
    return Order(UUID(int=1), ACCOUNT, "paper", terms(quantity, side), **changes)


def execution(name: str, quantity: Any, price: Any = 10, after_s: float = 0, leg: int = 0) -> Execution:
    return Execution(name, Decimal(quantity), Decimal(price), at(after_s), leg)


def total(quantity: Any, average: Any = 10, after_s: float = 0, leg: int = 0) -> Cumulative:
    return Cumulative(Decimal(quantity), Decimal(average), at(after_s), leg)


def fill(name: str, quantity: Any, price: Any = 10) -> Report:
    return Report("fill", (execution(name, quantity, price),))


def run(start: Order, *told: Report | str) -> Step:
    """Apply one after the other; the step has all facts."""
    facts: list[Fact] = []
    for one in told:
        step = apply(start, one if isinstance(one, Report) else Report(one))  # pyright: ignore[reportArgumentType]
        start = step.order
        facts += step.facts
    return Step(start, tuple(facts))


quantities = st.integers(1, 60).map(Decimal) | st.decimals("0.001", "60", places=3)
prices = st.decimals("0.01", "500", places=2)


@st.composite
def executions(draw: st.DrawFn, most: int = 6, legs: int = 1) -> list[Execution]:
    made = draw(st.lists(st.tuples(quantities, prices, st.integers(0, legs - 1)), max_size=most))
    return [Execution(f"x{n}", quantity, price, at(n), leg) for n, (quantity, price, leg) in enumerate(made)]


def totals_of(done: list[Execution]) -> list[Cumulative]:
    """What a venue that tells of cumulative quantities says after each execution."""
    found: list[Cumulative] = []
    for leg in {one.leg for one in done}:
        quantity = value = Decimal(0)
        for one in (one for one in done if one.leg == leg):
            quantity += one.quantity
            value += one.quantity * one.price
            found.append(Cumulative(quantity, value / quantity, one.at, leg))
    return found


@st.composite
def any_report(draw: st.DrawFn) -> Report:
    """Anything that may be told of an order of one leg, true or not."""
    done = draw(executions(most=2))
    names = draw(st.permutations(["a", "b", "c"]))
    named = tuple(
        Execution(name, one.quantity, one.price, one.at, busted=draw(st.sampled_from([False, False, True])))
        for name, one in zip(names, done, strict=False)
    )
    sums = tuple(draw(st.lists(st.builds(Cumulative, quantities, prices, st.just(T0)), max_size=1)))
    kind = draw(st.sampled_from((*OURS, *VENUES)))
    ours = kind in OURS or kind == "not_found"
    return Report(kind, () if ours else named, () if ours else sums, looked_up=draw(st.booleans()))
