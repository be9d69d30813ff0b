"""Delivery rows of alerts and notices: where and when what rings goes. `service/routing.py` alone adds them.

What would surprise you: `planned_at` is set for a delivery that waits; one that goes at once has none.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.grouping import Grouping
from services.alerts.domain.routing import ACTIVITY, TEST, Ring, Used, Wishes, hour_of
from services.alerts.store.inhibitions import FIRING, firing_of
from services.alerts.store.preferences import groupings_of, wishes_of
from services.alerts.store.silences import silences_of
from shared.contracts.alerts import Channel
from shared.db import Row, Tx

_AUDIENCE: Final = text(f"""
    select c.user_id, c.channel, c.lane, p.user_id is not null as wishes,
        coalesce(p.timezone, u.timezone) as timezone, p.quiet_start, p.quiet_end, p.choices, p.caps, p.turns,
        p.escalations, p.inhibitions, p.groupings, s.silences,
        {FIRING} as firing
    from channels c
    left join preferences p on p.user_id = c.user_id
    left join users u on u.user_id = p.user_id
    left join (
        select user_id, jsonb_agg(to_jsonb(one)) as silences from silences one
        where user_id = any(cast(:user_ids as uuid[])) and starts_at <= :now and ends_at > :now group by user_id
    ) s on s.user_id = c.user_id
    where c.user_id = any(cast(:user_ids as uuid[])) and c.enabled and c.channel = any(cast(:offered as text[]))
    order by c.user_id, c.channel, c.lane""")  # noqa: S608 - our own words
_LOCK: Final = text("""
    select user_id from preferences where user_id = any(cast(:user_ids as uuid[])) order by user_id for update""")
_USED: Final = text(f"""
    select user_id, kind, channel, date_trunc('hour', planned, 'UTC') as hour, count(*) as n
    from (
        select user_id, '{ACTIVITY}' as kind, channel, coalesce(planned_at, created_at) as planned
        from deliveries
        where user_id = any(cast(:user_ids as uuid[])) and created_at >= :since
          and status not in ('suppressed', 'digested')
        union all
        select d.user_id, n.kind, d.channel, coalesce(d.planned_at, d.created_at)
        from notice_deliveries d join notices n using (notice_id)
        where d.user_id = any(cast(:user_ids as uuid[])) and d.created_at >= :since
          and d.status not in ('suppressed', 'digested')
    ) told where planned >= :hour group by 1, 2, 3, 4""")  # noqa: S608 - our own word
# Very many deliveries have all but these in common: it is sent once, and each row names what it shares (`alike`).
_OWN: Final = ("id", "alert_id", "user_id", "lane")
_SHARED: Final = (
    *("session", "channel", "ring", "bulk", "status", "due_at"),
    *("planned_at", "reason", "because", "escalated", "settled_at"),
)
_shared: Final = itemgetter(*_SHARED)
_ADD_OF_ALERTS: Final = text("""
    insert into deliveries (id, session, alert_id, user_id, channel, lane, ring, bulk, status, due_at, planned_at,
        last_error, because, escalated, created_at, settled_at)
    select r.id, s.session, r.alert_id, r.user_id, s.channel, r.lane, s.ring, s.bulk, s.status, s.due_at, s.planned_at,
        s.reason, s.because, s.escalated, cast(:now as timestamptz), s.settled_at
    from unnest(cast(:id as uuid[]), cast(:alert_id as uuid[]), cast(:user_id as uuid[]), cast(:lane as text[]),
            cast(:alike as int[]))
        as r (id, alert_id, user_id, lane, alike)
    join unnest(cast(:session as date[]), cast(:channel as text[]), cast(:ring as int[]), cast(:bulk as boolean[]),
            cast(:status as text[]), cast(:due_at as timestamptz[]), cast(:planned_at as timestamptz[]),
            cast(:reason as text[]), cast(:because as text[]), cast(:escalated as boolean[]),
            cast(:settled_at as timestamptz[])) with ordinality
        as s (session, channel, ring, bulk, status, due_at, planned_at, reason, because, escalated, settled_at, n)
        on s.n = r.alike
    on conflict (id, session) do nothing returning id""")
_ADD_OF_NOTICES: Final = text("""
    insert into notice_deliveries (id, notice_id, user_id, channel, lane, status, due_at, planned_at,
        last_error, because, escalated, created_at, settled_at)
    select r.id, r.notice_id, r.user_id, r.channel, r.lane, r.status, r.due_at, r.planned_at, r.reason, r.because,
        coalesce(r.escalated, false), cast(:now as timestamptz), r.settled_at
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, notice_id uuid, user_id uuid, channel text,
        lane text, status text, due_at timestamptz, planned_at timestamptz, reason text, because text,
        escalated boolean, settled_at timestamptz)
    on conflict (id) do nothing""")
_LOG: Final = text(f"""
    select * from (
        (select d.id, d.alert_id, cast(null as uuid) as notice_id, '{ACTIVITY}' as kind, a.title, d.channel, d.status,
            d.attempts, d.last_error, d.created_at, d.due_at, d.settled_at, d.template, d.delivered_at, d.opened_at,
            d.clicked_at, d.because
        from deliveries d left join alerts a using (alert_id, session)
        where d.user_id = :user_id
          and (cast(:before_at as timestamptz) is null or (d.created_at, d.id) < (:before_at, :before_id))
        order by d.created_at desc, d.id desc limit :limit)
        union all
        (select d.id, null, d.notice_id, n.kind, n.title, d.channel, d.status,
            d.attempts, d.last_error, d.created_at, d.due_at, d.settled_at, d.template, d.delivered_at, d.opened_at,
            d.clicked_at, d.because
        from notice_deliveries d join notices n using (notice_id)
        where d.user_id = :user_id
          and (cast(:before_at as timestamptz) is null or (d.created_at, d.id) < (:before_at, :before_id))
        order by d.created_at desc, d.id desc limit :limit)
    ) told order by created_at desc, id desc limit :limit""")  # noqa: S608 - our own word

_RANG: Final = text(f"""
    select d.id, '{ACTIVITY}' as kind, a.symbol, a.rule_id, cast(null as uuid) as account_id
    from deliveries d join alerts a using (alert_id, session)
    where d.id = any(cast(:ids as uuid[])) and d.session = any(cast(:sessions as date[])) and d.ring = a.notifications
    union all
    select d.id, n.kind, n.symbol, n.rule_id, n.account_id from notice_deliveries d join notices n using (notice_id)
    where d.id = any(cast(:ids as uuid[])) and n.kind <> '{TEST}'""")  # noqa: S608 - our own words

_NOTHING_SAID: Final = Wishes()
_LONGEST_WAIT: Final = timedelta(hours=27)
"""From a delivery's making to its time: quiet hours are shorter than a day, a changed clock included."""


