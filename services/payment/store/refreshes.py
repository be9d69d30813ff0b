"""What waits to be asked of Stripe: a claimed row for each object, however many events hint at it."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from shared.clock import NewId
from shared.db import Row, Tx
from shared.retention import Transaction, forget, slice_of

SETTLED: Final = "('done', 'failed', 'unknown')"

_WANT: Final = text(f"""
    insert into refreshes as known (id, kind, object_id, wanted, hinted, due_at, created_at)
    select id, kind, object_id, hints, :hinted, :now, :now
    from unnest(cast(:ids as uuid[]), cast(:kinds as text[]), cast(:object_ids as text[]), cast(:hints as bigint[]))
        as new (id, kind, object_id, hints)
    order by kind, object_id
    on conflict (kind, object_id) do update set
        wanted = known.wanted + excluded.wanted,
        hinted = excluded.hinted or (known.hinted and known.status not in {SETTLED}),
        due_at = least(known.due_at, excluded.due_at),
        status = case when known.status in {SETTLED} then 'pending' else known.status end,
        attempts = case when known.status in {SETTLED} then 0 else known.attempts end,
        created_at = case when known.status in {SETTLED} then excluded.created_at else known.created_at end,
        uncertain = known.uncertain and known.status not in {SETTLED},
        settled_at = null""")  # noqa: S608 - our own words
_AGAIN: Final = text("""
    update refreshes set status = 'pending', due_at = :now, attempts = 0, created_at = :now, settled_at = null
    where id = :id and wanted > :answered and status in ('done', 'failed', 'unknown')""")
_CLAIMED: Final = text("select * from refreshes where id = :id")
_LOCK: Final = text(
    "select pg_advisory_xact_lock(hashtextextended('payment/refresh/' || cast(cast(:id as uuid) as text), 0))"
)
_OURS: Final = text("select true from refreshes where id = :id and token = :token and status = 'started'")
_FORGET: Final = slice_of("refreshes", f"status in {SETTLED} and settled_at < :before")


class RefreshStore:
    """Reads and writes `refreshes`; shared.work does the rest of a row's life."""

    def __init__(self, new_id: NewId) -> None:
        self._new_id = new_id

    async def want(self, tx: Tx, objects: Iterable[tuple[str, str]], now: datetime, *, hinted: bool) -> None:
        """Ask for each (kind, object id) soon; one that is being fetched now will be fetched again."""
        counts: dict[tuple[str, str], int] = {}
        for one in objects:
            counts[one] = counts.get(one, 0) + 1
        if not counts:
            return
        await tx.execute(
            _WANT,
            ids=[self._new_id() for _ in counts],
            kinds=[kind for kind, _ in counts],
            object_ids=[object_id for _, object_id in counts],
            hints=list(counts.values()),
            hinted=hinted,
            now=now,
        )

    async def claimed(self, tx: Tx, refresh_id: UUID) -> Row | None:
        """Return the row as it is now, with the token of whoever claimed it and all hints until now."""
        return await tx.fetchrow(_CLAIMED, id=refresh_id)

    async def ours(self, tx: Tx, refresh_id: UUID, token: UUID) -> bool:
        """Whether the row is still this claim's; whoever claims it next waits until our commit before it applies."""
        await tx.execute(_LOCK, id=refresh_id)
        return bool(await tx.fetchval(_OURS, id=refresh_id, token=token))

    async def again(self, tx: Tx, refresh_id: UUID, answered: int, now: datetime) -> bool:
        """Ask again for an object that was hinted at since the fetch began; return whether it was."""
        return bool(await tx.execute(_AGAIN, id=refresh_id, answered=answered, now=now))

    async def forget(self, transaction: Transaction, before: datetime) -> int:
        """Delete what was settled before then."""
        return await forget(transaction, _FORGET, before=before)
