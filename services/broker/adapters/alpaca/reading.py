"""What Alpaca's JSON says of orders, instruments and what is held, in the brokerage's words.

What would surprise you: an order that comes without a client order id is given a UUID for one by Alpaca. So ours go out
under `openbell-` and their id: only that tells whose an order is. A multi-leg order's own quantity and average price
are those of one unit's net; what is filled of each leg stands in `legs`, which are orders with ids of their own.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from services.broker.domain.checks import TradeRules
from services.broker.domain.instruments import Crypto, Equity, Instrument, Option, instrument
from services.broker.domain.orders import ZERO, Cumulative, Leg, Order, Report, Side, Terms, VenueKind
from services.broker.ports import Balance, Held
from shared.errors import Transient

Json = Any

_OURS: Final = "openbell-"
_KINDS: Final[Mapping[str, VenueKind]] = {
    "filled": "filled",
    "canceled": "canceled",
    "expired": "expired",
    "replaced": "replaced",
    "rejected": "rejected",
}
"""The statuses that are over; every other one works, the unknown ones too."""
_QUOTES: Final = ("USDT", "USDC", "USD", "BTC")
_CENT: Final = Decimal("0.01")
_EQUITY_TICKS: Final = ((ZERO, Decimal("0.0001")), (Decimal(1), _CENT))  # Rule 612 of Regulation NMS
_SMALLEST: Final = Decimal("1e-9")
_ODD: Final = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


@contextmanager
def readable(what: str) -> Generator[None]:
    """Let what cannot be read be Transient: nothing of it was taken, and the venue may mend it."""
    try:
        yield
    except _ODD as error:
        raise Transient(f"Alpaca's {what} cannot be read: {type(error).__name__}") from error


def number(value: Json) -> Decimal:
    """Return a number that came as text or as JSON's; nothing is zero."""
    if value is None or value == "":
        return ZERO
    if isinstance(value, float | bool):
        raise TypeError("a float is not exact")
    return Decimal(value)


def moment(text: str) -> datetime:
    """Return an aware time; Alpaca's nanoseconds are cut to microseconds."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time without a zone")
    return found.astimezone(UTC)


def our_name(order_id: UUID) -> str:
    """Return the client order id under which an order of ours goes out."""
    return f"{_OURS}{order_id}"


def our_id(told: Json) -> UUID | None:
    """Return the id of an order that we have placed; None for somebody else's."""
    name = str(told["client_order_id"])
    try:
        return UUID(name.removeprefix(_OURS)) if name.startswith(_OURS) else None
    except ValueError:
        return None


def kind_of(told: Json) -> VenueKind:
    """Return what an order's status is."""
    return _KINDS.get(told["status"], "accepted")


def legs_of(told: Json) -> Sequence[Json]:
    """Return a multi-leg order's legs, any other order as its only leg. A leg that is told alone has a symbol."""
    if told.get("order_class") != "mleg" or told.get("symbol"):
        return (told,)
    return told.get("legs") or ()


def any_filled(told: Json) -> bool:
    """Return whether some of it is filled."""
    return any(number(one.get("filled_qty")) > 0 for one in (told, *legs_of(told)))


def totals(told: Json, places: Mapping[str, int]) -> tuple[Cumulative, ...]:
    """Return what is filled of each leg in all. `places` says which leg of ours each of the venue's order ids is."""
    return tuple(
        Cumulative(
            number(one["filled_qty"]),
            number(one["filled_avg_price"]),
            moment(one["updated_at"]),
            places[one["id"]],
        )
        for one in legs_of(told)
        if number(one["filled_qty"]) > 0
    )


def snapshot(told: Json, places: Mapping[str, int]) -> Report:
    """Return how an order stands, without its executions."""
    return Report(kind_of(told), cumulative=totals(told, places), venue_order_id=told["id"])


def instrument_of(symbol: str, asset_class: str | None) -> Instrument:
    """Return what is traded. Positions and fees write a pair without its slash. Raises BadInstrument."""
    if asset_class != "crypto" or "/" in symbol:
        return instrument(symbol)
    quote = next((one for one in _QUOTES if symbol.endswith(one) and symbol != one), None)
    return instrument(symbol if quote is None else f"{symbol.removesuffix(quote)}/{quote}")


