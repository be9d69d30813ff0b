"""Watchlists."""

from uuid import UUID

from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody

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
        """Stop watching a stock. Your settings for it are kept."""
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

    return [list_stocks, add_stock, remove_stock, change_stock]
