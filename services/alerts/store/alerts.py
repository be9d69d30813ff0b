"""Contracts, alerts, and how their deliveries go."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Literal
from uuid import UUID

import msgspec
from sqlalchemy import text

from services.alerts.domain.matching import Change, Known, Line, Stock, Summary, watchlist_rule_id
from services.alerts.domain.text import title
from shared import retention
from shared.db import Row, Tx

_CONTRACTS = text("""
    select symbol, session, line from contracts
    where (symbol, session) in (
        select * from unnest(cast(:symbols as text[]), cast(:sessions as date[])))""")
_KEEP_CONTRACTS = text("""
    insert into contracts (symbol, session, contract, line)
    select * from jsonb_to_recordset(cast(:rows as jsonb))
        as r (symbol text, session date, contract text, line jsonb)
    on conflict (symbol, session, contract) do update set line = excluded.line""")
_FORGET_CONTRACTS = retention.slice_of("contracts", "session < :before")

_ALERTS_OF = text("""
    select alert_id, top_score, contract_count, premium_usd, best, simulated, notified_score, notifications
    from alerts where (symbol, session) in (
        select * from unnest(cast(:symbols as text[]), cast(:sessions as date[])))""")
_ALERTS_BY_ID = text("""
    select alert_id, top_score, contract_count, premium_usd, best, simulated, notified_score, notifications
    from alerts where session = :session and alert_id = any(cast(:ids as uuid[]))""")
_SAVE_ALERTS = text("""
    insert into alerts as a (alert_id, session, user_id, rule_id, rule_name, symbol, created_at, updated_at, as_of,
        source, delay_s, simulated, title, top_score, contract_count, premium_usd, best, notified_score,
        notifications)
    select r.alert_id, r.session, r.user_id, r.rule_id, r.rule_name, r.symbol, cast(:now as timestamptz), :now,
        r.as_of, r.source,
        r.delay_s, r.simulated, r.title, r.top_score, r.contract_count, r.premium_usd, r.best,
        r.notified_score, r.notifications
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (alert_id uuid, session date, user_id uuid, rule_id uuid,
        rule_name text, symbol text, as_of timestamptz, source text, delay_s float8, simulated boolean,
        title text, top_score float8, contract_count int, premium_usd numeric, best jsonb,
        notified_score float8, notifications int)
    on conflict (alert_id, session) do update set rule_name = excluded.rule_name,
        updated_at = excluded.updated_at, as_of = greatest(a.as_of, excluded.as_of), source = excluded.source,
        delay_s = excluded.delay_s, simulated = excluded.simulated, title = excluded.title,
        top_score = excluded.top_score, contract_count = excluded.contract_count,
        premium_usd = excluded.premium_usd, best = excluded.best, notified_score = excluded.notified_score,
        opened_at = case when excluded.notifications > a.notifications then null else a.opened_at end,
        acknowledged_at = case when excluded.notifications > a.notifications then null else a.acknowledged_at end,
        notifications = excluded.notifications""")
_DELIVERY = text("""
    select d.id, d.uncertain, d.user_id, d.alert_id, c.target, c.enabled,
        exists (select from deliveries l where l.alert_id = d.alert_id and l.session = d.session
            and l.channel = d.channel and l.lane = d.lane and l.ring > d.ring
            and l.status not in ('suppressed', 'digested')) as superseded,
        a.symbol, a.session, a.rule_name, a.as_of, a.delay_s, a.source, a.title, a.contract_count, a.premium_usd,
        a.best, a.simulated, coalesce(p.timezone, u.timezone) as timezone, p.locale
    from deliveries d
    join alerts a on a.alert_id = d.alert_id and a.session = d.session
    left join channels c on c.user_id = d.user_id and c.channel = d.channel and c.lane = d.lane
    left join preferences p on p.user_id = d.user_id
    left join users u on u.user_id = d.user_id
    where d.id = :id and d.session = :session""")
_DELIVERED = text("""
    update deliveries set provider_id = :provider_id where id = :id and session = :session""")
_DISABLE = text("""
    update channels set enabled = false, reason = :reason, updated_at = :now
    where user_id = :user_id and channel = :channel and lane = :lane and enabled""")
_FAIL_PENDING = text("""
    update deliveries set status = 'failed', last_error = :reason, settled_at = :now
    where id in (select id from deliveries where status = 'pending' and user_id = :user_id
        and channel = :channel and lane = :lane order by id for update)
    returning *""")

_PAGE = text("""
    select * from alerts where user_id = :user_id
      and (cast(:watchlist as boolean) is null or (rule_id = :watchlist_rule) = :watchlist)
      and (cast(:symbol as text) is null or symbol = :symbol)
      and (cast(:before_at as timestamptz) is null or (created_at, alert_id) < (:before_at, :before_id))
    order by created_at desc, alert_id desc limit :limit""")
_ONE = text("select * from alerts where user_id = :user_id and alert_id = :alert_id")
_DELIVERIES_OF = text("""
    select id, alert_id, channel, lane, status, attempts, due_at, settled_at, last_error, created_at from deliveries
    where alert_id = any(cast(:alert_ids as uuid[])) order by created_at, id""")
_COUNTS = text("""
    select count(*) as total, count(*) filter (where opened_at is null) as unopened
    from alerts where user_id = :user_id""")


class AlertsStore:
    """Reads and writes contracts, alerts and deliveries, always inside the caller's transaction."""

    async def contracts(self, tx: Tx, stocks: Sequence[Stock]) -> dict[Stock, dict[str, Line]]:
        """Return what is known of each stock's contracts in its session."""
        symbols, sessions = _columns(stocks)
        found: dict[Stock, dict[str, Line]] = {stock: {} for stock in stocks}
        for row in await tx.fetch(_CONTRACTS, symbols=symbols, sessions=sessions):
            line = msgspec.convert(row["line"], Line)
            found[row["symbol"], row["session"]][line.contract] = line
        return found

    async def keep_contracts(self, tx: Tx, changed: Mapping[Stock, Mapping[str, Line]]) -> None:
        """Write new and better sightings."""
        rows = [
            {"symbol": stock[0], "session": stock[1], "contract": line.contract, "line": msgspec.to_builtins(line)}
            for stock, lines in sorted(changed.items())
            for _, line in sorted(lines.items())
        ]
        if rows:
            await tx.execute(_KEEP_CONTRACTS, rows=rows)

    async def forget_contracts(self, transaction: retention.Transaction, before: date) -> int:
        """Delete the contracts of older sessions; return how many."""
        return await retention.forget(transaction, _FORGET_CONTRACTS, before=before)

    async def alerts_of(self, tx: Tx, stocks: Sequence[Stock]) -> dict[UUID, Known]:
        """Return what is recorded of the stocks' alerts, by alert."""
        symbols, sessions = _columns(stocks)
        return _known(await tx.fetch(_ALERTS_OF, symbols=symbols, sessions=sessions))

    async def alerts_by_id(self, tx: Tx, session: date, ids: Sequence[UUID]) -> dict[UUID, Known]:
        """Return what is recorded of some alerts of a session."""
        return _known(await tx.fetch(_ALERTS_BY_ID, session=session, ids=list(ids)))

    async def save_alerts(self, tx: Tx, changed: Sequence[Change], now: datetime) -> None:
        """Insert or update alerts."""
        rows = [
            {
                "alert_id": change.alert_id,
                "session": change.session,
                "user_id": change.rule.user_id,
                "rule_id": change.rule.rule_id,
                "rule_name": change.rule.name,
                "symbol": change.symbol,
                "as_of": change.as_of,
                "source": change.source,
                "delay_s": change.delay_s,
                "simulated": change.summary.simulated,
                "title": title(change.symbol, change.summary),
                "top_score": change.summary.top_score,
                "contract_count": change.summary.contract_count,
                "premium_usd": change.summary.premium_usd,
                "best": msgspec.to_builtins(change.summary.best),
                "notified_score": change.notified_score,
                "notifications": change.notifications,
            }
            for change in sorted(changed, key=lambda change: change.alert_id)
        ]
        await tx.execute(_SAVE_ALERTS, rows=rows, now=now)

    # Delivering

    async def delivery(self, tx: Tx, delivery_id: UUID, session: date) -> Row | None:
        """Return what one delivery needs: the alert as it is now, and the channel with its target."""
        return await tx.fetchrow(_DELIVERY, id=delivery_id, session=session)

    async def delivered(self, tx: Tx, delivery_id: UUID, session: date, provider_id: str) -> None:
        """Keep the id that the other side gave."""
        await tx.execute(_DELIVERED, id=delivery_id, session=session, provider_id=provider_id)

    async def disable_channel(self, tx: Tx, delivery: Row, reason: str, now: datetime) -> list[Row]:
        """Disable the channel that a delivery went to, if it is still there; fail what waits for it.

        Return the deliveries that failed with it.
        """
        target = {"user_id": delivery["user_id"], "channel": delivery["channel"], "lane": delivery["lane"]}
        await tx.execute(_DISABLE, reason=reason, now=now, **target)
        return await tx.fetch(_FAIL_PENDING, reason=reason, now=now, **target)

    # What users ask for

    async def page(
        self,
        tx: Tx,
        user_id: UUID,
        limit: int,
        before: tuple[datetime, UUID] | None,
        *,
        kind: Literal["watchlist", "rule"] | None,
        symbol: str | None,
    ) -> list[Row]:
        """Return a user's alerts, newest first; of the watchlist or of rules, of one symbol, where that is asked."""
        at, alert_id = before or (None, None)
        return await tx.fetch(
            _PAGE,
            user_id=user_id,
            watchlist=None if kind is None else kind == "watchlist",
            watchlist_rule=watchlist_rule_id(user_id),
            symbol=symbol and symbol.upper(),
            limit=limit,
            before_at=at,
            before_id=alert_id,
        )

    async def alert(self, tx: Tx, user_id: UUID, alert_id: UUID) -> Row | None:
        """Return one of a user's alerts; None when it is not theirs."""
        return await tx.fetchrow(_ONE, user_id=user_id, alert_id=alert_id)

    async def deliveries_of(self, tx: Tx, alert_ids: Sequence[UUID]) -> dict[UUID, list[Row]]:
        """Return the deliveries of some alerts, oldest first."""
        found: dict[UUID, list[Row]] = defaultdict(list)
        for row in await tx.fetch(_DELIVERIES_OF, alert_ids=list(alert_ids)):
            found[row["alert_id"]].append(row)
        return found

    async def counts(self, tx: Tx, user_id: UUID) -> Row:
        """Return how many alerts a user has, and how many of them unopened."""
        row = await tx.fetchrow(_COUNTS, user_id=user_id)
        assert row is not None  # noqa: S101 - an aggregate always has a row
        return row


def lines_of(row: Row) -> tuple[Line, ...]:
    """Return the best few contracts of an alert's row."""
    return msgspec.convert(row["best"], tuple[Line, ...])


def _known(rows: Sequence[Row]) -> dict[UUID, Known]:
    return {
        row["alert_id"]: Known(
            Summary(
                top_score=row["top_score"],
                contract_count=row["contract_count"],
                premium_usd=row["premium_usd"],
                best=lines_of(row),
                simulated=row["simulated"],
            ),
            row["notified_score"],
            row["notifications"],
        )
        for row in rows
    }


def _columns(stocks: Sequence[Stock]) -> tuple[list[str], list[date]]:
    return [symbol for symbol, _ in stocks], [session for _, session in stocks]
