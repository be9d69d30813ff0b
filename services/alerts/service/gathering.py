"""What other services tell and digests show later, kept as small as it will be shown."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any, Final
from uuid import UUID

from services.alerts.store.gathered import GatheredStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.broker import OrderFilled, PositionChanged
from shared.contracts.detector import LeaderboardChanged
from shared.db import Tx

PLACES: Final = 10
"""Of a session's leaderboard that are kept."""

_Key = tuple[UUID, UUID, str]


class Gathering:
    """Takes events and a transaction."""

    def __init__(self, store: GatheredStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def note_leaders(self, event: LeaderboardChanged, tx: Tx) -> Sequence[Event]:
        """Keep the first places of a session's leaderboard; the last one told of a session holds its best."""
        entries = [entry.model_dump(mode="json") for entry in event.entries[:PLACES]]
        await self._store.leaders(tx, session=event.session, as_of=event.as_of, entries=entries)
        return ()

    async def note_fills(self, events: Sequence[OrderFilled], tx: Tx) -> Sequence[Event]:
        """Add fills to what was traded."""
        traded: dict[_Key, dict[str, Any]] = {}
        with localcontext(prec=60):
            for one in events:
                row = _row(traded, one.user_id, one.account_id, one.symbol)
                side = "bought" if one.side == "buy" else "sold"
                row["mode"] = one.mode
                row["fills"] += 1
                row[side] += one.quantity
                row[f"{side}_for"] += one.quantity * one.price
                row["fees"] += one.fee
        await self._store.trade(tx, self._quarter(), _sorted(traded))
        return ()

    async def note_positions(self, events: Sequence[PositionChanged], tx: Tx) -> Sequence[Event]:
        """Add what positions realised since they were last told of.

        What was realised before we first hear of a position is nobody's period.
        """
        keys = sorted({(one.account_id, one.symbol) for one in events})
        rows = await self._store.holdings(tx, [{"account_id": account, "symbol": symbol} for account, symbol in keys])
        known = {(row["account_id"], row["symbol"]): (row["version"], row["realised"]) for row in rows}
        traded: dict[_Key, dict[str, Any]] = {}
        told: set[tuple[UUID, str]] = set()
        for one in events:
            key = (one.account_id, one.symbol)
            version, before = known.get(key, (0, Decimal(0) if one.version == 1 else one.realised_fifo))
            if one.version <= version:
                continue
            with localcontext(prec=60):
                gain = one.realised_fifo - before
            if gain:
                _row(traded, one.user_id, *key)["realised"] += gain
            known[key] = (one.version, one.realised_fifo)
            told.add(key)
        held = [
            {"account_id": account, "symbol": symbol, "version": version, "realised": realised}
            for (account, symbol), (version, realised) in sorted(known.items())
            if (account, symbol) in told
        ]
        await self._store.hold(tx, held)
        await self._store.trade(tx, self._quarter(), _sorted(traded))
        return ()

    def _quarter(self) -> datetime:
        now = self._clock()
        return now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)


def _row(traded: dict[_Key, dict[str, Any]], user_id: UUID, account_id: UUID, symbol: str) -> dict[str, Any]:
    sums = ("bought", "sold", "bought_for", "sold_for", "fees", "realised")
    begun: dict[str, Any] = {"user_id": user_id, "account_id": account_id, "symbol": symbol, "mode": None, "fills": 0}
    return traded.setdefault((user_id, account_id, symbol), begun | dict.fromkeys(sums, Decimal(0)))


def _sorted(traded: dict[_Key, dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for _, row in sorted(traded.items())]
