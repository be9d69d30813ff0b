"""What may be asked for over HTTP: each becomes a command, which the commands' consumer carries out.

What would surprise you: an order is not placed when the answer comes, but taken on: 202. `wait_s` waits for what comes
of it.
"""

import asyncio
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from services.broker.domain import shapes
from services.broker.routes.orders import OrderView, own_order, view
from services.broker.service.accounts import Accounts
from services.broker.service.commands import symbol_of
from services.broker.store.orders import OrderStore
from shared.clock import Clock, NewId
from shared.contracts.broker import (
    Amount,
    CancelRequested,
    CloseRequested,
    OrderRequested,
    OrderTerms,
    ReplaceRequested,
)
from shared.db import Tx
from shared.errors import Invalid
from shared.http import Caller, Who
from shared.idempotency import answer_once
from shared.messaging.door import Done, Door

HttpRequest = Request[Any, Any, Any]
Wait = Annotated[float, QueryParameter(ge=0, le=8, description="Wait so long for what comes of it")]
Account = Annotated[UUID, QueryParameter(name="account_id")]
Asked = OrderRequested | ReplaceRequested | CancelRequested | CloseRequested

POLL_S: Final = 0.03
UNDECIDED: Final = frozenset({"new", "pending_submit"})


class OrderBody(BaseModel):
    """An order for one of your accounts. Leave `order_id` out, or give a fresh UUID: the same one is the same order."""

    model_config = ConfigDict(extra="forbid")

    account_id: UUID
    order_id: UUID | None = None
    terms: OrderTerms


class ReplaceBody(BaseModel):
    """What is to be different; the rest stays."""

    model_config = ConfigDict(extra="forbid")

    quantity: Amount | None = Field(default=None, gt=0)
    limit: Amount | None = None
    stop: Amount | None = Field(default=None, gt=0)
    trail_amount: Amount | None = Field(default=None, gt=0)
    trail_percent: Amount | None = Field(default=None, gt=0, lt=100)


class Taken(msgspec.Struct, frozen=True):
    """What was taken on: `order_id` is the order to ask for; null where many are concerned."""

    order_id: UUID | None
    order: OrderView | None


class Asking:
    """Publishes commands, and waits for what comes of them."""

    def __init__(self, accounts: Accounts, orders: OrderStore, door: Door) -> None:
        self._accounts = accounts
        self._orders = orders
        self._door = door

    async def account_of(self, user_id: UUID, order_id: UUID) -> UUID:
        """Return the account of a user's order. Raises NotFound for anybody else's."""
        async with self._door.read() as tx:
            return (await own_order(tx, self._orders, user_id, order_id)).order.account_id

    async def answer(self, request: HttpRequest, event: Asked, order_id: UUID | None, wait_s: float) -> Response[Any]:
        """Publish a command once, however often it is sent under one Idempotency-Key."""

        async def ask(tx: Tx) -> Done[Taken]:
            await self._accounts.own(tx, event.user_id, event.account_id)
            return Done(Taken(order_id, None), [event])

        told: list[Taken] = []

        def show(value: Any) -> Any:
            told.append(msgspec.convert(value, Taken))
            return value

        response = await answer_once(request, self._door, ask, status_code=202, show=show)
        if told[0].order_id is None or not wait_s:
            return response
        order = await self._decided(event, told[0].order_id, wait_s)
        return response if order is None else Response(Taken(order.id, order), status_code=202)

    async def _decided(self, event: Asked, order_id: UUID, wait_s: float) -> OrderView | None:
        """Return the asker's order once its venue, or a refusal, has told what it is; or as it is after so long.

        The id is the asker's choice, so it may be somebody else's order: that is None.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            async with self._door.read() as tx:
                stored = await self._orders.get(tx, order_id)
            if stored is not None and (stored.user_id, stored.order.account_id) != (event.user_id, event.account_id):
                return None
            if (stored is not None and stored.order.state not in UNDECIDED) or loop.time() >= until:
                return None if stored is None else view(stored)
            await asyncio.sleep(POLL_S)


def handlers(asking: Asking, *, clock: Clock, new_id: NewId) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/broker/orders", caller=Caller.USER, status_code=202)
    async def place(request: HttpRequest, identity: Who, data: JSONBody[OrderBody], wait_s: Wait = 0) -> Response[Any]:
        """Place an order."""
        shapes.to_domain(data.terms)
        check_amounts(data.terms)
        order_id = data.order_id or new_id()
        event = OrderRequested(
            id=new_id(),
            time=clock(),
            account_id=data.account_id,
            user_id=identity.user_id,
            order_id=order_id,
            terms=data.terms,
        )
        return await asking.answer(request, event, order_id, wait_s)

    @patch("/broker/orders/{order_id:uuid}", caller=Caller.USER, status_code=202)
    async def change(
        request: HttpRequest,
        identity: Who,
        order_id: FromPath[UUID],
        data: JSONBody[ReplaceBody],
        wait_s: Wait = 0,
    ) -> Response[Any]:
        """Replace a working order by another one with other terms; the answer names the new order."""
        given = data.model_dump(exclude_none=True)
        if not given:
            raise Invalid("say what is to be different")
        account_id = await asking.account_of(identity.user_id, order_id)
        by_order_id = new_id()
        event = ReplaceRequested(
            id=new_id(),
            time=clock(),
            account_id=account_id,
            user_id=identity.user_id,
            order_id=order_id,
            by_order_id=by_order_id,
            **given,
        )
        return await asking.answer(request, event, by_order_id, wait_s)

    @delete("/broker/orders/{order_id:uuid}", caller=Caller.USER, status_code=202)
    async def cancel(request: HttpRequest, identity: Who, order_id: FromPath[UUID]) -> Response[Any]:
        """Cancel an order. What was filled stays filled."""
        account_id = await asking.account_of(identity.user_id, order_id)
        event = CancelRequested(
            id=new_id(), time=clock(), account_id=account_id, user_id=identity.user_id, order_id=order_id
        )
        return await asking.answer(request, event, order_id, 0)

    @delete("/broker/orders", caller=Caller.USER, status_code=202)
    async def cancel_all(request: HttpRequest, identity: Who, account_id: Account) -> Response[Any]:
        """Cancel all orders of an account."""
        event = CancelRequested(id=new_id(), time=clock(), account_id=account_id, user_id=identity.user_id)
        return await asking.answer(request, event, None, 0)

    @post("/broker/positions/{symbol:str}/close", caller=Caller.USER, status_code=202)
    async def close(
        request: HttpRequest, identity: Who, symbol: FromPath[str], account_id: Account, wait_s: Wait = 0
    ) -> Response[Any]:
        """Close a position at the market: its working orders are canceled first. A pair is written BTC-USD here."""
        order_id = new_id()
        event = CloseRequested(
            id=new_id(),
            time=clock(),
            account_id=account_id,
            user_id=identity.user_id,
            order_id=order_id,
            symbol=symbol_of(symbol.replace("-", "/")),
        )
        return await asking.answer(request, event, order_id, wait_s)

    return [place, change, cancel, cancel_all, close]


def check_amounts(terms: OrderTerms) -> None:
    """Raise Invalid for amounts that are none, before anything is taken on."""
    for name in ("quantity", "notional", "stop", "trail_amount", "trail_percent"):
        value: Decimal | None = getattr(terms, name)
        if value is not None and value <= 0:
            raise Invalid(f"{name} must be above zero", field=name)
    if (terms.quantity is None) == (terms.notional is None):
        raise Invalid("give a quantity or a notional amount, one of both", field="quantity")
