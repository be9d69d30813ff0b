"""A user's feed: what they were told in the last day, at positions 1, 2, 3 and so on of their own; and tickets to it.

A position is given out under the lock of its user's row in `feed_heads`, and is seen no sooner than the one before it:
whoever reads on from a position misses nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared import retention
from shared.db import Row, Tx

CHANNEL: Final = "openbell_api_feed"
"""Where Postgres tells, at each commit, whose feeds have grown: ids without dashes, comma between."""
USERS_A_NOTE: Final = 200  # a payload has less than 8,000 bytes

_ADD: Final = text(
    """
    with told as (
        select t.*, row_number() over (partition by user_id order by ordinal) as number
        from unnest(cast(:users as uuid[]), cast(:ids as uuid[]), cast(:types as text[]), cast(:ats as timestamptz[]),
                cast(:bodies as text[])) with ordinality as t (user_id, id, type, at, body, ordinal)
    ), counts as (
        select user_id, count(*) as many from told group by user_id
    ), heads as (
        insert into feed_heads as h (user_id, position) select user_id, many from counts order by user_id
        on conflict (user_id) do update set position = h.position + excluded.position
        returning user_id, position
    )
    insert into feed (user_id, position, id, type, at, body, created_at)
    select user_id, position - many + number, id, type, at, body, :now
    from told join counts using (user_id) join heads using (user_id)
    """
)
_NOTIFY: Final = text("select pg_notify(:channel, users) from unnest(cast(:notes as text[])) users")
_HEADS: Final = text(
    """
    select user_id, coalesce(h.position, 0) as head,
        (select min(position) from feed f where f.user_id = w.user_id) as first
    from unnest(cast(:users as uuid[])) as w (user_id) left join feed_heads h using (user_id)
    """
)
_AFTER: Final = text(
    """
    select w.user_id, w.since, f.position, f.id, f.type, f.at, f.body
    from unnest(cast(:users as uuid[]), cast(:positions as bigint[])) as w (user_id, since)
    cross join lateral (
        select position, id, type, at, body from feed
        where feed.user_id = w.user_id and position > w.since order by position limit :most
    ) f
    order by w.user_id, w.since, f.position
    """
)
_FORGET: Final = retention.slice_of("feed", "created_at < :before")

_ADD_TICKET: Final = text(
    """
    insert into realtime_tickets (digest, user_id, role, key_id, ends_at, until)
    values (:digest, :user_id, :role, :key_id, :ends_at, :until)
    """
)
_REDEEM: Final = text(
    """
    delete from realtime_tickets where digest = :digest and until > :now returning user_id, role, key_id, ends_at
    """
)
_FORGET_TICKETS: Final = retention.slice_of("realtime_tickets", "until < :before")
_LIVE_KEYS: Final = text("select id from api_keys where id = any(cast(:ids as uuid[])) and deleted_at is null")


async def add(tx: Tx, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Append to feeds, in the order given, and tell at the commit whose they are."""
    columns = {f"{name}s" if name != "body" else "bodies": [row[name] for row in rows] for name in rows[0]}
    users = sorted({row["user"].hex for row in rows})
    await tx.execute(_ADD, **columns, now=now)
    notes = [",".join(users[at : at + USERS_A_NOTE]) for at in range(0, len(users), USERS_A_NOTE)]
    await tx.execute(_NOTIFY, channel=CHANNEL, notes=notes)


async def heads(tx: Tx, users: Sequence[UUID]) -> list[Row]:
    """Return the last position of each feed, 0 before any, and the first that is kept."""
    return await tx.fetch(_HEADS, users=list(users))


async def after(tx: Tx, places: Sequence[tuple[UUID, int]], most: int) -> list[Row]:
    """Return the next rows, up to `most`, after each (user, position); `since` says after which."""
    users, positions = [user for user, _ in places], [position for _, position in places]
    return await tx.fetch(_AFTER, users=users, positions=positions, most=most)


async def forget(transaction: retention.Transaction, before: datetime, now: datetime) -> None:
    """Drop what is older, and tickets that nobody used in time."""
    await retention.forget(transaction, _FORGET, before=before)
    await retention.forget(transaction, _FORGET_TICKETS, before=now)


async def add_ticket(tx: Tx, **fields: Any) -> None:
    """Keep a ticket's digest and what it stands for."""
    await tx.execute(_ADD_TICKET, **fields)


async def redeem(tx: Tx, digest: bytes, now: datetime) -> Row | None:
    """Take a ticket; None when there is none, or it is too old."""
    return await tx.fetchrow(_REDEEM, digest=digest, now=now)


async def live_keys(tx: Tx, ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the keys that have not ended."""
    return {row["id"] for row in await tx.fetch(_LIVE_KEYS, ids=list(ids))}
