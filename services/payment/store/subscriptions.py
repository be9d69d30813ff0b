"""Subscriptions of all providers, and the customers who have them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.payment.domain.subscriptions import State
from shared.db import Row, Tx

_LOCK_USER: Final = text("""
    select pg_advisory_xact_lock(hashtextextended('payment/user/' || cast(cast(:user_id as uuid) as text), 0))""")
_OPEN: Final = text("""
    select * from subscriptions where user_id = :user_id and status in ('trialing', 'active', 'past_due', 'paused')""")
_LATEST: Final = text("""
    select * from subscriptions where user_id = :user_id
    order by status in ('trialing', 'active', 'past_due', 'paused') desc,
        coalesce(current_period_start, created_at) desc, id limit 1""")
_OF_PROVIDER: Final = text("select * from subscriptions where provider = :provider and provider_id = :provider_id")
_INSERT: Final = text("""
    insert into subscriptions (id, user_id, provider, provider_id, plan, status, current_period_start,
        current_period_end, trial_end, grace_until, cancel_at_period_end, anchor_day, created_at, updated_at)
    values (:id, :user_id, :provider, :provider_id, :plan, :status, :period_start, :period_end, :trial_end,
        :grace_until, :cancel_at_period_end, cast(:anchor_day as smallint), :at, :at)""")
_UPDATE: Final = text("""
    update subscriptions set plan = :plan, status = :status, current_period_start = :period_start,
        current_period_end = :period_end, trial_end = :trial_end, grace_until = :grace_until,
        cancel_at_period_end = :cancel_at_period_end, anchor_day = cast(:anchor_day as smallint), updated_at = :at
    where id = :id""")
_TELL: Final = text("""
    update subscriptions set told = cast(:told as jsonb), version = version + 1
    where id = :id and told is distinct from cast(:told as jsonb) returning version""")
_LAPSED: Final = text("""
    select * from subscriptions
    where status in ('trialing', 'active', 'past_due') and (told ->> 'entitled_until')::timestamptz <= :now
      and told -> 'entitlements' <> '[]'
    order by id limit :most""")
_HELD: Final = text("""
    select h.about from holds h join invoice_payments p using (payment_intent)
    where h.user_id = :user_id and not h.lifted and p.subscription = :provider_id
      and case h.reason
          when 'disputed' then not exists (
              select from stripe_objects o
              where o.kind = 'dispute' and o.id = substr(h.about, length('stripe/') + 1)
                and to_timestamp((o.body ->> 'created')::bigint) >= p.period_end)
          else coalesce(
              p.period_start - cast(:period_start as timestamptz) between interval '-1 hour' and interval '1 hour'
                  and p.period_end + interval '1 hour' >= cast(:period_end as timestamptz),
              p.reason in ('subscription_create', 'subscription_cycle') and p.period_end > :period_start) end
    limit 1""")
"""What was refunded is what paid for the current period, from its beginning to its end. An hour is the difference that
a change of plan makes which names a moment in the past. An invoice without a beginning counts by its reason.

