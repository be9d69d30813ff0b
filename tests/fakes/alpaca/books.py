"""The stand-in's books: orders, executions, positions, money and activities of one account, in Alpaca's shapes."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from services.broker.domain.instruments import BadInstrument, Option, instrument
from tests.fakes.alpaca.shapes import (
    CHANGES,
    FIELDS,
    NEEDED,
    TIMES,
    ZERO,
    Obj,
    asset,
    class_of,
    contract,
    leg_prices,
    moment,
    stamp,
    text,
)

OVER: Final = frozenset({"filled", "canceled", "expired", "rejected", "replaced"})
ACCOUNT_ID: Final = "e6fe16f3-64a4-4921-8928-cadf02f92f98"


class Refused(Exception):
    """An answer of 4xx."""

    def __init__(self, status: int, number: int, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"code": number, "message": message}


def invalid(message: str, number: int = 42210000) -> Refused:
    return Refused(422, number, message)


class Books:
    """One account. `tell` takes the data of each trade update."""

    def __init__(self, tell: Callable[[Obj], None]) -> None:
        self._tell = tell
        self.skew = timedelta()
        self.orders: dict[str, Obj] = {}
        self.activities: list[Obj] = []
        self.held: dict[str, Decimal] = {}
        self.cash = Decimal(100_000)
        self.assets = {symbol: asset(symbol) for symbol in ("AAPL", "SPY", "BTC/USD")}
        self.quotes: dict[str, tuple[Decimal, Decimal]] = {"AAPL": (Decimal("100.00"), Decimal("100.02"))}

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def asset(self, symbol: str) -> Obj | None:
        return self.assets.get(symbol)

    def contract(self, symbol: str) -> Obj | None:
        """Return an option contract: of each asset there is every one."""
        try:
            found = instrument(symbol)
        except BadInstrument:
            return None
        if not isinstance(found, Option) or found.underlying not in self.assets:
            return None
        return contract(found)

    # Orders

    def by_client_id(self, name: str) -> Obj | None:
        return next((one for one in self.orders.values() if one["client_order_id"] == name), None)

    def place(self, body: Obj) -> Obj:
        """Take an order, or raise Refused."""
        if unknown := body.keys() - FIELDS:
            raise Refused(400, 40010000, f"request body format is invalid: {sorted(unknown)}")
        name = body.get("client_order_id") or str(uuid.uuid4())
        if self.by_client_id(name):
            raise invalid("client_order_id must be unique", 40010001)
        self._check(body)
        order = self._order(body, name)
        self.orders[order["id"]] = order
        self.tell("pending_new", order)
        self._set(order, "new")
        self.tell("new", order, execution_id=str(uuid.uuid4()))
        return order

    def cancel(self, order_id: str, *, hold: bool) -> None:
        order = self._open(order_id, "order is not cancelable")
        if order["status"] == "pending_cancel":
            raise invalid("order is already in pending_cancel")
        self._set(order, "pending_cancel")
        self.tell("pending_cancel", order)
        if not hold:
            self.end(order, "canceled")

    def replace(self, order_id: str, body: Obj, *, hold: bool) -> Obj:
        order = self._open(order_id, "order is not open")
        if body.keys() - CHANGES:
            raise Refused(400, 40010000, f"request body format is invalid: {sorted(body.keys() - CHANGES)}")
        if self.by_client_id(body["client_order_id"]):
            raise invalid("client_order_id must be unique", 40010001)
        if order["notional"] is not None:
            raise invalid("notional orders cannot be replaced")
        changed = {name: value for name, value in body.items() if name not in {"trail", "client_order_id"}}
        if "trail" in body:
            changed["trail_price" if order["trail_price"] else "trail_percent"] = body["trail"]
        asked = {name: order[name] for name in FIELDS - {"legs"}} | changed
        if order["order_class"] == "mleg":
            asked["legs"] = [{**one, "ratio_qty": one["ratio_qty"]} for one in order["legs"]]
        new = self._order(asked, body["client_order_id"]) | {"replaces": order["id"]}
        self.orders[new["id"]] = new
        order["replaced_by"] = new["id"]
        self._set(order, "pending_replace")
        self.tell("pending_replace", order)
        self.tell("pending_new", new)
        if not hold:
            self.finish_replace(order)
        return new

    def finish_replace(self, order: Obj) -> None:
        new = self.orders[order["replaced_by"]]
        self._set(order, "replaced", "replaced_at")
        self.tell("replaced", order)
        self._set(new, "new")
        self.tell("new", new, execution_id=str(uuid.uuid4()))

    def end(self, order: Obj, status: str) -> None:
        self._set(order, status, {"canceled": "canceled_at", "expired": "expired_at"}.get(status, "failed_at"))
        self.tell(status, order)
        self._no_replacement(order)

    def fill(self, order: Obj, quantity: Decimal, price: Decimal) -> str:
        """Fill so much of an order, each leg by its ratio; an order that is over keeps its status."""
        if order["order_class"] != "mleg":
            return self._fill_one(order, quantity, price, order)
        names: list[str] = []
        for leg, leg_price in zip(order["legs"], leg_prices(order["legs"], price), strict=True):
            names.append(self._fill_one(leg, quantity * Decimal(leg["ratio_qty"]), leg_price, leg))
        self._count(order, quantity, price)
        event = "fill" if order["status"] == "filled" else "partial_fill"
        self.tell(event, order, qty=text(quantity), price=text(price), execution_id=str(uuid.uuid4()))
        self._no_replacement(order)
        return names[0]

    def bust(self, order: Obj, execution_id: str, *, price: Decimal | None = None) -> str:
        """Take an execution back, or correct its price; the activity of it stays. Return the execution that stands."""
        fill = next(one for one in self.activities if one["id"].endswith(execution_id))
        quantity, old = Decimal(fill["qty"]), Decimal(fill["price"])
        signed = quantity if order["side"] == "buy" else -quantity
        done, value = Decimal(order["filled_qty"]), Decimal(order["filled_qty"]) * Decimal(order["filled_avg_price"])
        left = done - quantity if price is None else done
        worth = value + quantity * ((price or ZERO) - old)
        order |= {"filled_qty": text(left), "filled_avg_price": text(worth / left) if left else None}
        order["updated_at"] = stamp(self.now)
        self.held[order["symbol"]] -= signed if price is None else ZERO
        self.cash += signed * (old - (price or ZERO))
        more = {"qty": text(quantity), "price": text(price or old), "position_qty": text(self.held[order["symbol"]])}
        if price is None:
            self.tell("trade_bust", order, execution_id=execution_id, **more)
            return execution_id
        name = str(uuid.uuid4())
        self.tell("trade_correct", order, execution_id=name, previous_execution_id=execution_id, **more)
        return name

    # Lists

    def listed(self, after: datetime, limit: int) -> list[Obj]:
        found = [one for one in self.orders.values() if moment(one["submitted_at"]) > after]
        return sorted(found, key=lambda one: one["submitted_at"])[:limit]

    def activity_page(self, kinds: set[str], after: datetime, token: str | None, size: int) -> list[Obj]:
        found = [
            one
            for one in self.activities
            if one["activity_type"] in kinds and moment(one.get("transaction_time") or one["date"]) > after
        ]
        found.sort(key=lambda one: (one["id"][:17], self.activities.index(one)))
        start = next((at + 1 for at, one in enumerate(found) if one["id"] == token), 0)
        return found[start : start + size]

    def positions(self) -> Iterator[Obj]:
        for symbol, quantity in self.held.items():
            if quantity:
                kind = class_of(symbol)
                yield {
                    "asset_id": str(uuid.uuid5(uuid.NAMESPACE_URL, symbol)),
                    "symbol": symbol.replace("/", "") if kind == "crypto" else symbol,
                    "exchange": "NASDAQ",
                    "asset_class": kind,
                    "avg_entry_price": "0",
                    "qty": text(quantity),
                    "side": "long" if quantity > 0 else "short",
                }

    def account(self) -> Obj:
        return {
            "id": ACCOUNT_ID,
            "account_number": "010203ABCD",
            "status": "ACTIVE",
            "currency": "USD",
            "cash": text(self.cash),
            "buying_power": text(self.cash),
            "shorting_enabled": True,
        }

    def post(self, kind: str, *, day: str, name: str | None = None, **fields: Any) -> str:
        """Add an activity that is no fill; the positions follow it where it has a quantity."""
        activity_id = name or f"{day.replace('-', '')}000000000::{uuid.uuid4()}"
        made = {"id": activity_id, "account_id": ACCOUNT_ID, "activity_type": kind, "date": day, "status": "executed"}
        self.activities.append(made | {"net_amount": "0", "description": "", **fields})
        return activity_id

    # How it is done

    def tell(self, event: str, order: Obj, **more: Any) -> None:
        at = stamp(self.now)
        data = {"at": at, "event_id": uuid.uuid4().hex[:26].upper(), "event": event, "timestamp": at}
        self._tell({**data, "order": {**order, "legs": order["legs"] and [dict(leg) for leg in order["legs"]]}, **more})

    def _check(self, body: Obj) -> None:
        legs = body.get("legs") or [body]
        if (body.get("order_class") == "mleg") != (len(legs) > 1) or len(legs) > 4:
            raise invalid("mleg orders have two to four legs")
        if (body.get("qty") is None) == (body.get("notional") is None):
            raise invalid("exactly one of qty and notional is required")
        for name in ("qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent"):
            if not isinstance(body.get(name), str | None):
                raise invalid(f"{name} is not text")
        for leg in legs:
            self._check_leg(body, leg)
        kind = body.get("type")
        prices = {name for name in ("limit_price", "stop_price") if body.get(name) is not None}
        if kind == "trailing_stop":
            if (body.get("trail_price") is None) == (body.get("trail_percent") is None):
                raise invalid("exactly one of trail_price and trail_percent is required")
        elif prices != NEEDED.get(str(kind)):
            raise invalid(f"{kind} orders take {NEEDED.get(str(kind))}, not {prices}")
        limit = body.get("limit_price")
        if limit is not None and abs(Decimal(limit)) >= 1 and Decimal(limit) % Decimal("0.01"):
            raise invalid(f"invalid limit_price {limit}. sub-penny increment does not fulfill minimum pricing criteria")
        if body.get("extended_hours") and (kind, body["time_in_force"]) not in {("limit", "day"), ("limit", "gtc")}:
            raise invalid("extended hours order must be DAY or GTC limit orders")

    def _check_leg(self, body: Obj, leg: Obj) -> None:
        symbol, kind = leg.get("symbol", ""), class_of(leg.get("symbol", ""))
        if not (self.contract(symbol) if kind == "us_option" else self.asset(symbol)):
            raise invalid(f'asset "{symbol}" not found')
        if leg.get("side") not in {"buy", "sell"}:
            raise invalid("side is required")
        if body.get("time_in_force") not in TIMES[kind]:
            raise invalid(f"invalid {kind} time_in_force")
        whole = body.get("qty") is not None and Decimal(body["qty"]) % 1 == 0
        if kind == "us_option" and not whole:
            raise invalid("qty must be an integer for options")
        if kind == "us_equity" and not whole and body["time_in_force"] != "day":
            raise invalid("fractional orders must be DAY orders")
        if kind == "crypto" and "position_intent" in leg:
            raise invalid("position_intent is not valid for crypto")

    def _order(self, body: Obj, name: str, of: Obj | None = None) -> Obj:
        now, symbol = stamp(self.now), body.get("symbol") or ""
        several = body.get("order_class") == "mleg" and of is None
        legs = [self._leg(body, leg) for leg in body["legs"]] if several else None
        made = dict.fromkeys(("filled_at", "expired_at", "canceled_at", "failed_at", "replaced_at", "replaced_by"))
        return {
            "id": str(uuid.uuid4()),
            "client_order_id": name,
            "created_at": now,
            "updated_at": now,
            "submitted_at": now,
            **made,
            "cancel_requested_at": None,
            "replaces": None,
            "asset_id": str(uuid.uuid5(uuid.NAMESPACE_URL, symbol)) if symbol else "",
            "symbol": symbol,
            "asset_class": class_of(symbol) if symbol else "",
            "notional": body.get("notional"),
            "qty": body.get("qty"),
            "filled_qty": "0",
            "filled_avg_price": None,
            "order_class": "mleg" if body.get("order_class") == "mleg" else "",
            "order_type": body["type"],
            "type": body["type"],
            "side": body.get("side") or "",
            "position_intent": body.get("position_intent") or "",
            "time_in_force": body["time_in_force"],
            "limit_price": body.get("limit_price"),
            "stop_price": body.get("stop_price"),
            "status": "pending_new",
            "extended_hours": body.get("extended_hours") or False,
            "legs": legs,
            "trail_percent": body.get("trail_percent"),
            "trail_price": body.get("trail_price"),
            "hwm": None,
            "expires_at": now,
        }

    def _leg(self, body: Obj, leg: Obj) -> Obj:
        asked = {name: leg.get(name) for name in ("symbol", "side", "position_intent")}
        asked |= {"type": "", "time_in_force": body["time_in_force"], "order_class": "mleg"}
        asked["qty"] = text(Decimal(body["qty"]) * Decimal(leg["ratio_qty"]))
        return self._order(asked, str(uuid.uuid4()), of=body) | {"ratio_qty": leg["ratio_qty"]}

    def _open(self, order_id: str, message: str) -> Obj:
        order = self.orders.get(order_id)
        if order is None:
            raise Refused(404, 40410000, f"order not found for {order_id}")
        if order["status"] in OVER or order["status"] == "pending_replace":
            raise invalid(message)
        return order

    def _no_replacement(self, order: Obj) -> None:
        """An order that is over is not replaced: what was to take its place is rejected."""
        new = self.orders.get(order["replaced_by"] or "")
        if new is None or order["status"] not in OVER - {"replaced"} or new["status"] != "pending_new":
            return
        order["replaced_by"] = None
        self.tell("order_replace_rejected", order)
        self._set(new, "rejected", "failed_at")
        self.tell("rejected", new)

    def _fill_one(self, order: Obj, quantity: Decimal, price: Decimal, told: Obj) -> str:
        self._count(order, quantity, price)
        symbol, buys = order["symbol"], order["side"] == "buy"
        signed = quantity if buys else -quantity
        self.held[symbol] = self.held.get(symbol, ZERO) + signed
        self.cash -= signed * price * (100 if order["asset_class"] == "us_option" else 1)
        name, now = str(uuid.uuid4()), self.now
        at = now.astimezone(ZoneInfo("America/New_York"))
        event = "fill" if order["status"] == "filled" else "partial_fill"
        self.activities.append(
            {
                "id": f"{at:%Y%m%d%H%M%S}{at.microsecond // 1000:03}::{name}",
                "account_id": ACCOUNT_ID,
                "activity_type": "FILL",
                "transaction_time": stamp(now),
                "type": event,
                "price": text(price),
                "qty": text(quantity),
                "side": order["side"],
                "symbol": symbol,
                "leaves_qty": text(max(Decimal(order["qty"] or 0) - Decimal(order["filled_qty"]), ZERO)),
                "order_id": order["id"],
                "cum_qty": order["filled_qty"],
                "order_status": order["status"],
            }
        )
        position = text(self.held[symbol])
        self.tell(event, told, price=text(price), qty=text(quantity), position_qty=position, execution_id=name)
        self._no_replacement(order)
        return name

    def _count(self, order: Obj, quantity: Decimal, price: Decimal) -> None:
        before = Decimal(order["filled_qty"])
        value = before * Decimal(order["filled_avg_price"] or 0) + quantity * price
        order["filled_qty"] = text(before + quantity)
        order["filled_avg_price"] = text((value / (before + quantity)).quantize(Decimal("1e-9")))
        whole = order["notional"] is not None and value >= Decimal(order["notional"])
        if whole or (order["qty"] is not None and before + quantity >= Decimal(order["qty"])):
            self._set(order, "filled", "filled_at")
        elif order["status"] in {"new", "partially_filled"}:
            self._set(order, "partially_filled")
        else:  # being canceled or replaced, or over
            order["updated_at"] = stamp(self.now)

    def _set(self, order: Obj, status: str, at: str | None = None) -> None:
        order["status"], order["updated_at"] = status, stamp(self.now)
        if at is not None:
            order[at] = order["updated_at"]
        if order["order_class"] == "mleg" and status != "filled":
            for leg in order["legs"] or ():
                leg["status"] = status
