"""Tables and queries of schema `api`. Every query on a user's rows names the user."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared import retention
from shared.db import Row, Tx

_ADD_USER: Final = text(
    """
    insert into users (id, email, external_id, role, created_at) values (:id, :email, :external_id, :role, :now)
    on conflict do nothing returning id
    """
)
_ADD_SETTINGS: Final = text("insert into user_settings (user_id, updated_at) values (:id, :now)")
_LOCK_USER: Final = text("select id, role from users where id = :id for update")
_USER_BY_SUBJECT: Final = text("select id, role from users where external_id = :subject")
_ONBOARD: Final = text("update users set investing_style = :style, onboarded_at = :now where id = :id")

_SETTINGS: Final = text(
    """
    select s.user_id, s.timezone, s.alerts_enabled, s.min_score, s.min_premium_usd, u.investing_style
    from user_settings s join users u on u.id = s.user_id
    where s.user_id = any(cast(:ids as uuid[]))
    """
)
_CHANGE_SETTINGS: Final = text(
    """
    with u as (
        update users set investing_style = coalesce(cast(:investing_style as text), investing_style)
        where id = :id returning investing_style
    )
    update user_settings set
        timezone = coalesce(cast(:timezone as text), timezone),
        alerts_enabled = coalesce(cast(:alerts_enabled as boolean), alerts_enabled),
        min_score = coalesce(cast(:min_score as double precision), min_score),
        min_premium_usd = coalesce(cast(:min_premium_usd as numeric), min_premium_usd),
        updated_at = :now
    from u where user_id = :id
    returning user_id, timezone, alerts_enabled, min_score, min_premium_usd, u.investing_style
    """
)

_PUT_SUBSCRIPTION: Final = text(
    """
    insert into subscriptions (user_id, subscription_id, version, plan, status, entitlements, entitled_until)
    values (:user_id, :subscription_id, :version, :plan, :status, cast(:entitlements as text[]), :entitled_until)
    on conflict (user_id, subscription_id) do update set version = excluded.version, plan = excluded.plan,
        status = excluded.status, entitlements = excluded.entitlements, entitled_until = excluded.entitled_until
    where subscriptions.version < excluded.version
    """
)
_SUBSCRIPTIONS: Final = text(
    "select entitlements, entitled_until from subscriptions where user_id = :user_id and entitlements <> '{}'"
)

_ADD_KEY: Final = text(
    """
    insert into api_keys (id, user_id, name, role, digest, created_at)
    values (:id, :user_id, :name, :role, :digest, :now)
    """
)
_KEY: Final = text(
    """
    select k.user_id, k.digest, case when u.role = 'admin' then k.role else 'user' end as role
    from api_keys k join users u on u.id = k.user_id
    where k.id = :id and k.deleted_at is null
    """
)
_KEYS: Final = text(
    """
    select id, name, role, created_at from api_keys
    where user_id = :user_id and deleted_at is null order by created_at, id
    """
)
_DELETE_KEY: Final = text(
    "update api_keys set deleted_at = :now where id = :id and user_id = :user_id and deleted_at is null"
)

_WATCH: Final = text(
    """
    insert into watchlist (user_id, symbol, added_at)
    select :user_id, s, :now from unnest(cast(:symbols as text[])) s
    on conflict do nothing returning symbol
    """
)
_COUNT_WATCHED: Final = text("select count(*) from watchlist where user_id = :user_id")
_KEEP_STOCK_SETTINGS: Final = text(
    """
    insert into stock_settings (user_id, symbol, updated_at)
    select :user_id, s, :now from unnest(cast(:symbols as text[])) s
    on conflict do nothing
    """
)
_STOCKS_THAT_ALERT: Final = text(
    """
    select symbol, alerts_enabled from stock_settings
    where user_id = :user_id and symbol = any(cast(:symbols as text[])) order by symbol
    """
)
_UNWATCH: Final = text("delete from watchlist where user_id = :user_id and symbol = :symbol")
_WATCHED: Final = text(
    """
    select w.symbol, w.added_at, s.alerts_enabled, s.note, s.last_alert_at
    from watchlist w join stock_settings s using (user_id, symbol)
    where w.user_id = :user_id order by w.symbol
    """
)
_CHANGE_STOCK: Final = text(
    """
    update stock_settings s set
        alerts_enabled = coalesce(cast(:alerts_enabled as boolean), s.alerts_enabled),
        note = coalesce(cast(:note as text), s.note),
        updated_at = :now
    from watchlist w
    where w.user_id = s.user_id and w.symbol = s.symbol and s.user_id = :user_id and s.symbol = :symbol
    returning s.symbol, w.added_at, s.alerts_enabled, s.note, s.last_alert_at
    """
)
_END_SETTINGS: Final = text(
    """
    update stock_settings_history h set until_at = greatest(h.from_at, :now)
    from stock_settings s left join watchlist w using (user_id, symbol)
    where s.user_id = h.user_id and s.symbol = h.symbol and h.until_at is null
      and h.user_id = :user_id and h.symbol = any(cast(:symbols as text[]))
      and (w.symbol is null or (h.alerts_enabled, h.note) is distinct from (s.alerts_enabled, s.note))
    """
)
_BEGIN_SETTINGS: Final = text(
    """
    insert into stock_settings_history (user_id, symbol, alerts_enabled, note, from_at)
    select user_id, symbol, s.alerts_enabled, s.note, :now
    from watchlist join stock_settings s using (user_id, symbol)
    where user_id = :user_id and symbol = any(cast(:symbols as text[]))
    on conflict (user_id, symbol) where until_at is null do nothing
    """
)
_SETTINGS_HISTORY: Final = text(
    """
    select id, alerts_enabled, note, from_at, until_at from stock_settings_history
    where user_id = :user_id and symbol = :symbol and (cast(:before as bigint) is null or id < :before)
    order by id desc limit :limit
    """
)
_ALERTED: Final = text(
    """
    update stock_settings set last_alert_at = greatest(last_alert_at, :at)
    where user_id = :user_id and symbol = :symbol
    """
)

_AUDIT: Final = text(
    """
    insert into audit_log (id, service, actor, action, subject, at, request_id, details)
    values (:id, :service, :actor, :action, :subject, :at, :request_id, :details)
    on conflict (id) do nothing
    """
)
_AUDITED: Final = text(
    """
    select id, service, actor, action, subject, at, request_id, details from audit_log
    where (cast(:actor as text) is null or actor = :actor)
      and (cast(:action as text) is null or action = :action)
      and (cast(:subject as text) is null or subject = :subject)
      and (cast(:before_at as timestamptz) is null or (at, id) < (:before_at, cast(:before_id as uuid)))
    order by at desc, id desc limit :limit
    """
)
_FORGET_BUCKETS: Final = retention.slice_of("rate_buckets", "updated_at < :since")


async def add_user(tx: Tx, *, id: UUID, email: str, external_id: str | None, role: str, now: datetime) -> bool:  # noqa: A002 - column
    """Add a user with default settings; False when the address or the external id is taken."""
    if await tx.fetchval(_ADD_USER, id=id, email=email, external_id=external_id, role=role, now=now) is None:
        return False
    await tx.execute(_ADD_SETTINGS, id=id, now=now)
    return True


async def lock_user(tx: Tx, user_id: UUID) -> Row | None:
    """Return the user's id and role, and keep other transactions from changing what hangs on it."""
    return await tx.fetchrow(_LOCK_USER, id=user_id)


