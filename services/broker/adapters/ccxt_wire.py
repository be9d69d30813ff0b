"""What ccxt says, in our words: its errors, order ids, steps, orders and trades. No requests are made here.

What would surprise you: ccxt reads numbers as floats unless it is told otherwise, and where orjson is installed even
its own option for that is without effect. `client` makes every number text, from the exchange's JSON on.
"""

import base64
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal
from uuid import UUID

from services.broker.domain.checks import TradeRules
from services.broker.domain.orders import ZERO, Cumulative, Execution, Report, VenueKind
from services.broker.ports import VenueRefused
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown

Form = Literal["canonical", "hex", "short"]
Raw = Mapping[str, Any]

DECIMAL_PLACES: Final = 2
SIGNIFICANT_DIGITS: Final = 3
"""ccxt's names of how an exchange states its steps; the third, TICK_SIZE, is the step itself."""

_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 3600.0
_LONGEST_REASON: Final = 200
_SHORT: Final = 26  # a UUID in base32 without padding
_UUID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_KINDS: Final[Mapping[str, VenueKind]] = {
    "open": "accepted",
    "canceling": "accepted",
    "canceled": "canceled",
    "expired": "expired",
    "rejected": "rejected",
}


class Declined(Exception):
    """The exchange, or ccxt before anything was sent, says no to this very request."""


class Missing(Exception):
    """The exchange knows no such order."""


def client(exchange_id: str, config: Mapping[str, Any]) -> Any:
    """Return ccxt's client of an exchange; nothing is asked yet. Raises VenueRefused for one that ccxt lacks."""
    import ccxt.async_support  # noqa: PLC0415 - 90 MB and seconds, only where an account of such a venue is opened
    import ccxt.pro  # noqa: PLC0415 - same

    logging.getLogger("ccxt").setLevel(logging.WARNING)  # at debug it writes requests, keys included
    if exchange_id not in ccxt.pro.exchanges and exchange_id not in ccxt.exchanges:
        raise VenueRefused(f"ccxt knows no exchange {exchange_id[:32]}")
    kind: Any = getattr(ccxt.pro, exchange_id, None) or getattr(ccxt.async_support, exchange_id)
    exact = type(kind.__name__, (kind,), {"on_json_response": _parsed})
    return exact({"number": str, "enableRateLimit": True, **config})


def _parsed(_client: Any, body: str) -> Any:
    return json.loads(body, parse_float=str, parse_int=str)


# Errors


def translated(error: Exception, *, exchange: Any, write: bool) -> Exception:
    """Return the port's error for one of ccxt's, without its text: that has addresses with keys and signatures.

    Declined and Missing are for the caller to make reports of; of a write, what is not known is OutcomeUnknown.
    """
    import ccxt  # noqa: PLC0415 - the client is there, so this is

    name = f"{exchange.id}: {type(error).__name__}"
    sure: Exception = Transient(name)
    open_: Exception = OutcomeUnknown(name) if write else sure
    match error:
        case ccxt.RateLimitExceeded() | ccxt.DDoSProtection():
            return Busy(name, retry_after_s=_retry_after(exchange))
        case ccxt.AuthenticationError():
            return VenueRefused(name)
        case ccxt.OrderNotFound():
            return Missing(name)
        case ccxt.InvalidNonce():
            return sure  # our clock is off, and nothing was done
        case (
            ccxt.InvalidOrder()
            | ccxt.InsufficientFunds()
            | ccxt.BadRequest()
            | ccxt.OperationRejected()
            | ccxt.ArgumentsRequired()
            | ccxt.NotSupported()
        ) if write and not isinstance(error, ccxt.DuplicateOrderId):
            return Declined(reason(error, exchange))
        case _:
            return open_


def reason(error: Exception, exchange: Any) -> str:
    """Return what an exchange says against an order, cut, and without our credentials and any address."""
    text = re.sub(r"\S*://\S*", "(address)", str(error))
    for name in exchange.requiredCredentials:
        value = getattr(exchange, name, None)
        if isinstance(value, str) and value:
            text = text.replace(value, "(secret)")
    return text.removeprefix(f"{exchange.id} ")[:_LONGEST_REASON]


def _retry_after(exchange: Any) -> float:
    headers: Mapping[str, str] = exchange.last_response_headers or {}
    told = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return min(float(told), _LONGEST_WAIT_S) if told.isascii() and told.isdigit() else _WAIT_S


# Ids


def written(order_id: UUID, form: Form) -> str:
    """Return an order's id as the exchange can carry it."""
    match form:
        case "canonical":
            return str(order_id)
        case "hex":
            return order_id.hex
        case "short":
            return base64.b32encode(order_id.bytes).decode().rstrip("=").lower()


def read_id(text: str | None) -> UUID | None:
    """Return the order id that a client order id stands for; None for one that is not ours."""
    name = (text or "").removeprefix("t-").lower()  # gate.io puts t- before every one
    if _UUID.fullmatch(name):
        return UUID(name)
    if len(name) == _SHORT and name.isascii() and name.isalnum():
        try:
            return UUID(bytes=base64.b32decode(name.upper() + "======"))
        except ValueError:
            return None
    return None


