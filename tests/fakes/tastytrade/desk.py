"""What is behind the stand-in: orders, fills, positions, money, transactions. Everything is told as the venue's JSON.

What would surprise you: whoever fills an order while its replacement waits aborts the replacement, as documented.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

Json = dict[str, Any]

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
OVER = frozenset({"Filled", "Cancelled", "Expired", "Rejected"})
EQUITIES = ("AAPL", "MSFT", "SPY", "BRK/B")
TYPES = frozenset({"Limit", "Market", "Stop", "Stop Limit"})
TIMES = frozenset({"Day", "GTC", "Ext", "GTC Ext", "IOC"})
ACTIONS = frozenset({"Buy to Open", "Buy to Close", "Sell to Open", "Sell to Close"})
PRICED = frozenset({"Limit", "Stop Limit"})


class Refused(Exception):
    """The venue says no: a code, a message, and nested errors."""

    def __init__(self, status: int, code: str, message: str, *nested: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        error: Json = {"code": code, "message": message}
        if nested:
            error["errors"] = [{"code": one, "message": text} for one, text in nested]
        self.body = {"error": error}


def preflight(code: str, message: str) -> Refused:
    return Refused(422, "preflight_check_failure", "One or more preflight checks failed", (code, message))


@dataclass
class Leg:
    symbol: str
    kind: str
    action: str
    quantity: Decimal
    fills: list[Json] = field(default_factory=list)

    @property
    def sign(self) -> int:
        return 1 if self.action.startswith("Buy") else -1

    @property
    def left(self) -> Decimal:
        return self.quantity - sum((Decimal(str(one["quantity"])) for one in self.fills), Decimal(0))

    @property
    def multiplier(self) -> int:
        return 100 if self.kind == "Equity Option" else 1


@dataclass
class Placed:
    id: int
    asked: Json
    legs: list[Leg]
    received: datetime
    status: str = "Routed"
    updated: datetime = LONG_AGO
    ended: datetime | None = None
    replaces: int | None = None
    replacing: int | None = None
    reject_reason: str | None = None

    @property
    def over(self) -> bool:
        return self.status in OVER


class Desk:
    """One account. `tell` gets each order that changed."""

    def __init__(self, account: str, tell: Callable[[Placed], None]) -> None:
        self.account = account
        self.tell = tell
        self.skew = timedelta()
        self.cash = Decimal(100_000)
        self.fee = Decimal(0)
        """What a fill costs, told in its transaction."""
        self.orders: dict[int, Placed] = {}
        self.held: dict[str, tuple[str, Decimal]] = {}
        self.transactions: list[Json] = []
        self.hold = False
        """Take the next cancel or replacement as a wish only."""
        self.reason: str | None = None
        """Why the next order is refused."""
        self.placed: list[str] = []
        """The external identifiers of the orders that were taken, in order."""
        self._numbers = itertools.count(270_561)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    # What a client asks

    def place(self, asked: Json) -> Placed:
        legs = self._checked(asked)
        order = Placed(next(self._numbers), asked, legs, self.now())
        self.orders[order.id] = order
        self.placed.append(asked.get("external-identifier", ""))
        self._to(order, "Routed")
        self._to(order, "Live")
        return order

    def cancel(self, number: int) -> Placed:
        order = self._working(number, "cancel")
        self._to(order, "Cancel Requested")
        if not self._held_back():
            self.end(order, "Cancelled")
        return order

    def replace(self, number: int, asked: Json) -> Placed:
        if "legs" in asked:
            raise Refused(400, "validation_error", "Request validation failed", ("legs", "is not allowed"))
        old = self._working(number, "edit")
        self._check_conditions(asked)
        legs = [Leg(leg.symbol, leg.kind, leg.action, leg.left) for leg in old.legs]
        new = Placed(next(self._numbers), asked, legs, self.now(), replaces=old.id)
        self.orders[new.id] = new
        old.replacing = new.id
        self._to(old, "Replace Requested")
        self._to(new, "Contingent")
        if not self._held_back():
            self.end(old, "Cancelled")
        return new

    # What happens at the venue

    def fill(self, order: Placed, quantity: Decimal, price: Decimal) -> str:
        """Fill so many units at a net price; return the first leg's fill id."""
        unit = min(leg.quantity for leg in order.legs)
        priced = list(zip(order.legs, _prices(order, price), strict=True))
        ids = [self._execute(order, leg, quantity * leg.quantity / unit, each) for leg, each in priced]
        if order.replacing is not None and not order.over:  # a fill aborts the replacement
            new = self.orders[order.replacing]
            new.reject_reason = "The order to be replaced was filled"
            order.replacing = None
            self._to(new, "Rejected")
        if all(leg.left <= 0 for leg in order.legs):
            self._to(order, "Filled")
        elif order.over or order.status == "Cancel Requested":
            self._to(order, order.status)
        else:
            self._to(order, "Live")
        return ids[0]

    def end(self, order: Placed, status: str) -> None:
        if status == "Rejected":
            order.reject_reason = "The exchange rejected the order"
        self._to(order, status)
        if order.replacing is not None:
            new = self.orders[order.replacing]
            self._to(new, "Routed")
            self._to(new, "Live")

    def book(self, **row: Any) -> Json:
        """Add a transaction as it is told."""
        at = self.now()
        made = {
            "id": next(self._numbers),
            "account-number": self.account,
            "executed-at": stamp(at),
            "transaction-date": at.date().isoformat(),
            "value": "0.0",
            "value-effect": "None",
            "net-value": "0.0",
            "net-value-effect": "None",
            "is-estimated-fee": True,
            **{name.replace("_", "-"): value for name, value in row.items()},
        }
        self.transactions.append(made)
        return made

    def under(self, identifier: str) -> Placed:
        """Return the newest order with an external identifier."""
        return [one for one in self.orders.values() if one.asked.get("external-identifier") == identifier][-1]

    # JSON

    def json(self, order: Placed) -> Json:
        asked = order.asked
        told: Json = {
            "id": order.id,
            "account-number": self.account,
            "cancellable": not order.over,
            "editable": not order.over,
            "edited": order.replacing is not None,
            "global-request-id": f"{order.id:032x}",
            "order-type": asked["order-type"],
            "received-at": stamp(order.received),
            "size": whole(order.legs[0].quantity),
            "status": order.status,
            "time-in-force": asked["time-in-force"],
            "underlying-instrument-type": "Equity",
            "underlying-symbol": order.legs[0].symbol[:6].strip(),
            "updated-at": round(order.updated.timestamp() * 1000),
        }
        names = ("price", "price-effect", "stop-trigger", "source", "external-identifier")
        told |= {name: asked[name] for name in names if name in asked}
        extra = {
            "terminal-at": order.ended and stamp(order.ended),
            "replaces-order-id": order.replaces,
            "replacing-order-id": order.replacing,
            "reject-reason": order.reject_reason,
        }
        told |= {name: value for name, value in extra.items() if value is not None}
        told["legs"] = [
            {
                "action": leg.action,
                "instrument-type": leg.kind,
                "quantity": whole(leg.quantity),
                "remaining-quantity": whole(leg.left),
                "symbol": leg.symbol,
                "fills": list(leg.fills),
            }
            for leg in order.legs
        ]
        return told

    def positions(self) -> list[Json]:
        return [
            {
                "account-number": self.account,
                "instrument-type": kind,
                "symbol": symbol,
                "underlying-symbol": symbol[:6].strip(),
                "quantity": whole(abs(quantity)),
                "average-open-price": "1.0",
                "cost-effect": "Credit" if quantity > 0 else "Debit",
                "multiplier": 100 if kind == "Equity Option" else 1,
                "quantity-direction": "Long" if quantity > 0 else "Short",
            }
            for symbol, (kind, quantity) in self.held.items()
            if quantity
        ]

    def balances(self) -> Json:
        cash = f"{self.cash:f}"
        return {
            "account-number": self.account,
            "cash-balance": cash,
            "currency": "USD",
            "derivative-buying-power": cash,
            "equity-buying-power": f"{2 * self.cash:f}",
        }

    # Inside

    def _held_back(self) -> bool:
        held, self.hold = self.hold, False
        return held

    def _to(self, order: Placed, status: str) -> None:
        order.status, order.updated = status, self.now()
        if order.over and order.ended is None:
            order.ended = order.updated
        self.tell(order)

    def _working(self, number: int, what: str) -> Placed:
        order = self.orders.get(number)
        if order is None:
            raise Refused(404, "record_not_found", "Couldn't find Order")
        if order.over:
            raise Refused(422, f"cannot_{what}_order", f"Order cannot be {what}ed in its current state")
        return order

    def _execute(self, order: Placed, leg: Leg, quantity: Decimal, price: Decimal) -> str:
        number, at = next(self._numbers), self.now()
        fill = {
            "destination-venue": "TEST_A",
            "ext-exec-id": str(number),
            "ext-group-fill-id": "0",
            "fill-id": f"2_TW::TEST_A1::{at:%Y%m%d}.{number}-TEST_FILL",
            "fill-price": f"{price:f}",
            "filled-at": stamp(at),
            "quantity": whole(quantity),
        }
        leg.fills.append(fill)
        kind, held = self.held.get(leg.symbol, (leg.kind, Decimal(0)))
        self.held[leg.symbol] = (kind, held + leg.sign * quantity)
        value = quantity * price * leg.multiplier
        self.cash -= leg.sign * value + self.fee
        self.book(
            symbol=leg.symbol,
            instrument_type=leg.kind,
            underlying_symbol=leg.symbol[:6].strip(),
            transaction_type="Trade",
            transaction_sub_type=leg.action,
            action=leg.action,
            quantity=f"{quantity:f}",
            price=f"{price:f}",
            value=f"{value:f}",
            value_effect="Debit" if leg.sign > 0 else "Credit",
            clearing_fees=f"{self.fee:f}",
            clearing_fees_effect="Debit" if self.fee else "None",
            order_id=order.id,
            exec_id=fill["fill-id"],
        )
        return str(fill["fill-id"])

    def _checked(self, asked: Json) -> list[Leg]:
        if self.reason is not None:
            reason, self.reason = self.reason, None
            raise preflight("order_refused", reason)
        self._check_conditions(asked)
        legs = [self._leg(one) for one in asked.get("legs", [])]
        if not 1 <= len(legs) <= 4 or (len(legs) > 1 and any(leg.kind == "Equity" for leg in legs)):
            raise preflight("invalid_legs", "The legs are not allowed")
        return legs

    def _check_conditions(self, asked: Json) -> None:
        kind, time = asked.get("order-type"), asked.get("time-in-force")
        if kind not in TYPES or time not in TIMES or any("_" in name for name in asked):
            raise Refused(400, "validation_error", "Request validation failed")
        if (kind in PRICED) != ("price" in asked) or ("price" in asked) != ("price-effect" in asked):
            raise Refused(400, "validation_error", "Request validation failed", ("price", "does not fit the type"))
        if (kind in {"Stop", "Stop Limit"}) != ("stop-trigger" in asked):
            raise Refused(400, "validation_error", "Request validation failed", ("stop-trigger", "does not fit"))
        if kind == "Market" and time.startswith("GTC"):
            raise preflight("gtc_market_orders_not_supported", "GTC/GTD Market orders are not supported.")

    def _leg(self, one: Json) -> Leg:
        symbol, kind = str(one["symbol"]), one["instrument-type"]
        known = symbol in EQUITIES if kind == "Equity" else len(symbol) == 21 and symbol[:6].strip() in EQUITIES
        if not known or one["action"] not in ACTIONS:
            raise preflight("symbol_does_not_exist", f"Symbol {symbol} does not exist")
        return Leg(symbol, kind, one["action"], Decimal(str(one["quantity"])))


def _prices(order: Placed, net: Decimal) -> list[Decimal]:
    """Return prices of the legs that make the net one: of all but the first leg a round one."""
    first, *others = order.legs
    if not others:
        return [net]
    unit = min(leg.quantity for leg in order.legs)
    for each in (Decimal(1), Decimal(0), Decimal(10), Decimal(100)):
        rest = sum((leg.sign * leg.quantity / unit * each for leg in others), Decimal(0))
        price = first.sign * (net - rest) * unit / first.quantity
        if price >= 0:
            return [price, *(each for _ in others)]
    raise AssertionError("no prices make that net")


def stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def whole(quantity: Decimal) -> int | str:
    return int(quantity) if quantity == quantity.to_integral_value() else f"{quantity:f}"
