"""Rows of the paper venue's tables: from and to what the desk reckons with. Numbers go as text, and stay exact."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from services.broker.domain.instruments import Instrument, Option, instrument
from services.broker.domain.margin import Stock
from services.broker.domain.matching import Book, Working
from services.broker.domain.orders import Execution, Fill, Leg, Report, Terms
from services.broker.domain.positions import Expiry, PositionFact
from services.broker.domain.tickets import Frame, Holding, Purse, Ticket
from shared.db import Row

_KEPT: Final = {
    "id": "uuid",
    "account_id": "uuid",
    "underlying": "text",
    "symbols": "text[]",
    "buys": "boolean",
    "gate": "numeric",
    "terms": "jsonb",
    "replaces": "uuid",
}
_PLAIN: Final = {
    "came_at": "timestamptz",
    "works_at": "timestamptz",
    "updated_at": "timestamptz",
    "state": "text",
    "expires_at": "timestamptz",
    "ends_at": "timestamptz",
    "replaced_by": "uuid",
    "reason": "text",
    "expected": "numeric",
    "needs": "numeric",
    "open": "numeric",
    "hold": "numeric",
    "count": "integer",
}
_PROGRESS: Final = {"filled": "numeric", "spent": "numeric", "best": "numeric", "triggered": "boolean"}
CHANGING: Final = (*_PLAIN, *_PROGRESS, "due_at")
"""The columns of an order that change."""
ORDER: Final = {**_KEPT, **_PLAIN, **_PROGRESS, "due_at": "timestamptz"}
"""The columns of an order and their types."""
_NUMBERS: Final = ("quantity", "notional", "limit", "stop", "trail_amount", "trail_percent")


def terms(body: Mapping[str, Any]) -> Terms:
    """Read an order's terms."""
    legs = tuple(
        Leg(instrument(leg["symbol"], leg["underlying"]), leg["side"], leg["ratio"], leg["opens"])
        for leg in body["legs"]
    )
    numbers: dict[str, Any] = {name: Decimal(body[name]) for name in _NUMBERS if name in body}
    return Terms(
        legs,
        body["type"],
        body["time_in_force"],
        order_class=body["order_class"],
        strategy=body["strategy"],
        **numbers,
    )


def terms_row(of: Terms) -> dict[str, Any]:
    """Write an order's terms; what it does not have is left out."""
    legs = [
        {
            "symbol": leg.instrument.key,
            "underlying": leg.instrument.underlying,
            "side": leg.side,
            "ratio": leg.ratio,
            "opens": leg.opens,
        }
        for leg in of.legs
    ]
    numbers = {name: str(value) for name in _NUMBERS if (value := getattr(of, name)) is not None}
    plain = {name: getattr(of, name) for name in ("type", "time_in_force", "order_class", "strategy")}
    return {"legs": legs, **plain, **numbers}


def ticket(row: Row) -> Ticket:
    """Read an order."""
    working = Working(terms(row["terms"]), row["filled"], row["spent"], row["best"], row["triggered"])
    plain = {name: row[name] for name in _PLAIN}
    return Ticket(row["id"], row["account_id"], working, replaces=row["replaces"], **plain)


def order_row(of: Ticket) -> dict[str, Any]:
    """Write an order."""
    asked = of.working.terms
    alone = asked.type == "limit" and len(asked.legs) == 1
    return {
        "id": of.id,
        "account_id": of.account_id,
        "underlying": asked.legs[0].instrument.underlying,
        "symbols": [leg.instrument.key for leg in asked.legs],
        "buys": asked.legs[0].side == "buy",
        "gate": asked.limit if alone else None,
        "terms": terms_row(asked),
        "replaces": of.replaces,
        "due_at": of.due_at,
        **{name: getattr(of, name) for name in _PLAIN},
        **{name: getattr(of.working, name) for name in _PROGRESS},
    }


def book(row: Row) -> Book:
    """Read a quote."""
    return Book(row["bid"], row["ask"], row["at"], row["bid_size"], row["ask_size"])


