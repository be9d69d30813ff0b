"""The best alerts that were raised in the period."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text

from services.alerts.domain.words import Words
from services.alerts.service.sections.base import MOST, Asked, Section, cut
from shared.db import Row, Tx

_TOP: Final = text("""
    select alert_id, symbol, session, title, premium_usd, simulated, count(*) over () as total from alerts
    where user_id = :user_id and created_at >= :since and created_at < :until
    order by top_score desc, premium_usd desc, alert_id limit :limit""")


async def collect(tx: Tx, asked: Asked) -> Sequence[Row]:
    """Return the best few, each with the number of all."""
    return await tx.fetch(_TOP, user_id=asked.user_id, since=asked.since, until=asked.until, limit=MOST)


def render(found: Sequence[Row], words: Words) -> Section:
    """Return one line an alert."""
    lines = [f"{row['title']}, premium {words.dollars(row['premium_usd'])}" for row in found]
    simulated = any(row["simulated"] for row in found)
    return Section("Top alerts", cut(lines, found[0]["total"]), simulated, found[0]["alert_id"])
