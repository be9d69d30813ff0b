"""Subscriptions that nobody pays for by itself, day by day; and what is told before a trial or a card ends."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

from services.payment.domain.dunning import DUNNING, REMINDERS, Step, due, now_is
from services.payment.domain.plans import Plans
from services.payment.domain.subscriptions import State
from services.payment.service.subscriptions import Subscriptions, once
from services.payment.store.money import MoneyStore
from services.payment.store.subscriptions import SubscriptionStore, state_of
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.payment import CardExpiring, RenewalDue, TrialEnding
from shared.db import Row, Tx
from shared.messaging.door import Door

_log = logging.getLogger(__name__)

AT_ONCE: Final = 200
AHEAD: Final = timedelta(days=max(REMINDERS) + 1)
TRIAL_AHEAD: Final = timedelta(days=3)
CARD_AHEAD: Final = timedelta(days=30)
_FIRST: Final = UUID(int=0)


class SomeRenewalsFailed(Exception):
    """Some subscriptions could not be renewed or reminded of; the log says which. They are tried again tomorrow."""


class Renewals:
    """Runs once a day. Each subscription has a transaction of its own: one that fails stops no other."""

    def __init__(
        self,
        store: SubscriptionStore,
        subscriptions: Subscriptions,
        plans: Plans,
        door: Door,
        *,
        grace: timedelta,
        clock: Clock,
    ) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._plans = plans
        self._door = door
        self._grace = grace
        self._clock = clock

    async def run(self, at: datetime) -> None:
        """Bring all that renew by hand to where they are now, and tell what is due. Again, it changes nothing."""
        del at  # a run that was missed tells what is due now
        now, after, failed = self._clock(), _FIRST, 0
        while True:
            async with self._door.read() as tx:
                rows = await self._store.by_hand(tx, now + AHEAD, after, AT_ONCE)
            if not rows:
                break
            for row in rows:
                after = row["id"]
                try:
                    await self._door.publish(self._one(row["user_id"], row["id"]))
                except Exception:  # noqa: BLE001 - told in the log and below; the others are not to wait for it
                    failed += 1
                    _log.exception("payment_renewal_failed", extra={"subscription": str(row["id"])})
        if failed:
            raise SomeRenewalsFailed(f"{failed} subscriptions could not be renewed or reminded of")

    def _one(self, user_id: UUID, subscription_id: UUID) -> Callable[[Tx], Awaitable[Sequence[Event]]]:
        async def renew(tx: Tx) -> Sequence[Event]:
            await self._store.lock_user(tx, user_id)
            row = await self._store.open(tx, user_id)
            if row is None or row["id"] != subscription_id or row["provider"] == "stripe":
                return []  # it has changed since it was listed
            now = self._clock()
            state = now_is(state_of(row), now, self._grace)
            events = await self._subscriptions.become(tx, user_id, state, subscription_id)
            step = due(state, now)
            if step is not None:
                events += await self._remind(tx, row, state, step, now)
            return events

        return renew

    async def _remind(self, tx: Tx, row: Row, state: State, step: Step, now: datetime) -> Sequence[Event]:
        plan = self._plans.get(state.plan)
        assert state.period_end is not None  # noqa: S101 - else nothing is due
        if plan is None:  # it is sold no more: there is nothing to pay
            return []
        period = f"renewal/{row['id']}/{state.period_end.isoformat()}"
        reminder = RenewalDue(
            id=uuid5(row["id"], f"{period}/{step.days}"),
            time=now,
            user_id=row["user_id"],
            provider=state.provider,
            reference=f"{state.provider}/{row['id']}",
            plan=plan.name,
            due_at=state.period_end,
            days_left=step.days_left,
            amount=plan.price_usd,
            currency="USD",
            next_step_at=step.next_at,
            last=step.days == DUNNING[-1],
        )
        return await once(self._store, tx, f"{period}/{step.days}", now, reminder)


class Reminders:
    """Tells of trials and cards that end soon, each once, whatever webhook was lost."""

    def __init__(self, store: MoneyStore, subscription_store: SubscriptionStore, door: Door, clock: Clock) -> None:
        self._store = store
        self._notices = subscription_store
        self._door = door
        self._clock = clock

    async def run(self, at: datetime) -> None:
        """Tell what is due. Again, it changes nothing."""
        del at
        await self._door.publish(self.trials)
        await self._door.publish(self.cards)

    async def trials(self, tx: Tx) -> Sequence[Event]:
        """Tell of trials that end within TRIAL_AHEAD and become paid."""
        now = self._clock()
        events: list[Event] = []
        for row in await self._store.trials(tx, now, now + TRIAL_AHEAD):
            name = f"trial/{row['id']}/{row['trial_end'].isoformat()}"
            ending = TrialEnding(
                id=uuid5(row["id"], name),
                time=now,
                user_id=row["user_id"],
                provider=row["provider"],
                reference=f"{row['provider']}/{row['provider_id'] or row['id']}",
                plan=row["plan"],
                ends_at=row["trial_end"],
            )
            events += await once(self._notices, tx, name, now, ending)
        return events

    async def cards(self, tx: Tx) -> Sequence[Event]:
        """Tell of cards that end within CARD_AHEAD and still pay for a subscription."""
        now = self._clock()
        events: list[Event] = []
        for row in await self._store.expiring(tx, (now + CARD_AHEAD).date()):
            last_month = (row["expires"] - timedelta(days=1)).strftime("%Y-%m")
            name = f"card/stripe/{row['provider_id']}/{last_month}"
            expiring = CardExpiring(
                id=uuid5(row["user_id"], name),
                time=now,
                user_id=row["user_id"],
                provider="stripe",
                reference=f"stripe/{row['provider_id']}",
                plan=row["plan"],
                brand=row["brand"],
                last4=row["last4"],
                expires=last_month,
            )
            events += await once(self._notices, tx, name, now, expiring)
        return events
