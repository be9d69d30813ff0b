"""What did not go out on its own, by preference or for being too much: each told once, in the next digest.

An alert that was held back on two channels is one line. A digest that reaches nobody, for it is silenced or no channel
takes it, has told nothing: the next one does (`DigestStore.give_back`).
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import text

from services.alerts.domain.words import Words
from services.alerts.service.sections.base import Asked, Section, cut
from shared.db import Row, Tx

AT_MOST: Final = timedelta(days=31)
MOST: Final = 100
"""Lines: this is where its user wants to read them. Channels that take less cut for themselves."""

_TELL: Final = text("""
    with alerted as (
        update deliveries set digest_id = cast(:digest_id as uuid)
        where user_id = :user_id and created_at >= :oldest and created_at < :until
            and status = 'digested' and digest_id is null
        returning alert_id, session, created_at
    ), noticed as (
        update notice_deliveries set digest_id = cast(:digest_id as uuid)
        where user_id = :user_id and created_at >= :oldest and created_at < :until
            and status = 'digested' and digest_id is null
        returning notice_id, created_at
    )
    select title, bool_or(simulated) as simulated, min(at) as at from (
        select a.alert_id as id, a.title, a.simulated, d.created_at as at
        from alerted d join alerts a on a.alert_id = d.alert_id and a.session = d.session
        union all
        select n.notice_id, n.title, false, d.created_at from noticed d join notices n using (notice_id)
    ) as told group by id, title order by at, title""")


async def collect(tx: Tx, asked: Asked) -> Sequence[Row]:
    """Return what was held back up to the period's end and not told yet; it is told with this."""
    return await tx.fetch(
        _TELL,
        digest_id=None if asked.silenced else asked.digest_id,
        user_id=asked.user_id,
        oldest=asked.since - AT_MOST,
        until=asked.until,
    )


def render(found: Sequence[Row], words: Words) -> Section:
    """Return one line for each, in the order of time."""
    lines = [f"{row['title']} ({words.clock(row['at'])})" for row in found]
    return Section("Held back for this digest", cut(lines, len(lines), MOST), any(row["simulated"] for row in found))
