"""Contracts, alerts, and how their deliveries go."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from sqlalchemy import text

from services.alerts.domain.matching import Change, Known, Line, Stock, Summary, watchlist_rule_id
from services.alerts.domain.text import title
from services.alerts.store.inhibitions import FIRING
from services.alerts.store.silences import RUNNING
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
# Very many alerts say the same: it is sent once, and each row names what it says.
_SAVE_ALERTS = text("""
    insert into alerts as a (alert_id, session, user_id, rule_id, rule_name, symbol, created_at, updated_at, as_of,
        source, delay_s, simulated, title, top_score, contract_count, premium_usd, best, notified_score,
        notifications)
    select r.alert_id, t.session, r.user_id, r.rule_id, r.rule_name, t.symbol, cast(:now as timestamptz), :now,
        t.as_of, t.source, t.delay_s, t.simulated, t.title, t.top_score, t.contract_count, t.premium_usd, t.best,
        r.notified_score, r.notifications
    from unnest(cast(:alert_ids as uuid[]), cast(:user_ids as uuid[]), cast(:rule_ids as uuid[]),
            cast(:rule_names as text[]), cast(:notified_scores as float8[]), cast(:notifications as int[]),
            cast(:saying as int[]))
        as r (alert_id, user_id, rule_id, rule_name, notified_score, notifications, saying)
    join jsonb_to_recordset(cast(:told as jsonb)) as t (n int, session date, symbol text, as_of timestamptz,
        source text, delay_s float8, simulated boolean, title text, top_score float8, contract_count int,
        premium_usd numeric, best jsonb) on t.n = r.saying
    on conflict (alert_id, session) do update set rule_name = excluded.rule_name,
        updated_at = excluded.updated_at, as_of = greatest(a.as_of, excluded.as_of), source = excluded.source,
        delay_s = excluded.delay_s, simulated = excluded.simulated, title = excluded.title,
        top_score = excluded.top_score, contract_count = excluded.contract_count,
        premium_usd = excluded.premium_usd, best = excluded.best, notified_score = excluded.notified_score,
        opened_at = case when excluded.notifications > a.notifications then null else a.opened_at end,
        acknowledged_at = case when excluded.notifications > a.notifications then null else a.acknowledged_at end,
        notifications = excluded.notifications""")
_DELIVERIES = text(f"""
    select d.id, d.uncertain, d.user_id, d.channel, d.lane, d.alert_id, d.escalated, d.because, a.acknowledged_at,
        c.target, c.key_id, c.wrapped, c.body, c.enabled, p.choices, {RUNNING} as silences,
        p.inhibitions, {FIRING} as firing, cast(null as uuid) as account_id,
        exists (select from deliveries l where l.alert_id = d.alert_id and l.session = d.session
            and l.channel = d.channel and l.lane = d.lane and l.ring > d.ring
            and l.status not in ('suppressed', 'digested')) as superseded,
        a.symbol, a.session, a.rule_id, a.rule_name, a.as_of, a.delay_s, a.source, a.title, a.contract_count,
        a.premium_usd, a.best, a.simulated, coalesce(p.timezone, u.timezone) as timezone, p.locale
    from unnest(cast(:ids as uuid[]), cast(:sessions as date[])) as r (id, session)
    join deliveries d on d.id = r.id and d.session = r.session
    join alerts a on a.alert_id = d.alert_id and a.session = d.session
    left join channels c on c.user_id = d.user_id and c.channel = d.channel and c.lane = d.lane
    left join preferences p on p.user_id = d.user_id
    left join users u on u.user_id = d.user_id""")  # noqa: S608 - our own words
_DELIVERED = text("""
    update deliveries set provider_id = r.provider_id, template = r.template
    from unnest(cast(:ids as uuid[]), cast(:sessions as date[]), cast(:provider_ids as text[]),
        cast(:templates as text[])) as r (id, session, provider_id, template)
    where deliveries.id = r.id and deliveries.session = r.session""")
_DISABLE = text("""
    update channels set enabled = false, reason = :reason, updated_at = :now
    where user_id = :user_id and channel = :channel and lane = :lane and enabled""")
_LAST_ENDS = text("""
    select status from (
        select id, status, settled_at from deliveries
        where user_id = :user_id and channel = :channel and lane = :lane and status in ('done', 'unknown')
        union all
        select id, status, settled_at from notice_deliveries
        where user_id = :user_id and channel = :channel and lane = :lane and status in ('done', 'unknown')
    ) ends where id <> :id order by settled_at desc limit :limit""")
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
    select id, alert_id, channel, lane, status, attempts, due_at, settled_at, last_error, created_at,
        delivered_at from deliveries
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
        told: dict[tuple[int, UUID], dict[str, Any]] = {}
        rows = sorted(changed, key=lambda change: change.alert_id.int)
        saying: list[int] = []
        for change in rows:
            key = id(change.summary), change.cause.id  # one object for all rules with the same limits
            if key not in told:
                told[key] = {"n": len(told), **_told(change)}
            saying.append(told[key]["n"])
        await tx.execute(
            _SAVE_ALERTS,
            told=list(told.values()),
            saying=saying,
            alert_ids=[change.alert_id for change in rows],
            user_ids=[change.rule.user_id for change in rows],
            rule_ids=[change.rule.rule_id for change in rows],
            rule_names=[change.rule.name for change in rows],
            notified_scores=[change.notified_score for change in rows],
            notifications=[change.notifications for change in rows],
            now=now,
        )

    # Delivering

    async def deliveries(self, tx: Tx, wanted: Sequence[tuple[UUID, date]], now: datetime) -> dict[UUID, Row]:
        """Return what deliveries (id, session) need, as it is now: alert, target, what the user wants."""
        ids, sessions = [one for one, _ in wanted], [session for _, session in wanted]
        return {row["id"]: row for row in await tx.fetch(_DELIVERIES, ids=ids, sessions=sessions, now=now)}

    async def delivered(self, tx: Tx, given: Sequence[tuple[Row, Mapping[str, Any]]]) -> None:
        """Keep the ids that the other side gave (`provider_id`), and what laid messages out (`template`)."""
        await tx.execute(
            _DELIVERED,
            ids=[row["id"] for row, _ in given],
            sessions=[row["session"] for row, _ in given],
            provider_ids=[result["provider_id"] for _, result in given],
            templates=[result["template"] for _, result in given],
        )

    async def last_ends(self, tx: Tx, delivery: Row, limit: int) -> list[str]:
        """Return how the last deliveries besides one to the same target ended, newest first: "done" or "unknown"."""
        place = {name: delivery[name] for name in ("id", "user_id", "channel", "lane")}
        return [row["status"] for row in await tx.fetch(_LAST_ENDS, limit=limit, **place)]

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


def _told(change: Change) -> dict[str, Any]:
    """Return what an alert says, whoever hears it."""
    return {
        "session": change.session,
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
    }


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
