"""Alpaca's shapes that need no books: instruments, numbers and times as text, what a request may say."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from services.broker.domain.instruments import BadInstrument, Crypto, Option, instrument

Obj = dict[str, Any]
ZERO: Final = Decimal(0)
TIMES: Final = {
    "us_equity": {"day", "gtc", "ioc", "fok", "opg", "cls"},
    "us_option": {"day"},
    "crypto": {"gtc", "ioc"},
}
FIELDS: Final = frozenset(
    [
        "client_order_id",
        "symbol",
        "qty",
        "notional",
        "side",
        "type",
        "time_in_force",
        "limit_price",
        "stop_price",
        "trail_price",
        "trail_percent",
        "extended_hours",
        "order_class",
        "position_intent",
        "legs",
    ]
)
CHANGES: Final = frozenset(["client_order_id", "qty", "time_in_force", "limit_price", "stop_price", "trail"])
NEEDED: Final = {
    "limit": {"limit_price"},
    "stop": {"stop_price"},
    "stop_limit": {"limit_price", "stop_price"},
    "market": set[str](),
}


def leg_prices(legs: list[Obj], net: Decimal) -> list[Decimal]:
    """Return prices of legs whose net for one unit is what was asked for: the first leg takes what is left."""
    signs = [(1 if leg["side"] == "buy" else -1) * Decimal(leg["ratio_qty"]) for leg in legs]
    if all(sign * signs[0] > 0 for sign in signs):
        return [net / sum(signs)] * len(legs)
    others = [Decimal("0.01") if sign * signs[0] > 0 else 10 + abs(net) for sign in signs[1:]]
    rest = net - sum((sign * price for sign, price in zip(signs[1:], others, strict=True)), ZERO)
    return [rest / signs[0], *others]


def class_of(symbol: str) -> str:
    try:
        found = instrument(symbol)
    except BadInstrument:
        return "us_equity"
    return "us_option" if isinstance(found, Option) else "crypto" if isinstance(found, Crypto) else "us_equity"


def text(value: Decimal) -> str:
    plain = f"{value:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def stamp(at: datetime) -> str:
    """Return a time as Alpaca writes it, to the nanosecond."""
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}395Z"


def moment(told: str) -> datetime:
    found = datetime.fromisoformat(told)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def asset(symbol: str) -> Obj:
    made: Obj = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, symbol)),
        "class": class_of(symbol),
        "exchange": "NASDAQ",
        "symbol": symbol,
        "name": symbol,
        "status": "active",
        "tradable": True,
        "marginable": True,
        "shortable": True,
        "easy_to_borrow": True,
        "fractionable": True,
    }
    if made["class"] == "crypto":
        made |= {"min_order_size": "0.0001", "min_trade_increment": "0.000000001", "price_increment": "0.01"}
    return made


def contract(of: Option) -> Obj:
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, of.key)),
        "symbol": of.key,
        "name": of.key,
        "status": "active",
        "tradable": True,
        "expiration_date": of.expires_on.isoformat(),
        "root_symbol": of.root,
        "underlying_symbol": of.underlying,
        "type": "call" if of.right == "C" else "put",
        "style": "american",
        "strike_price": text(of.strike),
        "size": "100",
        "ppind": True,
    }
