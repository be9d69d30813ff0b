"""Alpaca's account activities: fills one by one, and what moved positions without an order.

An activity's id is its time in New York and, behind `::`, a name; a fill's name is the execution id that the stream
tells, so that both count once. Only fills have a time, all others a date.

What would surprise you: an exercise, and an assignment, are two activities under one and the same id: the contracts
that go (OPEXC, OPASN) and the shares that come (OPTRD), whose price is the market's while its money is at the strike.
A split is two as well: what is removed and what is added. What can be told of no instrument (most fees, dividends,
transfers) and what the domain has no word for (mergers, spin-offs) is left out: the balance and the comparison of
positions tell it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any, Final
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from services.broker.adapters.alpaca.reading import instrument_of, moment, number, side_of
from services.broker.domain.instruments import SHARES_A_CONTRACT, BadInstrument, Instrument
from services.broker.domain.orders import Execution, Fill
from services.broker.domain.positions import Charge, Expiry, PositionFact, Split

Json = Any

OTHERS: Final = "SPLIT,OPEXP,OPEXC,OPASN,OPTRD,OPCSH,FEE,CFEE"
"""What is asked for beside fills."""

_OURS: Final = UUID("5f0e2c52-6b0d-5c2f-9d0f-0a1f6f1a7c11")
"""The names under this are orders that nobody placed: deliveries of options, fees in coins."""
_NEW_YORK: Final = "America/New_York"
_GONE: Final = frozenset({"OPEXP", "OPEXC", "OPASN"})
_log: Final = logging.getLogger(__name__)


def execution_id(activity: Json) -> str:
    """Return the execution that a fill is."""
    return str(activity["id"]).rpartition("::")[2]


def executions_of(fills: Sequence[Json], places: Mapping[str, int]) -> tuple[Execution, ...]:
    """Return the executions among fills of the orders that `places` names, each once."""
    found = {
        (one["order_id"], execution_id(one)): Execution(
            execution_id(one),
            number(one["qty"]),
            number(one["price"]),
            moment(one["transaction_time"]),
            places[one["order_id"]],
        )
        for one in fills
        if one["order_id"] in places
    }
    return tuple(found.values())


def foreign_fill(activity: Json, told: Json) -> Iterator[Fill]:
    """Yield the fill of an order that is not ours; `told` is the order, or the leg of one."""
    try:
        of = instrument_of(activity["symbol"], told.get("asset_class"))
    except BadInstrument:
        _log.warning("a fill of an instrument that cannot be read is left out", extra={"activity": activity["id"]})
        return
    yield Fill(
        id=f"alpaca/{told['id']}/{execution_id(activity)}",
        order_id=_order_id(told["id"]),
        instrument=of,
        side="sell" if str(activity["side"]).startswith("sell") else side_of(activity),
        quantity=number(activity["qty"]),
        price=number(activity["price"]),
        at=moment(activity["transaction_time"]),
    )


def facts_of(activities: Sequence[Json]) -> Iterator[PositionFact]:
    """Yield what activities other than fills did to positions."""
    done = [one for one in activities if one.get("status", "executed") == "executed" and one.get("symbol")]
    splits = sorted((one for one in done if one["activity_type"] == "SPLIT"), key=_of_split)
    for _, halves in groupby(splits, _of_split):
        yield from _split(list(halves))
    for one in done:
        if one["activity_type"] == "SPLIT":
            continue
        try:
            yield from _fact(one)
        except BadInstrument:
            _log.warning("an activity of an instrument that cannot be read is left out", extra={"activity": one["id"]})


def _fact(one: Json) -> Iterator[PositionFact]:
    kind, fact_id = one["activity_type"], f"alpaca/{one['activity_type']}/{one['id']}"
    of = _instrument(one)
    quantity, money, at = number(one.get("qty")), number(one.get("net_amount")), _end(one)
    if kind in _GONE and quantity:
        yield Expiry(fact_id, of, at, abs(quantity))
    elif kind == "OPCSH" and quantity:
        yield Expiry(fact_id, of, at, abs(quantity), abs(money) / (abs(quantity) * SHARES_A_CONTRACT))
    elif kind == "OPTRD" and quantity:
        # A second after the contracts went, so that both have one order.
        price = abs(money) / abs(quantity)
        side = "buy" if quantity > 0 else "sell"
        yield Fill(fact_id, _order_id(fact_id), of, side, abs(quantity), price, at + timedelta(seconds=1))
    elif kind in {"FEE", "CFEE"}:
        yield from _fee(one, fact_id, of, at)


def _fee(one: Json, fact_id: str, of: Instrument, at: datetime) -> Iterator[PositionFact]:
    """Yield a fee; one that is taken in coins is as if these were sold, and paid as the fee."""
    quantity, money = number(one.get("qty")), number(one.get("net_amount"))
    if money:
        yield Charge(fact_id, of, at, -money)
    elif quantity < 0:
        price = number(one["price"])
        yield Fill(f"{fact_id}/coins", _order_id(fact_id), of, "sell", -quantity, price, at)
        yield Charge(fact_id, of, at, -quantity * price)


def _split(halves: Sequence[Json]) -> Iterator[PositionFact]:
    """Yield a split of what is removed and what is added; half of one is left to the comparison of positions."""
    if len(halves) != 2 or not all(number(one["qty"]) for one in halves):  # noqa: PLR2004 - the two halves
        _log.warning("a split without its two halves is left out", extra={"activities": [one["id"] for one in halves]})
        return
    removed, added = sorted(halves, key=lambda one: "REMOVE" not in str(one.get("description")).upper())
    old, new = number(removed["qty"]), number(added["qty"])
    if old * new > 0:
        _log.warning("a split of two like halves is left out", extra={"activities": [one["id"] for one in halves]})
        return
    yield Split(
        id=f"alpaca/SPLIT/{removed['id']}",
        instrument=_instrument(removed),
        at=_start(removed),
        new=abs(new),
        old=abs(old),
        quantity_after=new,
    )


def _of_split(one: Json) -> tuple[str, str]:
    return str(one["symbol"]), str(one["date"])


def _instrument(one: Json) -> Instrument:
    return instrument_of(one["symbol"], "crypto" if one["activity_type"] == "CFEE" else None)


def _start(one: Mapping[str, Json]) -> datetime:
    """Return when a day begins in New York: a split is before all that is traded on its day."""
    return datetime.combine(date.fromisoformat(one["date"][:10]), time(), ZoneInfo(_NEW_YORK)).astimezone(UTC)


def _end(one: Mapping[str, Json]) -> datetime:
    """Return when a day is nearly over there: contracts expire after all that was traded in them."""
    return _start(one) + timedelta(hours=22)


def _order_id(name: str) -> UUID:
    """Return an order id made of the venue's."""
    try:
        return UUID(name)
    except ValueError:
        return uuid5(_OURS, name)