# Numbers


def number(value: Any) -> Decimal | None:
    """Return the number of a text. Raises Transient for a float: it is not what the exchange sent."""
    if value is None or value == "":
        return None
    if not isinstance(value, str | int):
        raise Transient("ccxt gave a number that is not text", type=type(value).__name__)
    try:
        return Decimal(value)
    except InvalidOperation:
        raise Transient("the exchange sent a number that is none") from None


def time_of(milliseconds: Any) -> datetime | None:
    """Return the moment of ccxt's timestamp."""
    return None if milliseconds is None else datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def rules_of(market: Raw, precision_mode: int) -> TradeRules | None:
    """Return the steps of a market; None where the exchange does not state them."""
    precision: Raw = market.get("precision") or {}
    price, amount = number(precision.get("price")), number(precision.get("amount"))
    if price is None or amount is None:
        return None
    ticks = ((ZERO, price),)
    step = amount
    if precision_mode == DECIMAL_PLACES:
        ticks, step = ((ZERO, _place(int(price))),), _place(int(amount))
    elif precision_mode == SIGNIFICANT_DIGITS:
        # So many digits, wherever the point is: a tick for each power of ten. Of amounts, of the least one.
        ticks = tuple((_place(-power), _place(int(price) - 1 - power)) for power in range(-18, 13))
        step = _place(int(amount))
    least = number(((market.get("limits") or {}).get("amount") or {}).get("min")) or step
    return TradeRules(ticks, step, max(least, step), tradable=market.get("active") is not False)


def _place(digits: int) -> Decimal:
    return Decimal((0, (1,), -digits))


# Orders and trades


def execution(trade: Raw, market: Raw) -> Execution:
    """Return a trade. Fees in a third coin are not here: `other_fees` has them."""
    quantity, price, at = number(trade.get("amount")), number(trade.get("price")), time_of(trade.get("timestamp"))
    if quantity is None or price is None or at is None or not trade.get("id"):
        raise Transient("the exchange told of a trade without its id, quantity, price or time")
    fees = fees_of(trade)
    fee, fee_quantity = fees.get(market["quote"], ZERO), fees.get(market["base"], ZERO)
    return Execution(str(trade["id"]), quantity, price, at, fee=fee, fee_quantity=fee_quantity)


def fees_of(trade: Raw) -> dict[str, Decimal]:
    """Return what a trade cost beside its price, by currency; below zero for a rebate."""
    found: dict[str, Decimal] = {}
    told: Sequence[Raw] = trade.get("fees") or ([trade["fee"]] if trade.get("fee") else [])
    for fee in told:
        cost = number(fee.get("cost"))
        if cost and fee.get("currency"):
            found[fee["currency"]] = found.get(fee["currency"], ZERO) + cost
    return found


def report(order: Raw, trades: Iterable[Raw], market: Raw) -> Report:
    """Return how an order stands. Raises Transient where the exchange does not say."""
    executions = tuple(sorted((execution(one, market) for one in trades), key=lambda one: (one.at, one.id)))
    return Report(_kind(order), executions, _cumulative(order, executions), venue_order_id=str(order["id"]))


def answered(order: Raw, market: Raw) -> Report:
    """Return what the answer to a submit says: an end other than a fill is left to the stream or a look-up."""
    known = [one for one in order.get("trades") or () if one.get("id") and one.get("timestamp")]
    executions = tuple(execution(one, market) for one in known)
    status = order.get("status")
    kind: VenueKind = "accepted"
    if status == "rejected":
        kind = "rejected"
    elif status == "closed" and _kind(order) == "filled":
        kind = "filled"
    told = "the exchange rejected it" if kind == "rejected" else None
    return Report(kind, executions, _cumulative(order, executions), venue_order_id=str(order["id"]), reason=told)


def _kind(order: Raw) -> VenueKind:
    status = order.get("status")
    filled, amount = number(order.get("filled")), number(order.get("amount"))
    if status == "closed":  # some say so of what was canceled after a part was filled, too
        return "canceled" if amount and filled is not None and filled < amount else "filled"
    if status in _KINDS:
        return _KINDS[status]
    if amount and filled is not None and filled >= amount:
        return "filled"
    raise Transient("the exchange does not say how the order stands")


def _cumulative(order: Raw, executions: Sequence[Execution]) -> tuple[Cumulative, ...]:
    filled, average = number(order.get("filled")), number(order.get("average"))
    at = max((one.at for one in executions), default=None)
    at = at or time_of(order.get("lastTradeTimestamp") or order.get("lastUpdateTimestamp") or order.get("timestamp"))
    if not filled or at is None:
        return ()
    if average is None:
        cost = number(order.get("cost"))
        if cost is None:
            return ()
        average = cost / filled
    return (Cumulative(filled, average, at),)
