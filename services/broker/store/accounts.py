"""Accounts at venues, who may trade, and who is halted."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.broker.ports import Account, Balance
from shared.contracts.payment import SubscriptionChanged
from shared.db import Row, Tx

ALL: Final = "all"

_ADD: Final = text("""
    insert into accounts (id, user_id, venue, mode, reference, name, limits, created_at)
    values (:id, :user_id, :venue, :mode, :reference, :name, cast(:limits as jsonb), :at)""")
_GET: Final = text("select * from accounts where id = :id")
_LOCK: Final = text("select * from accounts where id = :id for no key update")
_LOCK_TO_JUDGE: Final = text("""
    select a.*, pg_advisory_xact_lock_shared(hashtextextended('halts/' || current_schema(), 0))
    from accounts a where id = :id for no key update""")
_NO_JUDGING: Final = text("select pg_advisory_xact_lock(hashtextextended('halts/' || current_schema(), 0))")
_ON_THEIR_WAY: Final = text("""
    select exists(select from sendings s join orders o on o.id = s.order_id
        where s.status in ('claimed', 'started') and s.kind in ('submit', 'replace') and o.state = 'pending_submit'
            and (:who = :all or cast(o.user_id as text) = :who))""")
_OF_USER: Final = text("select * from accounts where user_id = :user_id and closed_at is null order by created_at, id")
_OPEN: Final = text("""
    select a.*, c.version as credentials from accounts a left join credentials c on c.account_id = a.id
    where a.closed_at is null order by a.id""")
_CLOSE: Final = text("update accounts set closed_at = :at where id = :id and closed_at is null")
_BALANCE: Final = text("""
    update accounts set cash = :cash, buying_power = :buying_power, balance_at = :at
    where id = :id and (balance_at is null or balance_at <= cast(:at as timestamptz))""")
_CHECKED: Final = text("update accounts set checked_at = :at, trouble = null where id = :id")
_TROUBLE: Final = text("update accounts set trouble = :trouble where id = :id and trouble is distinct from :trouble")
_HALT: Final = text("""
    insert into halts (who, by_user, reason, at) values (:who, :by_user, :reason, :at)
    on conflict (who) do update set by_user = excluded.by_user, reason = excluded.reason, at = excluded.at""")
_RESUME: Final = text("delete from halts where who = :who")
_HALTS: Final = text("select * from halts where who = any(:who)")
_ENTITLE: Final = text("""
    insert into entitlements as known (user_id, subscription_id, names, until, version)
    values (:user_id, :subscription_id, :names, :until, :version)
    on conflict (user_id, subscription_id) do update
        set names = excluded.names, until = excluded.until, version = excluded.version
    where known.version < excluded.version""")


class AccountStore:
    """Reads and writes accounts."""

    async def add(self, tx: Tx, account: Account, name: str, limits: Mapping[str, Any], at: datetime) -> None:
        """Keep a new account."""
        await tx.execute(
            _ADD,
            id=account.id,
            user_id=account.user_id,
            venue=account.venue,
            mode=account.mode,
            reference=account.reference,
            name=name,
            limits=dict(limits),
            at=at,
        )

    async def get(self, tx: Tx, account_id: UUID) -> Row | None:
        """Return an account."""
        return await tx.fetchrow(_GET, id=account_id)

    async def lock(self, tx: Tx, account_id: UUID) -> Row | None:
        """Return an account that nobody else changes until the commit."""
        return await tx.fetchrow(_LOCK, id=account_id)

    async def lock_to_judge(self, tx: Tx, account_id: UUID) -> Row | None:
        """Return an account that nobody else changes until the commit; until then nothing is halted, either."""
        return await tx.fetchrow(_LOCK_TO_JUDGE, id=account_id)

    async def of_user(self, tx: Tx, user_id: UUID) -> Sequence[Row]:
        """Return a user's accounts."""
        return await tx.fetch(_OF_USER, user_id=user_id)

    async def open(self, tx: Tx) -> Sequence[Row]:
        """Return all accounts that are not closed; `credentials` is the version of theirs, null without any."""
        return await tx.fetch(_OPEN)

    async def close(self, tx: Tx, account_id: UUID, at: datetime) -> None:
        """Close an account; its history stays."""
        await tx.execute(_CLOSE, id=account_id, at=at)

    async def balance(self, tx: Tx, account_id: UUID, balance: Balance, at: datetime) -> None:
        """Keep the money that the venue tells; `at` is when it was asked. A younger answer stays."""
        await tx.execute(_BALANCE, id=account_id, cash=balance.cash, buying_power=balance.buying_power, at=at)

    async def checked(self, tx: Tx, account_id: UUID, at: datetime) -> None:
        """Note that all that happened before is known."""
        await tx.execute(_CHECKED, id=account_id, at=at)

    async def trouble(self, tx: Tx, account_id: UUID, trouble: str) -> None:
        """Note why the account's venue cannot be heard."""
        await tx.execute(_TROUBLE, id=account_id, trouble=trouble)

    async def halt(self, tx: Tx, who: str, by_user: UUID, reason: str, at: datetime) -> None:
        """Let nothing of a user, or of all, be sent. Waits for what is being judged just now."""
        await tx.execute(_NO_JUDGING)
        await tx.execute(_HALT, who=who, by_user=by_user, reason=reason, at=at)

    async def on_their_way(self, tx: Tx, who: str) -> bool:
        """Whether orders of a user, or of anybody, were judged and are not answered yet by their venue."""
        return bool(await tx.fetchval(_ON_THEIR_WAY, who=who, all=ALL))

    async def resume(self, tx: Tx, who: str) -> bool:
        """End a halt; tell whether there was one."""
        return bool(await tx.execute(_RESUME, who=who))

    async def halts(self, tx: Tx, user_id: UUID) -> Mapping[str, Row]:
        """Return what halts a user, by whom it halts."""
        return {row["who"]: row for row in await tx.fetch(_HALTS, who=[ALL, str(user_id)])}

    async def entitle(self, tx: Tx, told: SubscriptionChanged) -> None:
        """Keep what a subscription gives; an older version changes nothing."""
        await tx.execute(
            _ENTITLE,
            user_id=told.user_id,
            subscription_id=told.subscription_id,
            names=list(told.entitlements),
            until=told.entitled_until,
            version=told.version,
        )


def account_of(row: Row) -> Account:
    """Return an account's row as the venues know it."""
    return Account(row["id"], row["user_id"], row["venue"], row["mode"], row["reference"])
