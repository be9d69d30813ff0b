"""Groups, their bundles, which are claimed rows (shared.work), and what is in them; kept for a week after their end.

What would surprise you: whoever fills or empties a group locks its row first. So what rings while a bundle is being
told is in it, or in the next one. Items refer to no bundle by a foreign key: its lock would meet the worker's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from sqlalchemy import text

from services.alerts.domain.grouping import REPEATS_FOR, Grouping
from services.alerts.domain.routing import ACTIVITY
from shared import retention
from shared.db import Row, Tx

KEEP: Final = timedelta(days=7)

_MAKE: Final = text("""
    insert into groups (id, user_id, kind, key, touched_at)
    select r.id, r.user_id, r.kind, r.key, cast(:now as timestamptz)
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, user_id uuid, kind text, key text) order by r.id
    on conflict (id) do nothing""")
_LOCK: Final = text("select * from groups where id = any(cast(:ids as uuid[])) order by id for update")
_FILL: Final = text("""
    update groups set bundle_id = r.bundle_id, bundles = r.number, touched_at = :now
    from unnest(cast(:ids as uuid[]), cast(:bundle_ids as uuid[]), cast(:numbers as int[]))
        as r (id, bundle_id, number) where groups.id = r.id""")
_FLUSHED: Final = text("""
    update groups set bundle_id = case when bundle_id = :bundle_id then null else bundle_id end,
        flushed_at = :flushed_at, touched_at = :now where id = :id""")
_ADD: Final = text("""
    insert into bundles (id, group_id, number, user_id, interval_s, repeat_s, again_of, due_at, created_at)
    select r.id, r.group_id, r.number, r.user_id, r.interval_s, r.repeat_s, r.again_of, r.due_at,
        cast(:now as timestamptz)
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, group_id uuid, number int, user_id uuid,
        interval_s int, repeat_s int, again_of uuid, due_at timestamptz)
    on conflict (id) do nothing""")
_ADD_ITEMS: Final = text("""
    insert into bundle_items as known (bundle_id, subject_id, alert_id, session, ring, bulk, notice_id,
        joined_at)
    select r.bundle_id, r.subject_id, r.alert_id, r.session, r.ring, coalesce(r.bulk, false), r.notice_id,
        cast(:now as timestamptz)
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (bundle_id uuid, subject_id uuid, alert_id uuid, session date,
        ring int, bulk boolean, notice_id uuid)
    on conflict (bundle_id, subject_id) do update set ring = greatest(known.ring, excluded.ring)""")
_ITEMS: Final = text(f"""
    select i.*, a.user_id, '{ACTIVITY}' as kind, a.symbol, a.rule_id, cast(null as uuid) as account_id, a.title,
        a.acknowledged_at, a.created_at, a.notifications
    from bundle_items i join alerts a on a.alert_id = i.alert_id and a.session = i.session
    where i.bundle_id = :bundle_id
    union all
    select i.*, n.user_id, n.kind, n.symbol, n.rule_id, n.account_id, n.title, n.acknowledged_at, n.created_at, null
    from bundle_items i join notices n using (notice_id)
    where i.bundle_id = :bundle_id
    order by created_at, title, subject_id""")  # noqa: S608 - our own word
_SEEN: Final = text("""
    select exists (select from bundles b join notices n on n.notice_id = b.id
        where (b.id = :first or b.again_of = :first) and n.acknowledged_at is not null)""")
_BEGUN: Final = text("select created_at from bundles where id = :id")
_FORGET: Final = retention.slice_of("bundles", "settled_at < :before")
_FORGET_ITEMS: Final = retention.slice_of(
    "bundle_items", "joined_at < :before and not exists (select from bundles b where b.id = bundle_id)"
)
_FORGET_GROUPS: Final = retention.slice_of("groups", "touched_at < :before and bundle_id is null")


@dataclass(frozen=True, slots=True)
class Joining:
    """What joins a group: what rings, and as whose."""

    user_id: UUID
    kind: str
    grouping: Grouping
    key: str
    item: dict[str, Any]

    @property
    def group_id(self) -> UUID:
        """The group's id."""
        return uuid5(self.user_id, f"group/{self.kind}/{self.grouping.by}/{self.key}")


