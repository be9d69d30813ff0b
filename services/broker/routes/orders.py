"""Orders as they stand, over HTTP."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter

from services.broker.domain.lifecycle import average_price
from services.broker.service.accounts import Accounts
from services.broker.store.orders import OrderStore, Stored
from shared.contracts.broker import OrderState
from shared.db import Tx
from shared.errors import NotFound
from shared.http import Caller, Who
from shared.http.cursors import cursor_after, parse_cursor
from shared.messaging.door import Door


class OrderView(msgspec.Struct, frozen=True):
    """An order as it stands. Quantities and prices are decimal text. An exit's `parent` is its bracket or OCO."""

    id: UUID
    account_id: UUID
    venue: str
    state: str
    terms: dict[str, Any]
    filled: str
    average_price: str | None
    venue_order_id: str | None
    parent: UUID | None
    replaces: UUID | None
    replaced_by: UUID | None
    reason: str | None
    refusals: list[dict[str, str]]
    created_at: datetime
    updated_at: datetime


class OrdersPage(msgspec.Struct, frozen=True):
    """Some of an account's orders, newest first. `next` is the `before` of the next page."""

    orders: list[OrderView]
    next: str | None


class FlagView(msgspec.Struct, frozen=True):
    """Something that cannot be, or should not."""

    id: UUID
    order_id: UUID | None
    code: str
    message: str
    at: datetime


def handlers(accounts: Accounts, orders: OrderStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/broker/orders/{order_id:uuid}", caller=Caller.USER)
    async def one(identity: Who, order_id: FromPath[UUID]) -> OrderView:
        """Return one of your orders."""
        async with door.read() as tx:
            return view(await own_order(tx, orders, identity.user_id, order_id))

    @get("/broker/orders", caller=Caller.USER)
    async def page(
        identity: Who,
        account_id: Annotated[UUID, QueryParameter()],
        order_state: Annotated[OrderState | None, QueryParameter(name="state")] = None,
        before: Annotated[str | None, QueryParameter(max_length=200)] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> OrdersPage:
        """Return an account's orders, newest first."""
        async with door.read() as tx:
            await accounts.own(tx, identity.user_id, account_id)
            found = await orders.page(tx, account_id, order_state, parse_cursor(before), limit)
        last = found[-1].row if len(found) == limit else None
        after = None if last is None else cursor_after(last["created_at"], last["id"])
        return OrdersPage([view(stored) for stored in found], after)

    @get("/broker/flags", caller=Caller.USER)
    async def flags(
        identity: Who,
        account_id: Annotated[UUID, QueryParameter()],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> list[FlagView]:
        """Return what could not be, or should not have been, in an account; newest first."""
        async with door.read() as tx:
            await accounts.own(tx, identity.user_id, account_id)
            found = await orders.flags(tx, account_id, limit)
        return [FlagView(row["id"], row["order_id"], row["code"], row["message"], row["at"]) for row in found]

    return [one, page, flags]


async def own_order(tx: Tx, orders: OrderStore, user_id: UUID, order_id: UUID) -> Stored:
    """Return a user's order. Raises NotFound for anybody else's."""
    stored = await orders.get(tx, order_id)
    if stored is None or stored.user_id != user_id:
        raise NotFound("you have no such order")
    return stored


def view(stored: Stored) -> OrderView:
    """Return an order as it is shown."""
    order, row = stored.order, stored.row
    leg, *others = order.terms.legs
    count, average = average_price(order, leg.instrument.key)
    return OrderView(
        id=order.id,
        account_id=order.account_id,
        venue=order.venue,
        state=order.state,
        terms=row["terms"],
        filled=f"{row['filled']:f}",
        average_price=f"{average:.8f}" if count and not others else None,
        venue_order_id=order.venue_order_id,
        parent=row["parent"],
        replaces=order.replaces,
        replaced_by=order.replaced_by,
        reason=order.reason,
        refusals=row["refusals"] or [],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
