"""Who is to hear of what: users, watchlists, rules and channels.

A channel's target is a secret: it is kept sealed (store/targets.py), and leaves for whoever sends to it.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.kinds import ACTIVITY, KINDS
from services.alerts.domain.matching import Rule, watchlist_rule_id
from services.alerts.store.fanouts import OF_PART, Page
from services.alerts.store.targets import Kept, Place
from shared.contracts.alerts import Channel
from shared.db import Row, Tx

WATCHLIST: Final = "watchlist"

_USER = text("""
    insert into users (user_id, email) values (:user_id, :email)
    on conflict (user_id) do update set email = excluded.email""")
_SETTINGS = text("""
    insert into users (user_id, alerts_enabled, min_score, min_premium_usd, timezone)
    values (:user_id, :alerts_enabled, :min_score, :min_premium_usd, :timezone)
    on conflict (user_id) do update set alerts_enabled = excluded.alerts_enabled,
        min_score = excluded.min_score, min_premium_usd = excluded.min_premium_usd,
        timezone = excluded.timezone""")
_EMAIL = text("select email from users where user_id = :user_id")
_WATCH = text("insert into watched (user_id, symbol) values (:user_id, :symbol) on conflict do nothing")
_UNWATCH = text("delete from watched where user_id = :user_id and symbol = :symbol")
# Each user is looked up (`limit 1` keeps it so): a generic plan does not know that few watch most symbols, and would
# read all users.
_RULES = """
    select w.symbol, w.user_id, null as rule_id, null as name,
        coalesce(u.min_score, :min_score) as min_score,
        coalesce(u.min_premium_usd, cast(:min_premium_usd as numeric)) as min_premium_usd, null as expression
    from watched w
    left join lateral (
        select alerts_enabled, min_score, min_premium_usd from users where user_id = w.user_id limit 1) u on true
    where w.symbol = any(cast(:symbols as text[])) and {some} and coalesce(u.alerts_enabled, true)
    union all
    select s.symbol, r.user_id, r.rule_id, r.name, r.min_score, r.min_premium_usd, cast(r.expression as text)
    from unnest(cast(:symbols as text[])) s (symbol)
    join rule_symbols w on w.symbol in (s.symbol, '')
    join rules r using (rule_id)
    left join lateral (select alerts_enabled from users where user_id = r.user_id limit 1) u on true
    where r.enabled and {some} and coalesce(u.alerts_enabled, true)"""
RULES_FOR = text(_RULES.format(some="true"))
_RULES_OF = text(
    _RULES.format(some=f"w.user_id > :after and w.user_id <= :last and {OF_PART.format(user='w.user_id')}")
)

_CHANNEL_LIST = text("select * from channels where user_id = :user_id order by channel, created_at, lane")
_LOCK_CHANNELS = text("select pg_advisory_xact_lock(hashtextextended('alerts/channels/' || :user_id, 0))")
_SET_CHANNEL = text("""
    insert into channels (user_id, channel, target, key_id, wrapped, body, shown, lane, enabled, reason, confirmed_at,
        created_at, updated_at)
    values (:user_id, :channel, :target, :key_id, :wrapped, :body, :shown, :lane,
        cast(:confirmed_at as timestamptz) is not null, cast(:reason as text), :confirmed_at, :now, :now)
    on conflict (user_id, channel, lane) do update set target = excluded.target, key_id = excluded.key_id,
        wrapped = excluded.wrapped, body = excluded.body, shown = excluded.shown,
        enabled = excluded.enabled, reason = excluded.reason, confirmed_at = excluded.confirmed_at,
        updated_at = excluded.updated_at
    returning *""")
_NEW_TARGET = text("""
    update channels set target = :target, key_id = :key_id, wrapped = :wrapped, body = :body, shown = :shown,
        updated_at = :now
    where user_id = :user_id and channel = :channel and lane = :lane returning *""")
_REMOVE_CHANNEL = text("""
    delete from channels where user_id = :user_id and channel = :channel
      and (cast(:lane as text) is null or lane = :lane)""")
_THRESHOLDS = text("""
    select min_score, min_premium_usd, alerts_enabled from users where user_id = :user_id""")


@dataclass(frozen=True, slots=True)
class Defaults:
    """The thresholds of a user whose settings have not arrived."""

    min_score: float
    min_premium_usd: Decimal


class AudienceStore:
    """Reads and writes users, watched, rules and channels, always inside the caller's transaction."""

    def __init__(self, defaults: Defaults) -> None:
        self.defaults = defaults

    async def put_user(self, tx: Tx, user_id: UUID, email: str) -> None:
        """Keep a user's address."""
        await tx.execute(_USER, user_id=user_id, email=email)

    async def put_settings(
        self, tx: Tx, user_id: UUID, *, enabled: bool, min_score: float, min_premium_usd: Decimal, timezone: str
    ) -> None:
        """Keep a user's settings."""
        await tx.execute(
            _SETTINGS,
            user_id=user_id,
            alerts_enabled=enabled,
            min_score=min_score,
            min_premium_usd=min_premium_usd,
            timezone=timezone,
        )

    async def watch(self, tx: Tx, user_id: UUID, symbol: str) -> None:
        """Keep that a user watches a symbol."""
        await tx.execute(_WATCH, user_id=user_id, symbol=symbol)

    async def unwatch(self, tx: Tx, user_id: UUID, symbol: str) -> None:
        """Keep that a user no longer does."""
        await tx.execute(_UNWATCH, user_id=user_id, symbol=symbol)

    async def email(self, tx: Tx, user_id: UUID) -> str | None:
        """Return the address a user signed up with, as far as it is known here."""
        return await tx.fetchval(_EMAIL, user_id=user_id)

    async def rules_for(self, tx: Tx, symbols: Iterable[str]) -> dict[str, list[Rule]]:
        """Return the rules that look at each symbol, the watchlists' first."""
        found: dict[str, list[Rule]] = defaultdict(list)
        for row in await tx.fetch(RULES_FOR, symbols=sorted(set(symbols)), **self._usual):
            found[row["symbol"]].append(_rule(row))
        return found

    async def rules_of(self, tx: Tx, page: Page) -> list[Rule]:
        """Return the rules of a page's users that look at its symbol."""
        users = {"after": page.after, "last": page.last, "part": page.part, "parts": page.parts}
        rows = await tx.fetch(_RULES_OF, symbols=[page.stock[0]], **users, **self._usual)
        return [_rule(row) for row in rows]

    @property
    def _usual(self) -> dict[str, Any]:
        return {"min_score": self.defaults.min_score, "min_premium_usd": self.defaults.min_premium_usd}

    async def channels(self, tx: Tx, user_id: UUID) -> list[Row]:
        """Return a user's channels, a row for each target."""
        return await tx.fetch(_CHANNEL_LIST, user_id=user_id)

    async def set_channel(
        self,
        tx: Tx,
        place: Place,
        kept: Kept,
        *,
        confirmed_at: datetime | None,
        reason: str | None,
        now: datetime,
    ) -> Row:
        """Set a target of a channel; it is enabled when it is confirmed, else `reason` says what is missing."""
        how = {"confirmed_at": confirmed_at, "reason": reason, "now": now}
        row = await tx.fetchrow(_SET_CHANNEL, **place.params(), **kept.params(), **how)
        assert row is not None  # noqa: S101 - it was inserted or updated
        return row

    async def new_target(self, tx: Tx, place: Place, kept: Kept, now: datetime) -> Row:
        """Write another text for a target that stays the same place (domain.channels.lane_of)."""
        row = await tx.fetchrow(_NEW_TARGET, now=now, **place.params(), **kept.params())
        assert row is not None  # noqa: S101 - the caller holds the lock of the user's channels
        return row

    async def lock_channels(self, tx: Tx, user_id: UUID) -> None:
        """Keep others from counting this user's targets until the end of the transaction."""
        await tx.execute(_LOCK_CHANNELS, user_id=str(user_id))

    async def remove_channel(self, tx: Tx, user_id: UUID, channel: Channel, lane: str | None) -> bool:
        """Remove one target of a channel, without a lane all of them; False when there was none."""
        return bool(await tx.execute(_REMOVE_CHANNEL, user_id=user_id, channel=channel, lane=lane))

    async def watchlist_rule(self, tx: Tx, user_id: UUID) -> tuple[Rule, bool]:
        """Return the rule every user has, and whether alerts are on."""
        row = await tx.fetchrow(_THRESHOLDS, user_id=user_id)
        score = row["min_score"] if row and row["min_score"] is not None else self.defaults.min_score
        premium = row["min_premium_usd"] if row else None
        premium = self.defaults.min_premium_usd if premium is None else premium
        enabled = bool(row["alerts_enabled"]) if row else True
        return Rule(user_id, watchlist_rule_id(user_id), WATCHLIST, score, premium), enabled


def _rule(row: Row) -> Rule:
    rule_id = row["rule_id"] or watchlist_rule_id(row["user_id"])
    expression = KINDS[ACTIVITY].expression(row["expression"])
    return Rule(row["user_id"], rule_id, row["name"] or WATCHLIST, row["min_score"], row["min_premium_usd"], expression)
