"""What users want to be told, where and when: one row a user, none for who has said nothing."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.routing import Cap, Quiet, Wishes
from shared.db import Row, Tx

_GET: Final = text("select * from preferences where user_id = :user_id")
_USERS_TIMEZONE: Final = text("select timezone from users where user_id = :user_id")
_PUT: Final = text("""
    insert into preferences (user_id, timezone, locale, quiet_start, quiet_end, choices, caps, updated_at)
    values (:user_id, :timezone, :locale, :quiet_start, :quiet_end, :choices, :caps, :now)
    on conflict (user_id) do update set timezone = excluded.timezone, locale = excluded.locale,
        quiet_start = excluded.quiet_start, quiet_end = excluded.quiet_end, choices = excluded.choices,
        caps = excluded.caps, updated_at = excluded.updated_at""")


class PreferenceStore:
    """Reads and writes preferences, always inside the caller's transaction."""

    async def get(self, tx: Tx, user_id: UUID) -> Row | None:
        """Return a user's row, None for who has said nothing."""
        return await tx.fetchrow(_GET, user_id=user_id)

    async def users_timezone(self, tx: Tx, user_id: UUID) -> str | None:
        """Return the time zone of the user's settings, as far as it is known here."""
        return await tx.fetchval(_USERS_TIMEZONE, user_id=user_id)

    async def put(self, tx: Tx, user_id: UUID, fields: dict[str, Any], now: datetime) -> None:
        """Replace what a user has said."""
        await tx.execute(_PUT, user_id=user_id, now=now, **fields)


def wishes_of(row: Row) -> Wishes:
    """Return what a row of preferences says, with `timezone` the one that holds."""
    quiet = Quiet(row["quiet_start"], row["quiet_end"]) if row["quiet_start"] is not None else None
    return Wishes(
        timezone=row["timezone"] or "UTC",
        quiet=quiet,
        choices={(one["kind"], one["channel"]): one["choice"] for one in row["choices"]},
        caps=tuple(Cap(one["kind"], one["channel"], one["per_hour"]) for one in row["caps"]),
    )