What is disputed was paid for a period that had not ended when the dispute was opened: who disputes a payment of an
earlier one has paid for the current one."""
_ALL: Final = text("""
    select * from subscriptions
    where id > :after and (status in ('trialing', 'active', 'past_due', 'paused') or told -> 'entitlements' <> '[]')
    order by id limit :most""")
_OF_USER: Final = text("""
    select * from subscriptions
    where user_id = :user_id
      and (status in ('trialing', 'active', 'past_due', 'paused') or told -> 'entitlements' <> '[]')
    order by created_at, id""")
_BY_HAND: Final = text("""
    select * from subscriptions
    where id > :after and provider <> 'stripe' and status in ('trialing', 'active', 'past_due')
      and current_period_end <= :before
    order by id limit :most""")
_PAID_BY_HAND: Final = text("""
    select true from ledger_entries where user_id = :user_id and key like 'manual/%' and at >= :since limit 1""")
_NOTICE: Final = text("""
    insert into notices (name, told_at) values (:name, :at) on conflict (name) do nothing returning name""")


class SubscriptionStore:
    """Reads and writes subscriptions. A caller that will change one locks its user first."""

    async def lock_user(self, tx: Tx, user_id: UUID) -> None:
        """Take what serialises all changes of a user's subscriptions, until the commit."""
        await tx.execute(_LOCK_USER, user_id=user_id)

    async def open(self, tx: Tx, user_id: UUID) -> Row | None:
        """Return the user's subscription that is not over."""
        return await tx.fetchrow(_OPEN, user_id=user_id)

    async def latest(self, tx: Tx, user_id: UUID) -> Row | None:
        """Return the user's subscription that is not over, else the newest."""
        return await tx.fetchrow(_LATEST, user_id=user_id)

    async def of_provider(self, tx: Tx, provider: str, provider_id: str) -> Row | None:
        """Return the subscription that the provider knows by that id."""
        return await tx.fetchrow(_OF_PROVIDER, provider=provider, provider_id=provider_id)

    async def add(self, tx: Tx, subscription_id: UUID, user_id: UUID, state: State, at: datetime) -> None:
        """Add a subscription."""
        place = {"id": subscription_id, "user_id": user_id, "provider": state.provider}
        await tx.execute(_INSERT, **place, provider_id=state.provider_id, **_columns(state), at=at)

    async def change(self, tx: Tx, subscription_id: UUID, state: State, at: datetime) -> None:
        """Write a subscription's new state."""
        await tx.execute(_UPDATE, id=subscription_id, **_columns(state), at=at)

    async def tell(self, tx: Tx, subscription_id: UUID, told: Mapping[str, Any]) -> int | None:
        """Note what is told of a subscription; return the new version, None when it is what was told before."""
        row = await tx.fetchrow(_TELL, id=subscription_id, told=dict(told))
        return row["version"] if row else None

    async def lapsed(self, tx: Tx, now: datetime, most: int) -> list[Row]:
        """Return subscriptions whose access has ended since it was told."""
        return await tx.fetch(_LAPSED, now=now, most=most)

    async def held(self, tx: Tx, user_id: UUID, state: State) -> bool:
        """Whether a refund or a dispute holds back what was paid for: services.payment.service.money says when."""
        if state.provider_id is None:
            return False
        found = await tx.fetchrow(
            _HELD,
            user_id=user_id,
            provider_id=state.provider_id,
            period_start=state.period_start,
            period_end=state.period_end,
        )
        return found is not None

    async def telling(self, tx: Tx, after: UUID, most: int) -> list[Row]:
        """Return subscriptions by id that allow something, or are said to."""
        return await tx.fetch(_ALL, after=after, most=most)

    async def telling_of(self, tx: Tx, user_id: UUID) -> list[Row]:
        """Return those of a user, the oldest first."""
        return await tx.fetch(_OF_USER, user_id=user_id)

    async def by_hand(self, tx: Tx, before: datetime, after: UUID, most: int) -> list[Row]:
        """Return subscriptions by id that nobody pays for by itself and whose period ends by `before`."""
        return await tx.fetch(_BY_HAND, before=before, after=after, most=most)

    async def paid_by_hand(self, tx: Tx, granted: Row) -> bool:
        """Whether anything was paid for a plan that a person granted."""
        since = granted["current_period_start"] or granted["created_at"]
        return bool(await tx.fetchval(_PAID_BY_HAND, user_id=granted["user_id"], since=since))

    async def first_notice(self, tx: Tx, name: str, at: datetime) -> bool:
        """Whether nobody has been told this yet; from now on somebody has."""
        return await tx.fetchrow(_NOTICE, name=name, at=at) is not None


def state_of(row: Row) -> State:
    """Return a row's state."""
    return State(
        row["provider"],
        row["provider_id"],
        row["plan"],
        row["status"],
        row["current_period_start"],
        row["current_period_end"],
        row["trial_end"],
        row["grace_until"],
        row["cancel_at_period_end"],
        row["anchor_day"],
    )


def _columns(state: State) -> dict[str, Any]:
    return {
        "plan": state.plan,
        "status": state.status,
        "period_start": state.period_start,
        "period_end": state.period_end,
        "trial_end": state.trial_end,
        "grace_until": state.grace_until,
        "cancel_at_period_end": state.cancel_at_period_end,
        "anchor_day": state.anchor_day,
    }