async def user_by_subject(tx: Tx, subject: str) -> Row | None:
    """Return the user who signed up with a foreign token of this subject.

    Never by our own ids: those stand in URLs, and an issuer may let people choose their subject.
    """
    return await tx.fetchrow(_USER_BY_SUBJECT, subject=subject)


async def onboard(tx: Tx, user_id: UUID, style: str, now: datetime) -> None:
    """Record how the user invests."""
    await tx.execute(_ONBOARD, id=user_id, style=style, now=now)


async def settings(tx: Tx, user_ids: Sequence[UUID]) -> list[Row]:
    """Return the settings of many users at once."""
    return await tx.fetch(_SETTINGS, ids=user_ids)


async def change_settings(tx: Tx, user_id: UUID, changes: dict[str, Any], now: datetime) -> Row | None:
    """Change what `changes` names; return all settings."""
    names = ("timezone", "alerts_enabled", "min_score", "min_premium_usd", "investing_style")
    return await tx.fetchrow(_CHANGE_SETTINGS, id=user_id, now=now, **{name: changes.get(name) for name in names})


async def add_key(tx: Tx, *, id: UUID, user_id: UUID, name: str, role: str, digest: bytes, now: datetime) -> None:  # noqa: A002 - column
    """Add an API key."""
    await tx.execute(_ADD_KEY, id=id, user_id=user_id, name=name, role=role, digest=digest, now=now)


async def key(tx: Tx, key_id: UUID) -> Row | None:
    """Return a live key's user, digest and effective role, which is never above the user's."""
    return await tx.fetchrow(_KEY, id=key_id)


