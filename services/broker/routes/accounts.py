"""Accounts, what they hold, and the switch that stops everything, over HTTP."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from services.broker.domain import shapes
from services.broker.service.accounts import Accounts, NewAccount
from services.broker.store.accounts import AccountStore
from services.broker.store.books import BookStore
from shared.db import Row
from shared.errors import Forbidden
from shared.http import Caller, Who
from shared.idempotency import answer_once
from shared.messaging.door import Done, Door

HttpRequest = Request[Any, Any, Any]
Amount = Annotated[Decimal, Field(gt=0, lt=Decimal("1e15"), allow_inf_nan=False)]


class Limits(BaseModel):
    """Limits narrower than the deployment's, in the quote currency."""

    model_config = ConfigDict(extra="forbid")

    max_order_value: Amount | None = None
    max_position_value: Amount | None = None
    max_orders_a_minute: int | None = Field(default=None, ge=1)


class AccountBody(BaseModel):
    """An account to trade on. Live needs this deployment to trade live, too."""

    model_config = ConfigDict(extra="forbid")

    venue: str = Field(min_length=1, max_length=40)
    mode: Literal["paper", "live"] = "paper"
    name: str = Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")
    reference: str = Field(default="", max_length=80, pattern=r"^[A-Za-z0-9._-]*$")
    limits: Limits = Limits()


class HaltBody(BaseModel):
    """Whom to halt: yourself, or, as an administrator, everybody."""

    model_config = ConfigDict(extra="forbid")

    scope: Literal["me", "all"] = "me"
    reason: str = Field(default="by hand", min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")


class AccountView(msgspec.Struct, frozen=True):
    """An account. Money is decimal text, null until its venue has told it; `trouble` says why it cannot be heard."""

    id: UUID
    venue: str
    mode: str
    name: str
    reference: str
    limits: dict[str, Any]
    cash: str | None
    buying_power: str | None
    balance_at: datetime | None
    checked_at: datetime | None
    trouble: str | None
    created_at: datetime


class PositionView(msgspec.Struct, frozen=True):
    """What is held of an instrument: above zero long, below zero short. Both ways to count what was made."""

    symbol: str
    quantity: str
    average_price: str | None
    realised_fifo: str
    realised_average: str
    fees: str
    price: str | None
    value: str | None
    unrealised_fifo: str | None
    unrealised_average: str | None


class HaltView(msgspec.Struct, frozen=True):
    """A halt."""

    scope: str
    reason: str
    at: datetime


def handlers(accounts: Accounts, store: AccountStore, books: BookStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/broker/accounts", caller=Caller.USER, status_code=201)
    async def open_(request: HttpRequest, identity: Who, data: JSONBody[AccountBody]) -> Response[Any]:
        """Open an account."""
        await accounts.ready(data.venue)
        limits = data.limits.model_dump(mode="json", exclude_none=True)
        new = NewAccount(identity.user_id, data.venue, data.mode, data.name, data.reference, limits)

        async def use_case(tx: Any) -> Done[AccountView]:
            done = await accounts.open(new, tx)
            return Done(account_view(done.value), done.events)

        return await answer_once(request, door, use_case)

    @get("/broker/accounts", caller=Caller.USER)
    async def all_(identity: Who) -> list[AccountView]:
        """Return your accounts."""
        async with door.read() as tx:
            return [account_view(row) for row in await store.of_user(tx, identity.user_id)]

    @delete("/broker/accounts/{account_id:uuid}", caller=Caller.USER)
    async def close(identity: Who, account_id: FromPath[UUID]) -> None:
        """Close an account; its history stays."""
        await door.run(lambda tx: accounts.close(identity.user_id, account_id, tx))
        await accounts.forget(account_id)

    @get("/broker/positions", caller=Caller.USER)
    async def positions(identity: Who, account_id: Annotated[UUID, QueryParameter()]) -> list[PositionView]:
        """Return what an account holds, and what was held and closed."""
        async with door.read() as tx:
            await accounts.own(tx, identity.user_id, account_id)
            rows = await books.all(tx, account_id)
            quotes = await books.quotes(tx, [row["symbol"] for row in rows])
        return [position_view(row, quotes) for row in rows]

    @post("/broker/halt", caller=Caller.USER, status_code=204)
    async def halt(identity: Who, data: JSONBody[HaltBody]) -> None:
        """Send no order any more. What works at venues works on: cancel it."""
        everyone = _scope(identity.is_admin, data.scope)
        await door.run(lambda tx: accounts.halt(identity.user_id, data.reason, tx, everyone=everyone))
        await accounts.quiet(identity.user_id, door, everyone=everyone)

    @delete("/broker/halt", caller=Caller.USER)
    async def resume(identity: Who, whom: Annotated[Literal["me", "all"], QueryParameter(name="scope")] = "me") -> None:
        """Trade again."""
        everyone = _scope(identity.is_admin, whom)
        await door.run(lambda tx: accounts.resume(identity.user_id, tx, everyone=everyone))

    @get("/broker/halt", caller=Caller.USER)
    async def halts(identity: Who) -> list[HaltView]:
        """Return what halts you now."""
        async with door.read() as tx:
            found = await store.halts(tx, identity.user_id)
        return [HaltView("all" if who == "all" else "me", row["reason"], row["at"]) for who, row in found.items()]

    return [open_, all_, close, positions, halt, resume, halts]


def account_view(row: Row) -> AccountView:
    """Return an account as it is shown."""
    return AccountView(
        id=row["id"],
        venue=row["venue"],
        mode=row["mode"],
        name=row["name"],
        reference=row["reference"],
        limits=row["limits"],
        cash=_text(row["cash"]),
        buying_power=_text(row["buying_power"]),
        balance_at=row["balance_at"],
        checked_at=row["checked_at"],
        trouble=row["trouble"],
        created_at=row["created_at"],
    )


def position_view(row: Row, quotes: Mapping[str, Row]) -> PositionView:
    """Return a position at the middle of the last quote."""
    position = shapes.load_position(row["body"])
    quote = quotes.get(row["symbol"])
    price: Decimal | None = None if quote is None else (quote["bid"] + quote["ask"]) / 2
    return PositionView(
        symbol=row["symbol"],
        quantity=f"{row['quantity']:f}",
        average_price=_text(position.entry_price("average")),
        realised_fifo=f"{position.realised('fifo'):f}",
        realised_average=f"{position.realised('average'):f}",
        fees=f"{position.fees:f}",
        price=_text(price),
        value=None if price is None else f"{position.value(price):f}",
        unrealised_fifo=None if price is None else f"{position.unrealised(price, 'fifo'):f}",
        unrealised_average=None if price is None else f"{position.unrealised(price, 'average'):f}",
    )


def _text(value: Decimal | None) -> str | None:
    return None if value is None else f"{value:f}"


def _scope(is_admin: bool, scope: str) -> bool:  # noqa: FBT001 - what the caller is
    if scope == "all" and not is_admin:
        raise Forbidden("only an administrator halts everybody")
    return scope == "all"
