"""Watchlists. A stock's settings outlive its removal: whoever adds it again finds them as they were.

Which settings held from when until when is kept as well, removed or not.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.api import store
from services.api.domain import MAX_WATCHED
from services.api.service.by import By
from shared.contracts.alerts import AlertRaised
from shared.contracts.api import StockAdded, StockRemoved, StockSettingsChanged
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Conflict, NotFound
from shared.messaging.door import Done


class Stock(msgspec.Struct, frozen=True):
    """A watched stock with the user's settings for it."""

    symbol: str
    added_at: datetime
    alerts_enabled: bool
    note: str
    last_alert_at: datetime | None


class Added(msgspec.Struct, frozen=True):
    """What adding did: nothing, if the stock was watched already."""

    symbol: str
    added: bool


class Period(msgspec.Struct, frozen=True):
    """Settings of a stock, from when until when they held; None as long as they do."""

    id: int
    alerts_enabled: bool
    note: str
    from_at: datetime
    until_at: datetime | None


class Watchlists:
    """Use cases on watchlists."""

    async def list(self, tx: Tx, user_id: UUID) -> list[Stock]:
        """Return the user's watchlist by symbol."""
        return [Stock(*row.values()) for row in await store.watched(tx, user_id)]

    async def history(self, tx: Tx, user_id: UUID, symbol: str, *, before: int | None, limit: int) -> Sequence[Period]:
        """Return the settings of a stock while it was watched, latest first; raises NotFound if it never was."""
        rows = await store.settings_history(tx, user_id, symbol, before=before, limit=limit)
        if not rows and before is None:
            raise NotFound("this stock was never on the watchlist")
        return [Period(*row.values()) for row in rows]

    async def add(self, tx: Tx, by: By, user_id: UUID, symbol: str) -> Done[Added]:
        """Watch a stock; raises NotFound for an unknown user and Conflict when the list is full."""
        if await store.lock_user(tx, user_id) is None:
            raise NotFound("there is no such user")
        added = await store.watch(tx, user_id, [symbol], by.now)
        if not added:
            return Done(Added(symbol, added=False))
        if await store.count_watched(tx, user_id) > MAX_WATCHED:
            raise Conflict(f"a watchlist holds at most {MAX_WATCHED} stocks")
        told = [
            StockAdded(id=by.new_id(), time=by.now, user_id=user_id, symbol=symbol, alerts_enabled=added[symbol]),
            by.audit("add.stock", f"watchlist/{user_id}", symbol=symbol),
        ]
        return Done(Added(symbol, added=True), told)

    async def remove(self, tx: Tx, by: By, user_id: UUID, symbol: str) -> Done[None]:
        """Stop watching a stock; raises NotFound when it was not watched."""
        await store.lock_user(tx, user_id)
        if not await store.unwatch(tx, user_id, symbol, by.now):
            raise NotFound("this stock is not on the watchlist")
        told = [
            StockRemoved(id=by.new_id(), time=by.now, user_id=user_id, symbol=symbol),
            by.audit("remove.stock", f"watchlist/{user_id}", symbol=symbol),
        ]
        return Done(None, told)

    async def change(self, tx: Tx, by: By, user_id: UUID, symbol: str, changes: dict[str, Any]) -> Done[Stock]:
        """Change a watched stock's settings; raises NotFound when it is not watched."""
        await store.lock_user(tx, user_id)
        row = await store.change_stock(
            tx,
            user_id,
            symbol,
            alerts_enabled=changes.get("alerts_enabled"),
            note=changes.get("note"),
            now=by.now,
        )
        if row is None:
            raise NotFound("this stock is not on the watchlist")
        stock = Stock(*row.values())
        if not changes:
            return Done(stock)
        now = StockSettingsChanged(
            id=by.new_id(), time=by.now, user_id=user_id, symbol=symbol, alerts_enabled=stock.alerts_enabled
        )
        return Done(
            stock, [now, by.audit("change.stock", f"watchlist/{user_id}", symbol=symbol, changed=sorted(changes))]
        )

    async def record_alerts(self, events: Sequence[AlertRaised], tx: Tx) -> Sequence[Event]:
        """Remember when each stock last alerted its user."""
        latest: dict[tuple[UUID, str], datetime] = {}
        for event in events:
            place = (event.user_id, event.symbol)
            latest[place] = max(event.as_of, latest.get(place, event.as_of))
        await store.alerted(tx, [(user, symbol, at) for (user, symbol), at in sorted(latest.items())])
        return ()
