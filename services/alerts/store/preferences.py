"""What users want to be told, where and when: one row a user, none for who has said nothing."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.grouping import Grouping
from services.alerts.domain.periods import zone_of
from services.alerts.domain.routing import Cap, Choice, Quiet, Wishes
from services.alerts.domain.words import LOCALE, TIMEZONE, Words
from services.alerts.store.inhibitions import inhibitions_of
from shared.contracts.alerts import Channel
from shared.db import Row, Tx

_GET: Final = text("select * from preferences where user_id = :user_id")
_USERS_TIMEZONE: Final = text("select timezone from users where user_id = :user_id")
_PUT: Final = text("""
    insert into preferences (user_id, timezone, locale, quiet_start, quiet_end, choices, caps, turns, escalations,
        inhibitions, groupings, updated_at)
    values (:user_id, :timezone, :locale, :quiet_start, :quiet_end, :choices, :caps, :turns, :escalations,
        :inhibitions, :groupings, :now)
    on conflict (user_id) do update set timezone = excluded.timezone, locale = excluded.locale,
        quiet_start = excluded.quiet_start, quiet_end = excluded.quiet_end, choices = excluded.choices,
        caps = excluded.caps, turns = excluded.turns, escalations = excluded.escalations,
        inhibitions = excluded.inhibitions, groupings = excluded.groupings,
        updated_at = excluded.updated_at""")

_WORDS: Final = text("""
    select one.user_id, coalesce(p.timezone, u.timezone) as timezone, p.locale
    from unnest(cast(:user_ids as uuid[])) one (user_id)
    left join preferences p on p.user_id = one.user_id
    left join users u on u.user_id = one.user_id""")

_SWITCH_OFF: Final = text("""
    insert into preferences as p (user_id, choices, caps, updated_at)
    select user_id, cast(:off as jsonb), '[]', :now from channels
    where user_id = :user_id and channel = :channel and lane = :lane
    on conflict (user_id) do update set updated_at = excluded.updated_at, choices = excluded.choices || (
        select coalesce(jsonb_agg(one), '[]') from jsonb_array_elements(p.choices) one
        where not (one ->> 'channel' = :channel and one ->> 'kind' = any(cast(:kinds as text[]))))
    where not p.choices @> excluded.choices""")


class PreferenceStore:
    """Reads and writes preferences, always inside the caller's transaction."""

    async def get(self, tx: Tx, user_id: UUID) -> Row | None:
        """Return a user's row, None for who has said nothing."""
        return await tx.fetchrow(_GET, user_id=user_id)

    async def users_timezone(self, tx: Tx, user_id: UUID) -> str | None:
        """Return the time zone of the user's settings, as far as it is known here."""
        return await tx.fetchval(_USERS_TIMEZONE, user_id=user_id)

    async def words(self, tx: Tx, user_ids: Collection[UUID]) -> dict[UUID, Words]:
        """Return how each user reads numbers and times."""
        rows = await tx.fetch(_WORDS, user_ids=sorted(user_ids))
        return {row["user_id"]: words_of(row) for row in rows}

    async def put(self, tx: Tx, user_id: UUID, fields: dict[str, Any], now: datetime) -> None:
        """Replace what a user has said."""
        await tx.execute(_PUT, user_id=user_id, now=now, **fields)

    async def switch_off(
        self, tx: Tx, user_id: UUID, place: tuple[Channel, str], kinds: Sequence[str], now: datetime
    ) -> bool:
        """Tell a user no more of some kinds on a channel; False when it is so, and for a lane that is not theirs.

        `place` is (channel, lane).
        """
        channel, lane = place
        off = [{"kind": kind, "channel": channel, "choice": "off"} for kind in kinds]
        found = await tx.execute(
            _SWITCH_OFF, user_id=user_id, channel=channel, lane=lane, kinds=list(kinds), off=off, now=now
        )
        return bool(found)


def words_of(row: Row) -> Words:
    """Return how the reader of a row reads; what is not known is the default."""
    return Words(row["locale"] or LOCALE, row["timezone"] or TIMEZONE)


def choices_of(said: Sequence[dict[str, Any]] | None) -> dict[tuple[str, str], Choice]:
    """Return the choices of a row of preferences, by kind and channel."""
    return {(one["kind"], one["channel"]): one["choice"] for one in said or ()}


def groupings_of(said: Sequence[dict[str, Any]] | None) -> tuple[Grouping, ...]:
    """Return the groupings of a row of preferences."""
    return tuple(
        Grouping(one["kind"], one["by"], one["wait_s"], one["interval_s"], one["repeat_s"]) for one in said or ()
    )


def wishes_of(row: Row) -> Wishes:
    """Return what a row of preferences says, with `timezone` the one that holds."""
    quiet = Quiet(row["quiet_start"], row["quiet_end"]) if row["quiet_start"] is not None else None
    return Wishes(
        timezone=zone_of(row["timezone"] or "UTC"),
        quiet=quiet,
        choices=choices_of(row["choices"]),
        caps=tuple(Cap(one["kind"], one["channel"], one["per_hour"]) for one in row["caps"]),
        inhibitions=inhibitions_of(row["inhibitions"]),
        turns=tuple(row["turns"]),
        escalations={one["kind"]: one["after_minutes"] for one in row["escalations"]},
    )
