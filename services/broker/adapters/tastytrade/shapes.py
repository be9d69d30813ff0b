"""tastytrade's orders and instruments, and ours. Pure.

What would surprise you: its symbols are not ours (an option's root is padded to six characters, BRK.B is BRK/B), the
sign of a price is a word beside it, and an order that was replaced is a cancelled one that names another order.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from services.broker.adapters.tastytrade.wire import Json
from services.broker.domain.checks import TradeRules
from services.broker.domain.instruments import BadInstrument, Equity, Instrument, Option, instrument
from services.broker.domain.orders import ZERO, Execution, Kind, Order, OrderType, Report, Terms, TimeInForce
from services.broker.ports import Held
from shared.contracts.symbols import SYMBOL

SOURCE: Final = "openbell"
TYPES: Final[Mapping[OrderType, str]] = {
    "market": "Market",
    "limit": "Limit",
    "stop": "Stop",
    "stop_limit": "Stop Limit",
}
TIMES: Final[Mapping[TimeInForce, str]] = {"day": "Day", "gtc": "GTC", "ioc": "IOC"}
ENDS: Final[Mapping[str, Kind]] = {
    "Filled": "filled",
    "Cancelled": "canceled",
    "Expired": "expired",
    "Rejected": "rejected",
    "Removed": "canceled",
    "Partially Removed": "canceled",
}
"""Statuses after which an order is over; all others work."""

_EXTENDED: Final[Mapping[TimeInForce, str]] = {"day": "Ext", "gtc": "GTC Ext"}
_ROOT: Final = 6

log = logging.getLogger(__name__)


# Instruments


def symbol_of(of: Instrument) -> str:
    """Return how the venue writes an instrument."""
    match of:
        case Option():
            return f"{of.root:<{_ROOT}}{of.key[len(of.root) :]}"
        case Equity():
            return of.symbol.removeprefix("_").replace(".", "/")
        case _:
            return of.key


def kind_of(of: Instrument) -> str:
    """Return the venue's name of a kind of instrument."""
    return "Equity Option" if isinstance(of, Option) else "Equity" if isinstance(of, Equity) else "Cryptocurrency"


def instrument_of(told: Json) -> Instrument | None:
    """Return the instrument of a position, a leg or a transaction; None for what we do not know, as futures."""
    symbol, kind = told.get("symbol"), told.get("instrument-type")
    if not isinstance(symbol, str) or kind not in {"Equity", "Equity Option", "Cryptocurrency"}:
        return None
    try:
        if kind == "Equity":
            return instrument(symbol.replace("/", "."))
        under = str(told.get("underlying-symbol") or "").replace("/", ".")
        of_option = kind == "Equity Option" and SYMBOL.fullmatch(under)
        return instrument(symbol, under if of_option else None)
    except BadInstrument:
        log.warning("tastytrade_symbol_unknown", extra={"symbol": symbol[:32]})
        return None


def held_of(told: Json) -> Held | None:
    """Return what a position holds; None for nothing, and for what we do not know."""
    of, quantity = instrument_of(told), number(told["quantity"])
    if of is None or not quantity:
        return None
    return Held(of, -quantity if told["quantity-direction"] == "Short" else quantity)


def rules_of(told: Json, bands: Sequence[Json]) -> TradeRules:
    """Return an instrument's rules; each band's `threshold` is where it ends, and the last one has none."""
    ticks, start = list[tuple[Decimal, Decimal]](), ZERO
    for band in bands:
        ticks.append((start, number(band["value"])))
        start = number(band.get("threshold"), start)
    tradable = told.get("active") is True and told.get("is-closing-only") is not True
    return TradeRules(tuple(ticks) or ((ZERO, Decimal("0.01")),), Decimal(1), Decimal(1), tradable)


# Orders