def book_row(symbol: str, of: Book) -> dict[str, Any]:
    """Write a quote."""
    return {
        "symbol": symbol,
        "bid": of.bid,
        "ask": of.ask,
        "bid_size": of.bid_size,
        "ask_size": of.ask_size,
        "at": of.at,
    }


def purse(row: Row) -> Purse:
    """Read an account's money."""
    return Purse(row["id"], row["cash"], row["tied"], row["on_hold"], row["frames"])


def purse_row(of: Purse) -> dict[str, Any]:
    """Write an account's money."""
    return {"id": of.id, "cash": of.cash, "tied": of.tied, "on_hold": of.on_hold, "frames": of.frames}


def holding(row: Row) -> Holding:
    """Read what is held."""
    stock = Stock(instrument(row["symbol"], row["underlying"]), row["quantity"], row["cost"])
    return Holding(stock, row["buying"], row["selling"])


def holding_rows(account_id: UUID, family: Mapping[str, Holding]) -> list[dict[str, Any]]:
    """Write what an account holds of an underlying."""
    return [
        {
            "account_id": account_id,
            "symbol": symbol,
            "underlying": of.stock.instrument.underlying,
            "expires_on": _expires_on(of.stock.instrument),
            "quantity": of.stock.quantity,
            "cost": of.stock.cost,
            "buying": of.buying,
            "selling": of.selling,
        }
        for symbol, of in sorted(family.items())
    ]


def _expires_on(of: Instrument) -> Any:
    return of.expires_on if isinstance(of, Option) else None


def execution(row: Row) -> Execution:
    """Read an execution."""
    return Execution(row["id"], row["quantity"], row["price"], row["at"], row["leg"], row["fee"])


def execution_row(order_id: UUID, of: Execution) -> dict[str, Any]:
    """Write an execution."""
    return {"order_id": order_id, **_execution(of)}


def _execution(of: Execution) -> dict[str, Any]:
    return {
        "id": of.id,
        "quantity": of.quantity,
        "price": of.price,
        "at": of.at,
        "leg": of.leg,
        "fee": of.fee,
    }


def frame_row(of: Frame) -> dict[str, Any]:
    """Write a frame."""
    told = of.report
    report = {
        "kind": told.kind,
        "executions": [_execution(one) for one in told.executions],
        "venue_order_id": told.venue_order_id,
        "replaced_by": told.replaced_by,
        "reason": told.reason,
    }
    return {"account_id": of.account_id, "number": of.number, "order_id": of.order_id, "report": report}


def report(body: Mapping[str, Any]) -> Report:
    """Read what a frame tells."""
    executions = tuple(
        Execution(
            one["id"],
            Decimal(one["quantity"]),
            Decimal(one["price"]),
            datetime.fromisoformat(one["at"]),
            one["leg"],
            Decimal(one["fee"]),
        )
        for one in body["executions"]
    )
    replaced_by = body["replaced_by"] and UUID(body["replaced_by"])
    return Report(
        body["kind"],
        executions,
        venue_order_id=body["venue_order_id"],
        replaced_by=replaced_by,
        reason=body["reason"],
    )


def fact(row: Row) -> PositionFact:
    """Read what became of an option."""
    of = instrument(row["symbol"], row["underlying"])
    if row["side"] is None:
        return Expiry(row["id"], of, row["at"], row["quantity"], row["price"])
    return Fill(row["id"], row["order_id"], of, row["side"], row["quantity"], row["price"], row["at"])


def fact_row(account_id: UUID, of: PositionFact) -> dict[str, Any]:
    """Write what became of an option: an expiry or a delivery, the venue makes no other facts."""
    if not isinstance(of, Fill | Expiry):
        raise TypeError(f"the paper venue makes no {type(of).__name__}")
    return {
        "account_id": account_id,
        "id": of.id,
        "symbol": of.instrument.key,
        "underlying": of.instrument.underlying,
        "quantity": of.quantity,
        "price": of.price,
        "side": of.side if isinstance(of, Fill) else None,
        "order_id": of.order_id if isinstance(of, Fill) else None,
        "at": of.at,
    }