class GroupStore:
    """Reads and writes groups, always inside the caller's transaction."""

    async def join(self, tx: Tx, joining: Sequence[Joining], now: datetime) -> None:
        """Put what rings into the bundles that are being filled, new ones where there are none."""
        if not joining:
            return
        first: dict[UUID, Joining] = {}
        for one in joining:
            first.setdefault(one.group_id, one)
        made = [
            {"id": group_id, "user_id": one.user_id, "kind": one.kind, "key": one.key}
            for group_id, one in first.items()
        ]
        await tx.execute(_MAKE, rows=made, now=now)
        open_: dict[UUID, UUID] = {}
        bundles: list[dict[str, Any]] = []
        for group in await tx.fetch(_LOCK, ids=list(first)):
            one, number = first[group["id"]], group["bundles"] + 1
            if group["bundle_id"] is None:
                due_at = one.grouping.due_at(group["flushed_at"], now)
                pace = {"interval_s": one.grouping.interval_s, "repeat_s": one.grouping.repeat_s}
                bundles.append(_bundle(group, number, due_at, **pace))
            open_[group["id"]] = group["bundle_id"] or bundle_id(group["id"], number)
        await tx.execute(_ADD, rows=bundles, now=now)
        await tx.execute(
            _FILL,
            ids=[one["group_id"] for one in bundles],
            bundle_ids=[one["id"] for one in bundles],
            numbers=[one["number"] for one in bundles],
            now=now,
        )
        items: dict[tuple[UUID, UUID], dict[str, Any]] = {}
        for one in joining:
            place = open_[one.group_id], one.item["subject_id"]
            items[place] = one.item | {"bundle_id": place[0]}  # of two rings of an alert the later one
        await tx.execute(_ADD_ITEMS, rows=list(items.values()), now=now)

    async def group(self, tx: Tx, group_id: UUID) -> Row | None:
        """Return a group, locked: nothing joins it until we end."""
        return await tx.fetchrow(_LOCK, ids=[group_id])

    async def items(self, tx: Tx, wanted: UUID) -> list[Row]:
        """Return what is in a bundle as it is now, oldest first."""
        return await tx.fetch(_ITEMS, bundle_id=wanted)

    async def flushed(self, tx: Tx, bundle: Row, flushed_at: datetime | None, now: datetime) -> None:
        """Keep that a bundle is filled no more; `flushed_at` is when its group was last told."""
        await tx.execute(_FLUSHED, id=bundle["group_id"], bundle_id=bundle["id"], flushed_at=flushed_at, now=now)

    async def seen(self, tx: Tx, first: UUID) -> bool:
        """Whether a user has acknowledged a group's message, or one that repeated it."""
        return bool(await tx.fetchval(_SEEN, first=first))

    async def repeat(self, tx: Tx, group: Row, bundle: Row, now: datetime) -> None:
        """Tell a bundle again after its time, unless its first message is a day old by then."""
        first = bundle["again_of"] or bundle["id"]
        due_at = now + timedelta(seconds=bundle["repeat_s"])
        begun: datetime | None = await tx.fetchval(_BEGUN, id=first)
        if begun is None or due_at > begun + REPEATS_FOR:
            return
        number = group["bundles"] + 1
        filled = None if group["bundle_id"] == bundle["id"] else group["bundle_id"]
        pace = {"interval_s": bundle["interval_s"], "repeat_s": bundle["repeat_s"]}
        again = _bundle(group, number, due_at, again_of=first, **pace)
        await tx.execute(_ADD, rows=[again], now=now)
        await tx.execute(_FILL, ids=[group["id"]], bundle_ids=[filled], numbers=[number], now=now)

    async def forget(self, transaction: retention.Transaction, now: datetime) -> None:
        """Delete what ended a week ago."""
        await retention.forget(transaction, _FORGET, before=now - KEEP)
        await retention.forget(transaction, _FORGET_ITEMS, before=now - KEEP)
        await retention.forget(transaction, _FORGET_GROUPS, before=now - KEEP)


def bundle_id(group_id: UUID, number: int) -> UUID:
    """Return the id of a group's bundle, which its message has too."""
    return uuid5(group_id, f"bundle/{number}")


def _bundle(group: Row, number: int, due_at: datetime, **pace: Any) -> dict[str, Any]:
    """Return a bundle's row; `pace` is interval_s, repeat_s and the bundle that it is a repetition of."""
    return {
        "id": bundle_id(group["id"], number),
        "group_id": group["id"],
        "number": number,
        "user_id": group["user_id"],
        "due_at": due_at,
        **pace,
    }
