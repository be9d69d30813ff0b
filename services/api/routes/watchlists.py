"""Watchlists."""

from typing import Annotated, Final
from uuid import UUID

from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter

from services.api.domain import symbol as checked
from services.api.routes.bodies import AddStock, StockPatch
from services.api.routes.common import HttpRequest, by
from services.api.service import Watchlists
from shared.clock import Clock, NewId
from shared.http import Caller, Who
from shared.http.json import json_response
from shared.idempotency import answer_once
from shared.identity import own
from shared.messaging.door import Door

PAGE: Final = 100
MAX_PAGE: Final = 500
MAX_ID: Final = 2**63 - 1


def watchlist_routes(watchlists: Watchlists, door: Door, clock: Clock, new_id: NewId) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/watchlist/{user_id:uuid}", caller=Caller.USER, tags=["watchlists"])
    async def list_stocks(identity: Who, user_id: FromPath[UUID]) -> Response[bytes]:
        """List the stocks you watch, with your settings for each."""
        own(identity, user_id)
        async with door.read() as tx:
            return json_response({"stocks": await watchlists.list(tx, user_id)})

    @post("/api/watchlist/{user_id:uuid}", caller=Caller.USER, status_code=201, tags=["watchlists"])
    async def add_stock(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[AddStock]
    ) -> Response[bytes]:
        """Watch a stock. One that you watched before has its settings back."""
        own(identity, user_id)
        circumstances = by(request, identity, clock, new_id)
        return await answer_once(request, door, lambda tx: watchlists.add(tx, circumstances, user_id, data.ticker))

    @delete("/api/watchlist/{user_id:uuid}/{symbol:str}", caller=Caller.USER, tags=["watchlists"])
    async def remove_stock(request: HttpRequest, identity: Who, user_id: FromPath[UUID], symbol: FromPath[str]) -> None:
        """Stop watching a stock. Your settings for it are kept, and so is their history."""
        own(identity, user_id)
        circumstances, wanted = by(request, identity, clock, new_id), checked(symbol)
        await door.run(lambda tx: watchlists.remove(tx, circumstances, user_id, wanted))

    @patch("/api/watchlist/{user_id:uuid}/{symbol:str}", caller=Caller.USER, tags=["watchlists"])
    async def change_stock(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], symbol: FromPath[str], data: JSONBody[StockPatch]
    ) -> Response[bytes]:
        """Change your settings for a stock you watch."""
        own(identity, user_id)
        circumstances, wanted = by(request, identity, clock, new_id), checked(symbol)
        changes = data.model_dump(exclude_unset=True)
        return json_response(await door.run(lambda tx: watchlists.change(tx, circumstances, user_id, wanted, changes)))

    @get("/api/watchlist/{user_id:uuid}/{symbol:str}/history", caller=Caller.USER, tags=["watchlists"])
    async def list_history(
        identity: Who,
        user_id: FromPath[UUID],
        symbol: FromPath[str],
        before: Annotated[int | None, QueryParameter(ge=1, le=MAX_ID, description="`next` of the page before")] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = PAGE,
    ) -> Response[bytes]:
        """List which settings held for a stock from when until when, latest first, also after its removal."""
        own(identity, user_id)
        wanted = checked(symbol)
        async with door.read() as tx:
            found = await watchlists.history(tx, user_id, wanted, before=before, limit=limit)
        following = found[-1].id if len(found) == limit else None
        return json_response({"symbol": wanted, "history": found, "next": following})

    return [list_stocks, add_stock, remove_stock, change_stock, list_history]