def body_of(order: Order, actions: Sequence[str]) -> dict[str, Any]:
    """Return the JSON of a new order; `actions` are those of its legs."""
    terms = order.terms
    legs = [
        {
            "instrument-type": kind_of(leg.instrument),
            "symbol": symbol_of(leg.instrument),
            "quantity": plain((terms.quantity or ZERO) * leg.ratio),
            "action": action,
        }
        for leg, action in zip(terms.legs, actions, strict=True)
    ]
    made = {**conditions_of(order), "legs": legs}
    if any(leg.opens is False for leg in terms.legs):
        # Otherwise the venue turns an order that closes into one that opens when nothing is held any more.
        made["advanced-instructions"] = {"strict-position-effect-validation": True}
    return made


def conditions_of(order: Order) -> dict[str, Any]:
    """Return the JSON of an order without its legs, as a replacement has it."""
    terms = order.terms
    times = _EXTENDED if terms.extended_hours else TIMES
    made: dict[str, Any] = {
        "time-in-force": times[terms.time_in_force],
        "order-type": TYPES[terms.type],
        "source": SOURCE,
        "external-identifier": str(order.id),
    }
    if terms.limit is not None:
        made |= {"price": f"{abs(terms.limit):f}", "price-effect": _effect(terms, terms.limit)}
    if terms.stop is not None:
        made["stop-trigger"] = f"{terms.stop:f}"
    return made


def report_of(told: Json, *, looked_up: bool = False, streamed: bool = False) -> Report:
    """Return what an order's JSON says of it."""
    legs: Sequence[Json] = told["legs"]
    executions = tuple(execution for n, leg in enumerate(legs) for execution in _executions(leg, n))
    kind = _kind(told, executions)
    if streamed and kind == "accepted" and executions:
        kind = "fill"
    return Report(
        kind,
        executions,
        looked_up=looked_up,
        venue_order_id=str(told["id"]),
        reason=told.get("reject-reason") or None,
    )


def id_of(told: Json) -> UUID | None:
    """Return our id of an order; None for one that somebody placed elsewhere."""
    if told.get("source", SOURCE) != SOURCE:
        return None
    try:
        return UUID(str(told.get("external-identifier")))
    except ValueError:
        return None


def is_under(told: Json, order_id: UUID) -> bool:
    """Return whether an order bears our id, whoever is said to have placed it."""
    return told.get("external-identifier") == str(order_id)


def side_of(action: str) -> str:
    """Return `buy` or `sell` of an action such as `Buy to Open`."""
    return "buy" if action.startswith("Buy") else "sell"


def remaining(told: Json) -> list[Decimal]:
    """Return what is left of each leg of an order."""
    return [number(leg["remaining-quantity"]) for leg in told["legs"]]


def is_over(told: Json) -> bool:
    """Return whether an order works no more."""
    return told.get("status") in ENDS or bool(told.get("terminal-at"))


def _executions(leg: Json, index: int) -> Iterator[Execution]:
    fills: Sequence[Json] = leg.get("fills") or []
    for one in fills:
        at = moment(one["filled-at"])
        yield Execution(str(one["fill-id"]), number(one["quantity"]), number(one["fill-price"]), at, index)


def _kind(told: Json, filled: Sequence[Execution]) -> Kind:
    kind = ENDS.get(str(told.get("status")))
    if kind is None:  # a status that came later than this code
        return "canceled" if told.get("terminal-at") else "accepted"
    if kind == "canceled" and told.get("replacing-order-id"):
        return "replaced"
    return "canceled" if kind == "rejected" and filled else kind


def _effect(terms: Terms, limit: Decimal) -> str:
    leg, *others = terms.legs
    paid = limit > 0 if others else leg.side == "buy"
    return "Debit" if paid else "Credit"


# Values


def number(told: Any, otherwise: Decimal = ZERO) -> Decimal:
    """Return a number that came as text, as a whole number or as a Decimal."""
    return otherwise if told is None else Decimal(str(told))


def moment(told: Any) -> datetime:
    """Return a time that came as text over HTTP or in milliseconds by the streamer."""
    if isinstance(told, int):
        return datetime.fromtimestamp(told / 1000, UTC)
    return datetime.fromisoformat(str(told)).astimezone(UTC)


def plain(quantity: Decimal) -> int | str:
    """Return a quantity as the venue takes it: whole ones as numbers."""
    return int(quantity) if quantity == quantity.to_integral_value() else f"{quantity:f}"
