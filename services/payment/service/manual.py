"""Plans that a person grants: paid for in another way, or given."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid5

from services.payment.domain.dunning import paid_by_hand
from services.payment.domain.ledger import of_hand
from services.payment.domain.money import Money, price
from services.payment.domain.plans import Plans
from services.payment.service.audit import Actor, Audit
from services.payment.service.ledger import Ledger
from services.payment.service.subscriptions import AlreadySubscribed, Subscriptions, once
from services.payment.store.money import MoneyStore
from services.payment.store.subscriptions import SubscriptionStore, state_of
from shared.clock import Clock, NewId
from shared.contracts.base import Event
from shared.contracts.payment import PaymentReceived
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.door import Done

LONGEST: Final = timedelta(days=3660)


class PaymentBooked(Conflict):
    """A payment of this reference is booked already."""

    code = "PAYMENT_BOOKED"


@dataclass(frozen=True, slots=True)
class Paid:
    """What came in for a plan by another way. `reference` names the payment there, each once."""

    amount: Decimal
    currency: str
    reference: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a person grants."""

    plan: str
    until: datetime
    reason: str
    paid: Paid | None = None


class Manual:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        store: SubscriptionStore,
        money: MoneyStore,
        subscriptions: Subscriptions,
        plans: Plans,
        ledger: Ledger,
        *,
        audit: Audit,
        grace: timedelta,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._money = money
        self._subscriptions = subscriptions
        self._plans = plans
        self._ledger = ledger
        self._audit = audit
        self._grace = grace
        self._clock = clock
        self._new_id = new_id

    async def grant(self, actor: Actor, user_id: UUID, grant: Grant, tx: Tx) -> Done[dict[str, Any]]:
        """Grant a plan, or change the plan or the end of one that was granted.

        Raises NotFound for an unknown plan or user, Invalid for an end that is past or too far away, AlreadySubscribed
        where somebody else takes money for a subscription, PaymentBooked, UnknownCurrency and BadAmount.
        """
        now = self._clock()
        plan = self._plans.named(grant.plan)
        if not now < grant.until <= now + LONGEST:
            raise Invalid("`until` is not a time in the next ten years")
        if not await self._money.is_user(tx, user_id):
            raise NotFound("there is no such user")
        await self._store.lock_user(tx, user_id)
        row = await self._store.open(tx, user_id)
        if row is not None and row["provider"] != "manual":
            raise AlreadySubscribed(provider=row["provider"])
        events: list[Event] = []
        if grant.paid is not None:
            events += await self._book(tx, user_id, plan.name, grant.paid, renewal=row is not None)
        subscription_id = self._new_id() if row is None else row["id"]
        start = now if row is None else row["current_period_start"]
        state = paid_by_hand(plan.name, start, grant.until, self._grace)
        events += await self._subscriptions.become(tx, user_id, state, subscription_id)
        details = {"plan": plan.name, "until": grant.until.isoformat(), "reason": grant.reason}
        events.append(self._audit.of(actor, "grant.manual_plan", str(user_id), **details))
        return Done(await self._subscriptions.shown(tx, user_id), events)

    async def end(self, actor: Actor, user_id: UUID, reason: str, tx: Tx) -> Done[dict[str, Any]]:
        """End a plan that was granted, now. Raises NotFound where there is none."""
        await self._store.lock_user(tx, user_id)
        row: Row | None = await self._store.open(tx, user_id)
        if row is None or row["provider"] != "manual":
            raise NotFound("the user has no plan that was granted")
        state = replace(state_of(row), status="canceled", grace_until=None)
        events = await self._subscriptions.become(tx, user_id, state, row["id"])
        events.append(self._audit.of(actor, "end.manual_plan", str(user_id), plan=row["plan"], reason=reason))
        return Done(await self._subscriptions.shown(tx, user_id), events)

    async def _book(self, tx: Tx, user_id: UUID, plan: str, paid: Paid, *, renewal: bool) -> list[Event]:
        now = self._clock()
        money: Money = price(paid.amount, paid.currency)
        key = f"manual/{paid.reference}"
        if not await self._ledger.add(tx, of_hand(key, money, at=now, about=key, user_id=user_id)):
            raise PaymentBooked(reference=paid.reference)
        received = PaymentReceived(
            id=uuid5(user_id, f"received/{key}"),
            time=now,
            user_id=user_id,
            provider="manual",
            reference=key,
            plan=plan,
            amount=money.units,
            currency=money.currency,
            renewal=renewal,
        )
        return [*await once(self._store, tx, f"received/{key}", now, received)]