async def keys(tx: Tx, user_id: UUID) -> list[Row]:
    """Return the user's live keys, oldest first."""
    return await tx.fetch(_KEYS, user_id=user_id)


async def delete_key(tx: Tx, user_id: UUID, key_id: UUID, now: datetime) -> bool:
    """End a key; False when the user has no such live key."""
    return await tx.execute(_DELETE_KEY, id=key_id, user_id=user_id, now=now) > 0


async def watch(tx: Tx, user_id: UUID, symbols: Sequence[str], now: datetime) -> dict[str, bool]:
    """Watch symbols; return those that were not watched, with whether they alert: earlier settings apply again."""
    added = [row["symbol"] for row in await tx.fetch(_WATCH, user_id=user_id, symbols=symbols, now=now)]
    await tx.execute(_KEEP_STOCK_SETTINGS, user_id=user_id, symbols=symbols, now=now)
    await _note_settings(tx, user_id, added, now)
    rows = await tx.fetch(_STOCKS_THAT_ALERT, user_id=user_id, symbols=added)
    return {row["symbol"]: row["alerts_enabled"] for row in rows}


async def count_watched(tx: Tx, user_id: UUID) -> int:
    """Return how many symbols the user watches."""
    return await tx.fetchval(_COUNT_WATCHED, user_id=user_id)


async def unwatch(tx: Tx, user_id: UUID, symbol: str, now: datetime) -> bool:
    """Stop watching; False when the symbol was not watched. Its settings stay, and so does their history."""
    if not await tx.execute(_UNWATCH, user_id=user_id, symbol=symbol):
        return False
    await _note_settings(tx, user_id, [symbol], now)
    return True


async def watched(tx: Tx, user_id: UUID) -> list[Row]:
    """Return the watchlist by symbol."""
    return await tx.fetch(_WATCHED, user_id=user_id)


async def change_stock(
    tx: Tx, user_id: UUID, symbol: str, *, alerts_enabled: bool | None, note: str | None, now: datetime
) -> Row | None:
    """Change the settings of a watched stock; None when it is not watched."""
    row = await tx.fetchrow(
        _CHANGE_STOCK, user_id=user_id, symbol=symbol, alerts_enabled=alerts_enabled, note=note, now=now
    )
    await _note_settings(tx, user_id, [symbol], now)
    return row


async def _note_settings(tx: Tx, user_id: UUID, symbols: Sequence[str], now: datetime) -> None:
    """Write into the history what differs from its end; whoever calls holds the user's lock."""
    await tx.execute(_END_SETTINGS, user_id=user_id, symbols=symbols, now=now)
    await tx.execute(_BEGIN_SETTINGS, user_id=user_id, symbols=symbols, now=now)


async def settings_history(tx: Tx, user_id: UUID, symbol: str, *, before: int | None, limit: int) -> list[Row]:
    """Return the settings that held for a stock while it was watched, latest first, from before an id."""
    return await tx.fetch(_SETTINGS_HISTORY, user_id=user_id, symbol=symbol, before=before, limit=limit)


async def alerted(tx: Tx, rows: Sequence[tuple[UUID, str, datetime]]) -> None:
    """Record when each (user, symbol) last alerted."""
    await tx.execute_many(_ALERTED, [{"user_id": user, "symbol": symbol, "at": at} for user, symbol, at in rows])


async def put_subscriptions(tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
    """Keep subscriptions as they were told; one that is older than what is known changes nothing."""
    await tx.execute_many(_PUT_SUBSCRIPTION, rows)


async def subscriptions(tx: Tx, user_id: UUID) -> list[Row]:
    """Return what a user's subscriptions allow, and until when."""
    return await tx.fetch(_SUBSCRIPTIONS, user_id=user_id)


async def add_audit(tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
    """Append to the audit log; what is there stays as it is."""
    await tx.execute_many(_AUDIT, rows)


async def audited(
    tx: Tx,
    *,
    actor: str | None,
    action: str | None,
    subject: str | None,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Row]:
    """Return the audit log, latest first, from before a place in it."""
    before_at, before_id = before or (None, None)
    return await tx.fetch(
        _AUDITED, actor=actor, action=action, subject=subject, before_at=before_at, before_id=before_id, limit=limit
    )


async def forget_buckets(transaction: retention.Transaction, since: datetime) -> int:
    """Drop rate buckets that nobody touched since; they would be full again."""
    return await retention.forget(transaction, _FORGET_BUCKETS, since=since)