def ring_of(row: Row) -> Ring:
    """Return what rang, of a row that says so."""
    return Ring(row["kind"], row["symbol"], row["rule_id"], row["account_id"])


@dataclass(frozen=True, slots=True)
class Audience:
    """One user's wishes, and the targets that are enabled and offered here."""

    wishes: Wishes
    targets: list[Row]
    groupings: Sequence[Grouping] = ()


class DeliveryStore:
    """Reads where users want to be told and adds delivery rows, always inside the caller's transaction."""

    async def audience(
        self, tx: Tx, user_ids: Sequence[UUID], offered: Sequence[Channel], now: datetime
    ) -> dict[UUID, Audience]:
        """Return the users that have a target, with the silences that are running."""
        found: dict[UUID, Audience] = {}
        for row in await tx.fetch(_AUDIENCE, user_ids=list(user_ids), offered=list(offered), now=now):
            user_id: UUID = row["user_id"]
            if user_id not in found:
                wishes = wishes_of(row) if row["wishes"] else _NOTHING_SAID
                if row["silences"] is not None:
                    wishes = replace(wishes, silences=silences_of(row["silences"]))
                if row["firing"] is not None:
                    wishes = replace(wishes, firing=firing_of(row["firing"]))
                found[user_id] = Audience(wishes, [], groupings_of(row["groupings"]))
            found[user_id].targets.append(row)
        return found

    async def used(self, tx: Tx, user_ids: Sequence[UUID], now: datetime) -> Mapping[UUID, Used]:
        """Return what users are told in this hour and the next ones; others wait with theirs until we end."""
        await tx.fetch(_LOCK, user_ids=list(user_ids))
        found: dict[UUID, Used] = defaultdict(Counter)
        rows = await tx.fetch(_USED, user_ids=list(user_ids), since=now - _LONGEST_WAIT, hour=hour_of(now))
        for row in rows:
            found[row["user_id"]][row["kind"], row["channel"], row["hour"]] = row["n"]
        return found

    async def add_of_alerts(self, tx: Tx, rows: Sequence[dict[str, Any]], now: datetime) -> set[UUID]:
        """Add deliveries of alerts, those that are there left as they are; return the ids of the new ones."""
        if not rows:
            return set()
        numbers: dict[tuple[Any, ...], int] = {}
        alike = [numbers.setdefault(_shared(row), len(numbers) + 1) for row in rows]
        own = {name: [row[name] for row in rows] for name in _OWN}
        shared = dict(zip(_SHARED, map(list, zip(*numbers, strict=True)), strict=True))
        return {row["id"] for row in await tx.fetch(_ADD_OF_ALERTS, now=now, alike=alike, **own, **shared)}

    async def add_of_notices(self, tx: Tx, rows: Sequence[dict[str, Any]], now: datetime) -> int:
        """Add deliveries of notices, those that are there left as they are; return how many are new."""
        return await tx.execute(_ADD_OF_NOTICES, rows=list(rows), now=now) if rows else 0

    async def rang(self, tx: Tx, failed: Sequence[Row]) -> dict[UUID, Ring]:
        """Return what deliveries were of, by delivery: no tests, and nothing that has rung again since."""
        sessions = [row["session"] for row in failed if "session" in row]
        rows = await tx.fetch(_RANG, ids=[row["id"] for row in failed], sessions=sessions)
        return {row["id"]: ring_of(row) for row in rows}

    async def log(self, tx: Tx, user_id: UUID, limit: int, before: tuple[datetime, UUID] | None) -> list[Row]:
        """Return a user's deliveries of alerts and notices, newest first."""
        at, delivery_id = before or (None, None)
        return await tx.fetch(_LOG, user_id=user_id, limit=limit, before_at=at, before_id=delivery_id)
