"""What appliers of payments remember: who a customer is, what a payment was for, what holds access back, cards."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

_USER: Final = text("""
    select user_id from customers where stripe_id = :customer
    union all
    select user_id from stripe_objects where kind = 'customer' and id = :customer and user_id is not null
    limit 1""")
_HEARD: Final = text("select true from stripe_objects where kind = 'customer' and id = :customer")
_IS_USER: Final = text("select true from customers where user_id = :user_id")
_LINK: Final = text("""
    insert into invoice_payments as known
        (payment_intent, invoice, user_id, subscription, reason, period_start, period_end)
    values (:payment_intent, :invoice, :user_id, cast(:subscription as text), cast(:reason as text),
        cast(:period_start as timestamptz), cast(:period_end as timestamptz))
    on conflict (payment_intent) do update set subscription = excluded.subscription, reason = excluded.reason,
        period_start = excluded.period_start, period_end = excluded.period_end
    where (known.subscription, known.reason, known.period_start, known.period_end)
        is distinct from (excluded.subscription, excluded.reason, excluded.period_start, excluded.period_end)
    returning payment_intent""")
_HOLD: Final = text("""
    insert into holds as known (about, user_id, reason, payment_intent, lifted, updated_at)
    values (:about, :user_id, :reason, cast(:payment_intent as text), :lifted, :at)
    on conflict (about) do update set lifted = excluded.lifted, updated_at = excluded.updated_at
    where known.lifted <> excluded.lifted
    returning about""")
_HELD_AT_STRIPE: Final = text("""
    select s.user_id, s.provider_id, s.status, h.about, exists (
        select from stripe_objects o
        where o.kind = 'dispute' and o.id = substr(h.about, length('stripe/') + 1) and o.body ->> 'status' = 'lost'
          and coalesce(to_timestamp((o.body ->> 'created')::bigint) < p.period_end, true)) as lost
    from holds h join invoice_payments p using (payment_intent)
        join subscriptions s on s.provider = 'stripe' and s.provider_id = p.subscription and s.user_id = h.user_id
    where h.user_id = :user_id and not h.lifted and s.status in ('trialing', 'active', 'past_due', 'paused')
      and (h.reason = 'disputed'
           or p.reason in ('subscription_create', 'subscription_cycle') and p.period_end > s.current_period_start)
    order by h.about""")
_CARD: Final = text("""
    insert into cards as known (user_id, provider_id, brand, last4, expires, seen_at)
    values (:user_id, :provider_id, :brand, :last4, :expires, :seen_at)
    on conflict (user_id) do update set provider_id = excluded.provider_id, brand = excluded.brand,
        last4 = excluded.last4, expires = excluded.expires, seen_at = excluded.seen_at
    where excluded.seen_at > known.seen_at
       or (excluded.provider_id = known.provider_id and excluded.expires > known.expires)""")
_DROP_CARD: Final = text("delete from cards where provider_id = :provider_id")
_EXPIRING: Final = text("""
    select c.*, s.plan from cards c join subscriptions s on s.user_id = c.user_id
    where s.provider = 'stripe' and s.status in ('trialing', 'active', 'past_due') and not s.cancel_at_period_end
      and c.expires <= :before
    order by c.user_id""")
_TRIALS: Final = text("""
    select * from subscriptions
    where status = 'trialing' and not cancel_at_period_end and trial_end > :now and trial_end <= :before
    order by id""")


class MoneyStore:
    """Reads and writes what appliers of payments remember."""

    async def user_of(self, tx: Tx, customer: str) -> UUID | None:
        """Return whose customer at Stripe it is, or was before it was deleted there."""
        return await tx.fetchval(_USER, customer=customer)

    async def heard_of(self, tx: Tx, customer: str) -> bool:
        """Whether what Stripe says of a customer has been applied: one without a user then is nobody's."""
        return bool(await tx.fetchval(_HEARD, customer=customer))

    async def is_user(self, tx: Tx, user_id: UUID) -> bool:
        """Whether we have heard of the user."""
        return bool(await tx.fetchval(_IS_USER, user_id=user_id))

    async def link(self, tx: Tx, payment_intent: str, link: Mapping[str, Any]) -> bool:
        """Note which invoice a payment is for; whether that is news."""
        return await tx.fetchrow(_LINK, payment_intent=payment_intent, **link) is not None

    async def hold(self, tx: Tx, about: str, hold: Mapping[str, Any], *, lifted: bool, at: datetime) -> bool:
        """Hold back what a charge paid for, or no longer; whether that is news."""
        return await tx.fetchrow(_HOLD, about=about, **hold, lifted=lifted, at=at) is not None

    async def held_at_stripe(self, tx: Tx, user_id: UUID) -> list[Row]:
        """Return a user's open subscriptions at Stripe that are held back, once for each refund or dispute."""
        return await tx.fetch(_HELD_AT_STRIPE, user_id=user_id)

    async def note_card(self, tx: Tx, user_id: UUID, card: Mapping[str, Any], expires: date, seen_at: datetime) -> None:
        """Note the card that a user used; one seen earlier than what is known changes nothing."""
        await tx.execute(_CARD, user_id=user_id, **card, expires=expires, seen_at=seen_at)

    async def forget_card(self, tx: Tx, provider_id: str) -> None:
        """Forget a card that its user took away."""
        await tx.execute(_DROP_CARD, provider_id=provider_id)

    async def expiring(self, tx: Tx, before: date) -> list[Row]:
        """Return cards that end by `before` and still pay for a subscription."""
        return await tx.fetch(_EXPIRING, before=before)

    async def trials(self, tx: Tx, now: datetime, before: datetime) -> list[Row]:
        """Return subscriptions whose trial ends in (now, before] and goes on as a paid one."""
        return await tx.fetch(_TRIALS, now=now, before=before)