def held_of(told: Json) -> Held:
    """Return a position. Alpaca writes a short one below zero and says `short` besides."""
    quantity = abs(number(told["qty"]))
    signed = -quantity if told["side"] == "short" else quantity
    return Held(instrument_of(told["symbol"], told.get("asset_class")), signed)


def balance_of(told: Json) -> Balance:
    """Return the money."""
    return Balance(number(told["cash"]), number(told["buying_power"]), told["currency"])


def path_of_rules(of: Instrument) -> str:
    """Return where an instrument is described."""
    match of:
        case Option():
            return f"/v2/options/contracts/{of.key}"
        case Equity():
            return f"/v2/assets/{of.key}"
        case Crypto():
            return f"/v2/assets/{of.base}%2F{of.quote}"


def rules_of(of: Instrument, told: Json) -> TradeRules:
    """Return an instrument's steps."""
    tradable = told["tradable"] is True and told["status"] == "active"
    match of:
        case Option():
            return TradeRules(_option_ticks(penny=told.get("ppind")), Decimal(1), Decimal(1), tradable)
        case Equity():
            step = _SMALLEST if told.get("fractionable") is True else Decimal(1)
            return TradeRules(_EQUITY_TICKS, step, step, tradable)
        case Crypto():
            tick = number(told.get("price_increment")) or _SMALLEST
            step = number(told.get("min_trade_increment")) or _SMALLEST
            return TradeRules(((ZERO, tick),), step, number(told.get("min_order_size")) or step, tradable)


def _option_ticks(*, penny: bool | None) -> tuple[tuple[Decimal, Decimal], ...]:
    """Return the ticks inside and outside of the penny programme; where it is not told, the venue decides."""
    if penny is None:
        return ((ZERO, _CENT),)
    below, above = (_CENT, Decimal("0.05")) if penny else (Decimal("0.05"), Decimal("0.10"))
    return ((ZERO, below), (Decimal(3), above))


# Orders of ours, in Alpaca's words


def body_of(order: Order) -> dict[str, Json]:
    """Return the request that places an order."""
    terms = order.terms
    body: dict[str, Json] = {
        "client_order_id": our_name(order.id),
        "type": terms.type,
        "time_in_force": terms.time_in_force,
        **_prices(terms),
    }
    if terms.quantity is not None:
        body["qty"] = text(terms.quantity)
    if terms.notional is not None:
        body["notional"] = text(terms.notional)
    if terms.extended_hours:
        body["extended_hours"] = True
    leg, *others = terms.legs
    if others:
        legs = [{"symbol": leg.instrument.key, "ratio_qty": str(leg.ratio), **_way(leg)} for leg in (leg, *others)]
        return {**body, "order_class": "mleg", "legs": legs}
    return {**body, "order_class": "simple", "symbol": leg.instrument.key, **_way(leg)}


def change_of(order: Order, by: Order) -> dict[str, Json] | None:
    """Return the request that replaces an order; None where Alpaca cannot make that of it."""
    old, new = order.terms, by.terms
    kept = ("legs", "type", "order_class", "extended_hours", "notional")
    if new.quantity is None or any(getattr(old, name) != getattr(new, name) for name in kept):
        return None
    if (old.trail_amount is None) != (new.trail_amount is None):
        return None
    trail = new.trail_amount if new.trail_percent is None else new.trail_percent
    return {
        "client_order_id": our_name(by.id),
        "qty": text(new.quantity),
        "time_in_force": new.time_in_force,
        **{name: value for name, value in _prices(new).items() if not name.startswith("trail")},
        **({} if trail is None else {"trail": text(trail)}),
    }


def text(value: Decimal) -> str:
    """Return a number as Alpaca reads it, without an exponent."""
    return f"{value:f}"


def _way(leg: Leg) -> dict[str, Json]:
    """Return which way a leg goes. A pair of coins has no intent at Alpaca."""
    if leg.opens is None or isinstance(leg.instrument, Crypto):
        return {"side": leg.side}
    return {"side": leg.side, "position_intent": f"{leg.side}_to_{'open' if leg.opens else 'close'}"}


def _prices(terms: Terms) -> dict[str, Json]:
    named = {
        "limit_price": terms.limit,
        "stop_price": terms.stop,
        "trail_price": terms.trail_amount,
        "trail_percent": terms.trail_percent,
    }
    return {name: text(price) for name, price in named.items() if price is not None}


def side_of(told: Json) -> Side:
    """Return which way an order goes."""
    side: Side = "sell" if told["side"] == "sell" else "buy"
    return side
