"""The most unusual contracts of the sessions that the period heard of."""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text

from services.alerts.domain.words import Words
from services.alerts.service.sections.base import MOST, Asked, Section
from shared.db import Row, Tx

_BOARDS: Final = text("""
    select session, entries from leaders where as_of >= :since and as_of < :until order by session""")
_RIGHTS: Final = {"C": "call", "P": "put"}


async def collect(tx: Tx, asked: Asked) -> Sequence[Row]:
    """Return the leaderboard of each session."""
    return await tx.fetch(_BOARDS, since=asked.since, until=asked.until)


def render(found: Sequence[Row], words: Words) -> Section:
    """Return the best contracts of all the sessions, each once, at its best."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in found:
        for entry in row["entries"]:
            if entry["contract"] not in best or entry["score"] > best[entry["contract"]]["score"]:
                best[entry["contract"]] = entry
    order = sorted(best.values(), key=lambda one: (-one["score"], -Decimal(one["premium_usd"]), one["contract"]))[:MOST]
    lines = [
        f"{place}. {contract(entry['contract'], words)}, score {entry['score']:.0f}, "
        f"premium {words.dollars(Decimal(entry['premium_usd']))}, "
        f"volume {words.number(entry['volume'])} over {words.number(entry['open_interest'])} open"
        for place, entry in enumerate(order, 1)
    ]
    return Section("Leaderboard", tuple(lines), any(entry["simulated"] for entry in order))


def contract(occ: str, words: Words) -> str:
    """Return an OCC symbol as people say it: AAPL 2025-06-20 200 call."""
    symbol, expires, right, strike = occ[:-15], occ[-15:-9], occ[-9:-8], occ[-8:]
    try:
        day = date(2000 + int(expires[:2]), int(expires[2:4]), int(expires[4:]))
        return f"{symbol} {day.isoformat()} {words.number(Decimal(strike) / 1000)} {_RIGHTS[right]}"
    except (ValueError, ArithmeticError, KeyError):
        return occ
